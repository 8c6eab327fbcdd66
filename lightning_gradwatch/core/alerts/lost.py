"""What is lost on the gradient's way back, measured operation by operation: in words, and as a cause."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.core.alerts.kind import Diagnosis
from lightning_gradwatch.core.attribution.operations import counted
from lightning_gradwatch.core.attribution.way import Link, Share, shares
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import Finding

MOST = 0.5
"""Part of what is lost from which on one group of operations is the cause."""
WORTH_SAYING = 0.05
NUM_SAID = 3
GAINS = ("weights", "normalisation", "products")
"""Groups whose factor may well be above one."""


def way_of(finding: Finding, evidence: Evidence) -> list[Link]:
    """The measured way from the output of the last layer to that which a finding names first; empty if not known."""
    if evidence.attribution is None or not finding.layers:
        return []
    return [link for link in evidence.attribution.way(finding.layers[0]) if link.layer]


def lost_in_sigmoids(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    """Sigmoids in which most is lost."""
    first = _largest(finding, evidence)
    if first is None or first.group != "sigmoid" or first.count < 2:
        return None
    return Diagnosis(
        "saturating_activation",
        "",
        ("ReLU, GELU or SiLU with He initialisation", "normalisation layers before the sigmoids"),
    )


def lost_in_normalisation(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    """Normalisation layers in which most is lost: they stand behind the sums of skip connections."""
    first = _largest(finding, evidence)
    if first is None or first.group != "normalisation" or not evidence.architecture.skips:
        return None
    return Diagnosis(
        "normalisation_order",
        "",
        ("normalise before each block (pre-norm) instead of after it", "a warm-up", "a lower learning rate"),
    )


def _largest(finding: Finding, evidence: Evidence) -> Share | None:
    """The group in which most is lost, if that explains what was found."""
    way = way_of(finding, evidence)
    total = sum(link.lost for link in way)
    if not way or total < finding.threshold:
        return None
    first = shares(way)[0]
    return first if first.lost >= MOST * total else None


def with_measured(diagnosis: Diagnosis, finding: Finding, evidence: Evidence) -> Diagnosis:
    """The same, with what was measured on the way as its evidence, or behind it."""
    measured = in_words(way_of(finding, evidence), finding.layers[0] if finding.layers else "")
    return diagnosis._replace(evidence="; ".join(filter(None, (diagnosis.evidence, measured))))


def in_words(way: Sequence[Link], layer: str) -> str:
    """Where most of what is lost on the way to a layer is lost, the largest share first; ``""`` where nothing is."""
    total = sum(link.lost for link in way)
    said = [share for share in shares(way) if share.lost > WORTH_SAYING * total > 0][:NUM_SAID]
    if not said:
        return ""
    parts = ", ".join(f"{share.lost:.1f} in {_named(share)}" for share in said)
    return f"on its way back to {layer} the gradient loses {total:.1f} orders of magnitude, {parts}"


def _named(share: Share) -> str:
    many = counted(share.group, share.count)
    if share.group in GAINS:
        return f"{many} (a gain of {share.factor:.2g}{' each' if share.count > 1 else ''})"
    through = f"{share.factor:.0%}" if share.factor >= 0.01 else f"{share.factor:.0e}"
    return f"{many} ({'each ' if share.count > 1 else ''}lets {through} through)"
