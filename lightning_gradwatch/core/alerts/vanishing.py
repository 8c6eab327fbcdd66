"""Gradients that vanish with depth, at layer outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradwatch.core.alerts.causes import (
    BLOWN_UP,
    cliff,
    input_scale,
    learning_rate,
    rails,
    saturating,
    small_init,
    structure,
    weight_decay,
)
from lightning_gradwatch.core.alerts.exploding import DECADES as EXPLODING_DECADES
from lightning_gradwatch.core.alerts.hysteresis import Hysteresis, SteadyRule
from lightning_gradwatch.core.alerts.kind import Diagnosis, Kind, first_of
from lightning_gradwatch.core.alerts.lost import lost_in_normalisation, lost_in_sigmoids, with_measured
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.depth import FULL_SCORE_DECADES, DepthHistory
from lightning_gradwatch.core.history.evidence import Evidence, typical
from lightning_gradwatch.core.history.profile import Profile, largest_jump, outer_ends
from lightning_gradwatch.core.records import Finding, Observation

EARLY_FACTOR = 1.25
EARLY_SAMPLES = 20
"""Until then a borderline loss waits: many a network starts with one and sheds it in its first steps."""
SEAM_FACTOR = 1.5
SEAM_LAYERS = 20
"""Two towers may meet at a jump, such as an encoder that is reached through attention: nothing is lost with depth."""


class VanishingRule(SteadyRule):
    """Opens at the threshold on the score ``decades / 4``, and ends below three quarters of it.

    In the first twenty samples it takes five quarters of the threshold; it also waits while the loss is falling.

    Args:
        threshold: Score in (0, 1] at which the alert opens; 0.5 is a loss of two decades.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__(Hysteresis("vanishing", threshold * FULL_SCORE_DECADES))
        self._threshold = threshold

    def is_suspicious(self, history: History) -> bool:
        """Whether the latest sample alone would open an alert, of vanishing or exploding, that is not open."""
        if self.hysteresis.finding is None:
            for depth, _ in history.parts:
                if depth.is_alone(self._threshold * depth.full_score, EXPLODING_DECADES):
                    return True
        return False

    def update(self, observation: Observation, history: History) -> Finding | None:
        """Judge a sample whose profile, or that of a branch, tells something."""
        if history.sample is None or history.depth.latest is None:
            return None
        is_open = self.hysteresis.finding is not None
        worst, most, ends = history.depth, -math.inf, tuple[str, ...]()
        for depth, profile in history.parts:
            decades = depth.decades
            # an alert that is open ends when none of them loses much; else those count that lose enough to open it
            if decades > most and (is_open or self._is_enough(depth, decades, profile, history)):
                worst, most, ends = depth, decades, outer_ends(profile)
        if most == -math.inf:
            return None
        threshold = self._threshold * worst.full_score
        return self.hysteresis.judge(history.sample.step, most, ends, threshold=threshold)

    def _is_enough(self, depth: DepthHistory, decades: float, profile: Profile, history: History) -> bool:
        """Whether what is lost is above the threshold, and by so much that an alert need not wait."""
        threshold = self._threshold * depth.full_score
        if decades < threshold or depth.latest is None:
            return False
        seam = SEAM_FACTOR if _is_seam(profile.norms, depth.latest, threshold) else 1.0
        early = EARLY_FACTOR if depth.num_samples < EARLY_SAMPLES else 1.0
        return decades >= threshold * max(history.losses.patience, seam, early)

    def scores(self, history: History) -> dict[str, float]:
        """The score in [0, 1], and the decades behind it: of the whole network, or of the branch that loses most."""
        starving = history.starving
        return {"vanishing": starving.score, "decades_lost": starving.decades}


def _is_seam(norms: Sequence[float], decades: float, threshold: float) -> bool:
    """Whether a deep profile is level but for one jump that makes up most of what is lost."""
    if len(norms) < SEAM_LAYERS:
        return False
    jump = largest_jump(norms)
    return jump >= decades / 2 and decades - jump < threshold


def describe(finding: Finding, _: Evidence) -> str:
    """What is wrong, in a sentence."""
    (early, late), value = finding.layers, finding.value
    return (
        f"Gradients vanish with depth (step {finding.step}): on the way back from layers such as {late} to layers such "
        f"as {early} they shrink by {value:.1f} orders of magnitude, a factor of {10**value:.0e}; the early layers "
        "starve."
    )


def diagnose(finding: Finding, evidence: Evidence) -> Diagnosis:
    """What has shrunk the weights since the start, then where it is lost, then what the network is made of."""
    found = first_of(
        weight_decay(evidence),
        cliff(evidence),
        input_scale(evidence),
        lost_in_sigmoids(finding, evidence) or saturating(evidence),
        small_init(finding, evidence),
        rails(evidence),
        learning_rate(evidence) if typical(evidence.weights.shrinkage, 1.0) >= BLOWN_UP else None,
        lost_in_normalisation(finding, evidence) or structure(evidence),
    )
    return with_measured(found, finding, evidence)


VANISHING = Kind(
    name="vanishing",
    title="Gradients vanish with depth",
    label="Vanishing",
    unit="orders of magnitude",
    rule=VanishingRule,
    describe=describe,
    diagnose=diagnose,
    saved_at=("DepthRule", "incident"),
)
