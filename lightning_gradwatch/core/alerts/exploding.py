"""Gradients that explode: with depth, with time, from step to step, or with the loss."""

from __future__ import annotations

import math
from statistics import median

from lightning_gradwatch.core.alerts.causes import divergence
from lightning_gradwatch.core.alerts.hysteresis import Hysteresis
from lightning_gradwatch.core.alerts.kind import Diagnosis, Kind
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.history.losses import LossHistory
from lightning_gradwatch.core.history.profile import outer_ends
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.saved import Saved, State, count

DECADES = 3.0
SPIKE_FACTOR = 100.0
SPIKE_STEPS = 3
CALM_STEPS = 20
DIVERGED_FACTOR = 10.0
LARGE_UPDATE = 0.01
RISE = 1.2


class ExplodingRule:
    """Any of: three decades of growth with depth or time; a norm 100 times its median; a diverging loss.

    The value is in decades throughout. All but the growth must be seen in two observations running. A gradient that is
    not finite is another kind of alert, and nothing is judged while that is open.
    """

    def __init__(self) -> None:
        self._calm: list[float] = []
        self._early: list[float] = []
        self._spikes = 0
        self._peak = 0.0
        self._profile = Hysteresis("exploding", DECADES)
        self._jump = Hysteresis("exploding", math.log10(DIVERGED_FACTOR), persistence=2)

    @property
    def finding(self) -> Finding | None:
        """The open finding, if there is one."""
        return self._profile.finding or self._jump.finding

    def update(self, observation: Observation, history: History) -> list[Finding]:
        """Take in an observation; the findings that opened or ended."""
        if "nonfinite" in history.open:
            return []
        losses = history.losses
        jump = max(self._spike(observation), self._divergence(losses), _overshoot(losses, history.usual_update))
        changes = []
        if self._profile.finding is None:
            changes.append(self._jump.judge(observation.step, jump))
        if observation.sample is not None and self._jump.finding is None:
            (depth, profile), (layer, through_time) = history.growing, history.time.growth
            layers = (layer,) if through_time > depth.growth else outer_ends(profile)
            changes.append(self._profile.judge(observation.step, max(depth.growth, through_time), layers))
        return [change for change in changes if change is not None]

    def _spike(self, observation: Observation) -> float:
        """Decades by which the norm is above its usual size if it has been so in the last three steps; otherwise 0."""
        for norm in observation.total_norms:
            if not math.isfinite(norm) or norm <= 0:
                continue
            if len(self._early) < CALM_STEPS:
                self._early.append(norm)
            if len(self._calm) == CALM_STEPS and norm >= SPIKE_FACTOR * min(self._calm):
                usual = median(self._calm)
                if norm >= SPIKE_FACTOR * usual:
                    self._spikes += 1
                    self._peak = math.log10(norm / usual)
                    continue
            self._spikes = 0
            self._calm = [*self._calm, norm][-CALM_STEPS:]
        return self._peak if self._spikes >= SPIKE_STEPS else 0.0

    def _divergence(self, losses: LossHistory) -> float:
        """Decades by which the loss has left its start, at most one more than the norm has; 0 if it has not.

        So a loss of ten times its start reaches the threshold if the norm is no smaller than at the start.
        """
        start, now = losses.start, losses.now
        if losses.num_steps < CALM_STEPS or not self._calm or not now > start > 0:
            return 0.0
        rise = min(math.log10(now / start), math.log10(max(self._calm[-1] / median(self._early), 1e-9)) + 1)
        return max(rise, 0.0)

    def scores(self, history: History) -> dict[str, float]:
        """Decades that the gradient grows, with depth or with time."""
        return {"exploding": max(history.growing[0].growth, history.time.growth[1])}

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {
            "calm": list(self._calm),
            "early": list(self._early),
            "spikes": self._spikes,
            "peak": self._peak,
            "profile": self._profile.state_dict(),
            "jump": self._jump.state_dict(),
        }

    def load_state_dict(self, state: Saved) -> None:
        """Go on where ``state_dict`` was taken."""
        calm, early = (state.take(name, list[float], [], _are_norms) for name in ("calm", "early"))
        if early or not calm:  # how far a loss has gone is told by both
            self._calm, self._early = calm, early
        self._spikes = state.take("spikes", int, self._spikes, count)
        self._peak = state.take("peak", float, self._peak)
        self._profile.load_state_dict(state.part("profile"))
        self._jump.load_state_dict(state.part("jump"))


def _are_norms(norms: list[float]) -> bool:
    return len(norms) <= CALM_STEPS and all(0 < norm < math.inf for norm in norms)


def _overshoot(losses: LossHistory, usual_update: float) -> float:
    """Decades by which updates exceed 1 % of the weights while the loss is higher than at the very start."""
    has_risen = losses.num_steps >= CALM_STEPS // 2 and losses.now > RISE * losses.first > 0
    return max(math.log10(usual_update / LARGE_UPDATE), 0.0) if has_risen and usual_update > 0 else 0.0


def describe(finding: Finding, _: Evidence) -> str:
    """What is wrong, in a sentence."""
    grown = f"{finding.value:.1f} orders of magnitude, a factor of {10 ** min(finding.value, 300):.2g}"
    return f"Gradients explode (step {finding.step}): the gradient norm or the loss has grown by {grown}."


def diagnose(_: Finding, evidence: Evidence) -> Diagnosis:
    """What multiplies the gradient, or drives the weights away."""
    return divergence(evidence)


EXPLODING = Kind(
    name="exploding",
    title="Gradients explode",
    label="Exploding",
    unit="orders of magnitude",
    rule=ExplodingRule,
    describe=describe,
    diagnose=diagnose,
    saved_at=("ExplodingRule",),
)
