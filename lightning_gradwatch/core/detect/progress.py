"""Training that does not move: stalled, or lost in rounding."""

from __future__ import annotations

from statistics import median

from torch import Tensor

from lightning_gradwatch.core.detect.incident import Incident
from lightning_gradwatch.core.detect.losses import LossHistory
from lightning_gradwatch.core.records import Checkup, Finding, Observation, Sample

SMALL_EFFECT = 1e-3
SMALL_UPDATE = 3e-5
ZEROS_SHARE = 0.9
UNCHANGED_SHARE = 0.8
BELOW_EPS_SHARE = 0.9


class StalledRule:
    """The loss is no better than at the start, and the gradients, or the updates, are too small to change that.

    Either the largest ``|W| |g| / |loss|`` of any layer (what a step could change at most) is at most 1e-3, or the
    largest ``|dW| / |W|`` is at most 3e-5.
    """

    def __init__(self) -> None:
        self.effect = 0.0
        self.incident = Incident("stalled", 1.0, persistence=2)

    def update(
        self, observation: Observation, sample: Sample, losses: LossHistory, update_ratio: float
    ) -> list[Finding]:
        """Take in a sample; the finding if it opened or ended just now."""
        pairs = zip(sample.weight_norms, observation.last_norms, strict=True)
        effects = [max(weight, 0.0) * max(gradient, 0.0) for weight, gradient in pairs]
        now = abs(losses.now)
        self.effect = max(effects, default=0.0) / now if now > 0 else 0.0
        is_frozen = observation.lr is not None and observation.lr == 0.0
        has_no_push = now > 0 and 0 < self.effect <= SMALL_EFFECT
        has_no_step = 0 <= update_ratio <= SMALL_UPDATE and not is_frozen
        is_stalled = (has_no_push or has_no_step) and losses.has_not_improved
        found = self.incident.judge(sample.step, float(is_stalled))
        return [] if found is None else [found]


class UnderflowRule:
    """Half-precision gradients or updates that rounding swallows, and Adam below its eps.

    Its value is the share of elements that are lost, in the median layer.
    """

    def __init__(self) -> None:
        self.incident = Incident("underflow", ZEROS_SHARE, persistence=2)
        self.shares = {"zeros": 0.0, "unchanged": 0.0, "below_eps": 0.0}

    @property
    def share(self) -> float:
        """The largest share of lost elements."""
        return max(self.shares.values())

    def update(
        self, observation: Observation, sample: Sample, checkup: Checkup, is_scaled: bool = False
    ) -> list[Finding]:
        """Take in a thorough sample; the finding if it opened or ended just now.

        Zeros count where weights are float16, or, under autocast, gradients at outputs are and nothing scales the loss.
        """
        is_autocast = not is_scaled and bool((checkup.output_zeros >= 0).any())  # known of float16 alone
        is_half = "float16" in observation.dtypes
        is_low = is_half or "bfloat16" in observation.dtypes
        is_matrix = [layer.has_matrix for layer in observation.layers]
        is_own = [layer.owns_matrix for layer in observation.layers]
        has_rate = observation.lr is None or observation.lr > 0
        self.shares = {
            "zeros": middle(checkup.output_zeros, is_matrix) if is_half or is_autocast else 0.0,
            "unchanged": middle(checkup.unchanged, is_own) if is_low and has_rate else 0.0,
            "below_eps": middle(checkup.below_eps, is_own),
        }
        thresholds = {"zeros": ZEROS_SHARE, "unchanged": UNCHANGED_SHARE, "below_eps": BELOW_EPS_SHARE}
        worst = max(self.shares, key=lambda name: self.shares[name] / thresholds[name])
        found = self.incident.judge(sample.step, self.shares[worst], threshold=thresholds[worst])
        return [] if found is None else [found]


def middle(values: Tensor, chosen: list[bool]) -> float:
    """Median of the known values of the chosen layers; 0 if none is known."""
    known = [v for v, is_chosen in zip(values.tolist(), chosen, strict=True) if is_chosen and v >= 0]
    return median(known) if known else 0.0
