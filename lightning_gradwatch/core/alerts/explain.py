"""Findings become alerts: what is wrong, why, and what to try, from evidence that was measured on this run."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradwatch.core.alerts import KINDS
from lightning_gradwatch.core.alerts.kind import Diagnosis, named
from lightning_gradwatch.core.alerts.own_rules import OwnKind
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import Alert, Finding, to_try


def explain(finding: Finding, evidence: Evidence, optimizer: str = "", own: OwnKind | None = None) -> Alert:
    """Put a finding into words.

    Args:
        finding: What the detector saw.
        evidence: What was measured on this run.
        optimizer: Name of the optimizer that owns the layers; ``""`` if there is only one.
        own: The words of a user's rule, if it was one that saw it.

    Returns:
        The alert, with cause, evidence and remedies as fields and as one message.
    """
    kind = KINDS.get(finding.kind)
    if kind is None:
        return explain_nothing(finding, optimizer, own)
    return _alert(finding, kind.describe(finding, evidence), kind.diagnose(finding, evidence), optimizer)


def explain_nothing(finding: Finding, optimizer: str = "", own: OwnKind | None = None) -> Alert:
    """Put a finding into words of which none depends on evidence; the arguments are those of ``explain``."""
    where = f" in {named(finding.layers)}" if finding.layers else ""
    title, unit = ("Something is wrong", "") if own is None else (own.title, own.unit and f" {own.unit}")
    what = (
        f"{title} (step {finding.step}): `{finding.kind}` is at {finding.value:.3g}{unit}{where}, and "
        f"{finding.threshold:.3g} is where it alerts."
    )
    if own is not None:  # what its user does not say, nobody makes up
        return replace(_alert(finding, what, Diagnosis("unknown", own.cause, own.remedies), optimizer), title=own.title)
    look = "a look at the named layers" if finding.layers else "a look at the gradient norms and the loss"
    diagnosis = Diagnosis("unknown", "the measurements do not tell why", (look, "a smaller learning rate"))
    return _alert(finding, what, diagnosis, optimizer)


def _alert(finding: Finding, what: str, diagnosis: Diagnosis, optimizer: str) -> Alert:
    return Alert(
        kind=finding.kind,
        level=finding.level,
        step=finding.step,
        until_step=finding.until_step,
        layer=finding.layers[0] if finding.layers else "",
        value=finding.value,
        threshold=finding.threshold,
        message=f"{what}{_sentence(diagnosis.evidence)}{to_try(diagnosis.remedies)}",
        cause=diagnosis.cause,
        evidence=diagnosis.evidence,
        remedies=diagnosis.remedies,
        optimizer=optimizer,
        summary=_summary(what, finding),
        attribution=diagnosis.attribution,
    )


def _summary(what: str, finding: Finding) -> str:
    """A sentence of ours without the symptom and the step, where it begins with them."""
    _, found, rest = what.partition(f" (step {finding.step}): ")
    if not found:
        return what
    return rest if rest.startswith(finding.layers) else rest[0].upper() + rest[1:]


def _sentence(text: str) -> str:
    """A sentence after another one; nothing for no text."""
    return f" {text[0].upper()}{text[1:]}." if text else ""
