"""Half-precision gradients or updates that rounding swallows, and Adam below its eps."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from lightning_gradwatch.core.alerts.causes import FP16_REMEDIES
from lightning_gradwatch.core.alerts.hysteresis import Hysteresis, SteadyRule
from lightning_gradwatch.core.alerts.kind import Diagnosis, Kind
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence, typical
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.samples import ThoroughSample
from lightning_gradwatch.core.saved import Saved, State

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS = {"zeros": 0.9, "unchanged": 0.8, "below_eps": 0.9}
"""Shares of lost elements at which it opens, by the way in which they are lost."""


class UnderflowRule(SteadyRule):
    """Its value is the share of elements that are lost, in the median layer, in two thorough samples.

    Nothing is judged while gradients vanish with depth, which explains them.
    """

    def __init__(self) -> None:
        super().__init__(Hysteresis("underflow", THRESHOLDS["zeros"], persistence=2))
        self._shares = dict.fromkeys(THRESHOLDS, 0.0)

    def update(self, observation: Observation, history: History) -> Finding | None:
        """Judge a thorough sample."""
        sample = history.sample
        if sample is None or sample.thorough is None or "vanishing" in history.open:
            return None
        self._shares = _lost(observation, sample.thorough, history.is_scaled)
        worst = max(THRESHOLDS, key=lambda name: self._shares[name] / THRESHOLDS[name])
        return self.hysteresis.judge(sample.step, self._shares[worst], threshold=THRESHOLDS[worst])

    def scores(self, history: History) -> dict[str, float]:
        """The largest share of lost elements."""
        return {"underflow": max(self._shares.values())}

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {"underflow": self.hysteresis.state_dict(), "shares": dict(self._shares)}

    def load_state_dict(self, state: Saved) -> None:
        """Go on where ``state_dict`` was taken."""
        self.hysteresis.load_state_dict(state.part("underflow"))
        shares = state.take("shares", dict[str, float], {})
        self._shares = {name: shares.get(name, share) for name, share in self._shares.items()}


def _lost(observation: Observation, thorough: ThoroughSample, is_scaled: bool) -> dict[str, float]:
    """Share of elements that are lost in the middle layer, by the way in which they are.

    Zeros count where weights are float16, or, under autocast, gradients at outputs are and nothing scales the loss.
    """
    is_autocast = not is_scaled and bool((thorough.output_zeros >= 0).any())  # known of float16 alone
    is_half = "float16" in observation.dtypes
    is_low = is_half or "bfloat16" in observation.dtypes
    is_matrix = [layer.has_matrix for layer in observation.layers]
    is_own = [layer.owns_matrix for layer in observation.layers]
    has_rate = observation.lr is None or observation.lr > 0
    return {
        "zeros": middle(thorough.output_zeros, is_matrix) if is_half or is_autocast else 0.0,
        "unchanged": middle(thorough.unchanged, is_own) if is_low and has_rate else 0.0,
        "below_eps": middle(thorough.below_eps, is_own),
    }


def middle(values: Tensor, chosen: list[bool]) -> float:
    """Median of the known values of the chosen layers; 0 if none is known."""
    known = [v for v, is_chosen in zip(values.tolist(), chosen, strict=True) if is_chosen and v >= 0]
    return median(known) if known else 0.0


def describe(finding: Finding, _: Evidence) -> str:
    """What is wrong, in a sentence."""
    share = min(finding.value, 1)
    return f"Values are lost in rounding (step {finding.step}): {share:.0%} of the elements in the middle layer."


def diagnose(finding: Finding, evidence: Evidence) -> Diagnosis:
    """Which number format, or Adam's eps."""
    is_eps = typical(evidence.below_eps, 0.0) >= finding.value
    if ("float16" in evidence.dtypes or evidence.has_half_gradients) and not is_eps:
        return Diagnosis(
            "half_precision", f"{min(finding.value, 1):.0%} of the float16 gradients are exactly zero", FP16_REMEDIES
        )
    if "bfloat16" in evidence.dtypes and not is_eps:
        return Diagnosis(
            "half_precision",
            f"{min(finding.value, 1):.0%} of the bfloat16 weights did not change in a step that pushed them",
            ("precision='bf16-mixed', which keeps float32 weights", "a higher learning rate"),
        )
    return Diagnosis(
        "adam_eps",
        f"the root mean square gradient of {min(finding.value, 1):.0%} of the elements lies below Adam's eps",
        ("a smaller eps", "a larger loss: multiply it by a constant"),
    )


UNDERFLOW = Kind(
    name="underflow",
    title="Gradients or updates are rounded away",
    label="Underflow",
    unit="share of the elements",
    rule=UnderflowRule,
    describe=describe,
    diagnose=diagnose,
    saved_at=(),
)
