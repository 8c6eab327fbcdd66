"""Findings become alerts: what is wrong, why, and what to try, in plain sentences."""

from __future__ import annotations

from lightning_gradwatch.core.records import Alert, Finding

_VANISHING_REMEDIES = (
    "ReLU, GELU or SiLU with He initialisation",
    "normalisation between the layers",
    "residual connections",
)
_NONFINITE_REMEDIES = (
    "a lower learning rate or a warm-up",
    "gradient clipping",
    "looking for log(0), division by zero or bad input in the batch of that step",
)


def explain(finding: Finding, optimizer: str = "") -> Alert:
    """Put a finding into words.

    Args:
        finding: What the detector saw.
        optimizer: Name of the optimizer that owns the layers; ``""`` if there is only one.

    Returns:
        The alert, with cause, evidence and remedies as fields and as one message.
    """
    what, cause, evidence, remedies = _words(finding)
    return Alert(
        kind=finding.kind,
        level=finding.level,
        step=finding.step,
        until_step=finding.until_step,
        layer=finding.layers[0] if finding.layers else "",
        value=finding.value,
        threshold=finding.threshold,
        message=f"{what} {cause}: {evidence}. Try {', '.join(remedies[:-1])}, or {remedies[-1]}.",
        cause=cause,
        evidence=evidence,
        remedies=remedies,
        optimizer=optimizer,
    )


def _words(finding: Finding) -> tuple[str, str, str, tuple[str, ...]]:
    if finding.kind == "nonfinite":
        return _nonfinite(finding)
    return _vanishing(finding)


def _vanishing(finding: Finding) -> tuple[str, str, str, tuple[str, ...]]:
    starving, fed = finding.layers
    what = f"Gradients vanish with depth (seen at step {finding.step}): the early layers starve."
    evidence = (
        f"between the last third of the layers (such as {fed}) and the first third (such as {starving}) it shrinks by "
        f"{finding.value:.1f} decades, a factor of {10**finding.value:.0e}"
    )
    return what, "The gradient is lost layer by layer on its way back", evidence, _VANISHING_REMEDIES


def _nonfinite(finding: Finding) -> tuple[str, str, str, tuple[str, ...]]:
    what = f"Gradients are NaN or infinite since step {finding.step}."
    named = ", ".join(finding.layers[:3]) + (f" and {len(finding.layers) - 3} more" if len(finding.layers) > 3 else "")
    evidence = f"seen in {named or 'layers that are not reported, or in the total norm alone'}"
    return what, "Where it began is not known from the gradients alone", evidence, _NONFINITE_REMEDIES
