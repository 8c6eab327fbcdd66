"""What is lost on the gradient's way back, measured operation by operation: in words, and as a cause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from lightning_gradwatch.core.alerts.causes import ORDER_REMEDIES, SIGMOID_REMEDIES
from lightning_gradwatch.core.alerts.kind import Diagnosis
from lightning_gradwatch.core.attribution.operations import Group, counted
from lightning_gradwatch.core.attribution.way import Link, Share, shares
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import Finding

MOST = 0.5
"""Part of what is lost from which on one group of operations is the cause."""
WORTH_SAYING = 0.05
NUM_SAID = 3
MAX_STAGES = 40
LARGE_LOG = 1.0
"""log10 of a gradient norm at the output from which on a loss of classes, or one that has saturated, is ruled out."""
LINEAR: frozenset[Group] = frozenset(("loss", "pooling", "products", "other", "joins"))
"""Groups behind the last layer that have no flat parts."""
GAINS = ("weights", "normalisation", "products")
"""Groups whose factor may well be above one."""

Stage: TypeAlias = tuple[str, dict[Group, float]]
"""The layer from whose output a stretch of the way leads back, and what is lost there by group."""


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
    return Diagnosis("saturating_activation", "", SIGMOID_REMEDIES)


def lost_in_normalisation(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    """Normalisation layers in which most is lost: they stand behind the sums of skip connections."""
    first = _largest(finding, evidence)
    if first is None or first.group != "normalisation" or not evidence.architecture.skips:
        return None
    return Diagnosis("normalisation_order", "", ORDER_REMEDIES)


def stopped_by_the_head(evidence: Evidence) -> Diagnosis | None:
    """An operation behind the last layer that passes no gradient on, whatever the layers do."""
    found = None if evidence.attribution is None else evidence.attribution.stopped()
    if found is None:
        return None
    layer, group = found
    return Diagnosis(
        "saturated_output",
        f"the gradient is exactly zero before it reaches {layer}: {counted(group, 1)} between it and the loss passes "
        "nothing on",
        (
            "a loss on logits (CrossEntropyLoss, BCEWithLogitsLoss) without that operation",
            "a sigmoid for a single output unit: a softmax over one is always 1",
            "no clamp, and no rounding, of what the loss is computed from",
        ),
    )


def targets_out_of_reach(evidence: Evidence) -> Diagnosis | None:
    """A linear output whose gradient is anything but small: what a step changes is small beside the loss alone."""
    found = None if evidence.attribution is None else evidence.attribution.head()
    if found is None or not evidence.losses:
        return None
    layer, groups, log = found
    if log < LARGE_LOG or not groups <= LINEAR:
        return None
    return Diagnosis(
        "target_scale",
        f"the gradient at the output of {layer} has a norm of {10**log:.2g}, so nothing has saturated, but the output "
        f"can hardly move beside a loss of {evidence.losses[-1]:.2g}: the targets are far larger than the outputs",
        ("targets scaled to mean 0 and standard deviation 1", "a higher learning rate", "the logarithm of the targets"),
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
    way = way_of(finding, evidence)
    if not way:
        return diagnosis
    said = "; ".join(filter(None, (diagnosis.evidence, in_words(way, finding.layers[0]))))
    return diagnosis._replace(evidence=said, attribution=measured(way, finding.layers[0]))


def measured(way: Sequence[Link], layer: str) -> dict[str, Any]:
    """Where on its way back to a layer the gradient is lost, as primitives.

    Args:
        way: The operations on it, the loss end first.
        layer: The layer at its end.

    Returns:
        ``layer``; ``lost``, in decades; ``shares``, each with ``group``, ``label`` (how many of what), ``count`` and
        ``lost``, those that lose most first; ``stages``, the loss end first, each with the ``layer`` from whose output
        it leads back, and what is ``lost`` there by group. Neighbouring stages are put together where there are many.
    """
    stages: dict[str, dict[Group, float]] = {}
    for link in way:
        lost = stages.setdefault(link.layer, {})
        lost[link.group] = lost.get(link.group, 0.0) + link.lost
    return {
        "layer": layer,
        "lost": round(sum(link.lost for link in way), 3),
        "shares": [
            {"group": s.group, "label": counted(s.group, s.count), "count": s.count, "lost": round(s.lost, 3)}
            for s in shares(way)
        ],
        "stages": [
            {"layer": name, "lost": {group: round(decades, 3) for group, decades in lost.items()}}
            for name, lost in _few(list(stages.items()))
        ],
    }


def _few(stages: list[Stage]) -> list[Stage]:
    """At most 40 stages, of neighbours put together; each has the name of the first."""
    size = math.ceil(len(stages) / MAX_STAGES)
    few = []
    for start in range(0, len(stages), size or 1):
        together: dict[Group, float] = {}
        for _, lost in stages[start : start + size]:
            for group, decades in lost.items():
                together[group] = together.get(group, 0.0) + decades
        few.append((stages[start][0], together))
    return few


def in_words(way: Sequence[Link], layer: str) -> str:
    """Where most of what is lost on the way to a layer is lost, the largest share first; ``""`` where nothing is."""
    total = sum(link.lost for link in way)
    said = [share for share in shares(way) if share.lost > WORTH_SAYING * total > 0][:NUM_SAID]
    if not said:
        return ""
    parts = ", ".join(f"{share.lost:.1f} in {_named(share)}" for share in said)
    return f"between the loss and {layer} the gradient loses {total:.1f} orders of magnitude: {parts}"


def _named(share: Share) -> str:
    many = counted(share.group, share.count)
    if share.group in GAINS:
        return f"{many} (a gain of {share.factor:.2g}{' each' if share.count > 1 else ''})"
    through = f"{share.factor:.0%}" if share.factor >= 0.01 else f"{share.factor:.0e}"
    return f"{many} ({'each ' if share.count > 1 else ''}lets {through} through)"
