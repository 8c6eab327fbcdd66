"""Gradients that vanish with depth, at layer outputs."""

from __future__ import annotations

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
from lightning_gradwatch.core.history.depth import FULL_SCORE_DECADES
from lightning_gradwatch.core.history.evidence import Evidence, typical
from lightning_gradwatch.core.history.profile import largest_jump
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
        threshold = self._threshold * history.depth.full_score
        return self.hysteresis.finding is None and history.depth.is_alone(threshold, EXPLODING_DECADES)

    def update(self, observation: Observation, history: History) -> Finding | None:
        """Judge a sample whose profile tells something."""
        sample, latest = history.sample, history.depth.latest
        if sample is None or latest is None:
            return None
        threshold, present = self._threshold * history.depth.full_score, history.depth.decades
        if self.hysteresis.finding is None and (
            present < threshold or present < threshold * self._factor(history, latest, threshold)
        ):
            return None
        return self.hysteresis.judge(sample.step, present, history.ends, threshold=threshold)

    def _factor(self, history: History, latest: float, threshold: float) -> float:
        """Below which multiple of the threshold an alert that is not open can wait."""
        is_seam = _is_seam(history.profile.norms, latest, threshold)
        is_early = history.depth.num_samples < EARLY_SAMPLES
        return max(history.losses.patience, SEAM_FACTOR if is_seam else 1.0, EARLY_FACTOR if is_early else 1.0)

    def scores(self, history: History) -> dict[str, float]:
        """The score in [0, 1], and the decades behind it."""
        return {"vanishing": history.depth.score, "decades_lost": history.depth.decades}


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
        f"Gradients vanish with depth (step {finding.step}): between the last third of the layers (such as {late}) and "
        f"the first third (such as {early}) they shrink by {value:.1f} decades, a factor of {10**value:.0e}; the early "
        "layers starve."
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
    unit="decades",
    rule=VanishingRule,
    describe=describe,
    diagnose=diagnose,
    saved_at=("DepthRule", "incident"),
)
