"""What was measured on this run that can tell why something is wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy
from statistics import median

from lightning_gradwatch.core.attribution.way import Attribution
from lightning_gradwatch.core.history.losses import LossHistory
from lightning_gradwatch.core.history.steps import StepFacts
from lightning_gradwatch.core.history.through_time import TimeHistory
from lightning_gradwatch.core.history.weights import WeightFacts
from lightning_gradwatch.core.records import Architecture, Observation
from lightning_gradwatch.core.samples import Inputs, Sample, ThoroughSample
from lightning_gradwatch.core.saved import Saved, State

_KEPT: dict[str, type[object]] = {
    **dict.fromkeys(("first_std", "profile", "first_growth"), dict[str, float]),
    **dict.fromkeys(("shares", "update_ratio", "signal", "below_eps"), dict[str, float]),
    "has_half_gradients": bool,
    "layers": tuple[str, ...],
    "effect": float,
    "inputs": dict[str, Inputs],
}
"""What goes into a checkpoint as it is, and of what kind; the attribution goes in part by part."""
RECENT_LOSSES = 20


class Evidence:
    """Collects the facts of a run, observation by observation; read by the diagnosis.

    Args:
        losses: What the loss has done, kept up to date by somebody else.
        time: What is lost along time, likewise.

    Attributes:
        weights: How the matrices of the layers began, and what has become of them.
        steps: Norms, learning rates and what was not finite, step by step.
        layers: Names of the layers that own or share a matrix, in the order in which they ran. Figures of parameters
            are those of layers that own one.
        inputs: What the layers' inputs look like, by layer.
        first_std: Standard deviation of these inputs when first seen, by layer.
        profile: Gradient norms at the layers' outputs in the latest sample, by layer, the input end first.
        first_growth: Decades by which the gradient grew on its way through time when first seen, by layer.
        shares: Part of the recurrent layers in the squared total norm.
        effect: The most that a step could change, relative to the loss: the largest ``|W| |g| / |loss|`` of any layer.
        update_ratio: Relative sizes of the latest update seen, by layer.
        signal: Squared first over second moment of Adam, by layer.
        below_eps: Share of elements whose root mean square gradient lies below Adam's eps, by layer.
        architecture: What the network is made of.
        dtypes: The dtypes of its parameters.
        has_half_gradients: Whether the gradients at its layers' outputs are float16, as under autocast.
        attribution: What each operation did to the gradient when causes were sought last; None if it is not known.
    """

    def __init__(self, losses: LossHistory, time: TimeHistory) -> None:
        self._losses = losses
        self._time = time
        self.weights = WeightFacts()
        self.steps = StepFacts()
        self.layers: tuple[str, ...] = ()
        self.inputs: dict[str, Inputs] = {}
        self.first_std: dict[str, float] = {}
        self.profile: dict[str, float] = {}
        self.first_growth: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.effect = math.nan
        self.update_ratio: dict[str, float] = {}
        self.signal: dict[str, float] = {}
        self.below_eps: dict[str, float] = {}
        self.architecture = Architecture((), 0, 0)
        self.dtypes: frozenset[str] = frozenset()
        self.has_half_gradients = False
        self.attribution: Attribution | None = None

    @property
    def horizons(self) -> Mapping[str, tuple[int, int, float]]:
        """Memory horizon, number of time steps and decades lost on the way through them, by layer."""
        return self._time.horizons

    @property
    def two_sided(self) -> Collection[str]:
        """Recurrent layers that lose the gradient on the way from both ends to the middle."""
        return self._time.two_sided

    @property
    def losses(self) -> list[float]:
        """The known losses of the last 20 steps."""
        return self._losses.last(RECENT_LOSSES)

    @property
    def first_loss(self) -> float:
        """The very first known loss; NaN without any."""
        return self._losses.first

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name, as far as they are known; each for the middle layer."""
        scores = {
            "update_ratio": typical(self.update_ratio),
            "weight_drift": typical(self.weights.shrinkage),
            "gradient_signal": typical(self.signal),
        }
        return {name: score for name, score in scores.items() if not math.isnan(score)}

    def add(self, observation: Observation) -> None:
        """Take in an observation, after losses and time steps have."""
        self.dtypes = observation.dtypes
        self.architecture = observation.architecture or self.architecture
        seen = {name: -decades for name, (_, _, decades) in self._time.horizons.items()}
        self.first_growth = {**seen, **self.first_growth}
        self.steps.add(observation)
        if observation.sample is not None:
            self._add_sample(observation, observation.sample)

    def _add_sample(self, observation: Observation, sample: Sample) -> None:
        named = [(i, layer.name) for i, layer in enumerate(observation.layers) if layer.has_matrix]
        owning = [(i, name) for i, name in named if observation.layers[i].owns_matrix]
        self.layers = tuple(name for _, name in named)
        weights = sample.weight_norms
        if not sample.is_skipped:
            outputs = sample.output_norms
            self.profile = {name: outputs[i] for i, name in named if outputs[i] > 0 and math.isfinite(outputs[i])}
            self._add_gradients(owning, observation, weights)
        self.weights.add(owning, weights)
        if sample.thorough is not None:
            self._add_checkup(owning, sample.thorough)
            if sample.thorough.inputs is not None:
                self._add_causes(named, sample.thorough.inputs.tolist(), sample.thorough.attribution)

    def _add_gradients(self, owning: list[tuple[int, str]], observation: Observation, weights: list[float]) -> None:
        total, gradients = observation.total_norms[-1], observation.last_norms
        if 0 < total < math.inf:
            recurrent = [(i, name) for i, name in owning if name in self._time.horizons]
            self.shares = {name: (max(gradients[i], 0.0) / total) ** 2 for i, name in recurrent}
        pushes = [weights[i] * gradients[i] for i, _ in owning if gradients[i] >= 0 and weights[i] >= 0]
        loss = self._losses.last(1)
        self.effect = max(pushes, default=math.nan) / (abs(loss[0]) if loss and loss[0] else math.nan)

    def _add_checkup(self, owning: list[tuple[int, str]], thorough: ThoroughSample) -> None:
        self.weights.add_gains(owning, thorough.gain.tolist())
        ratios = thorough.update_ratio.tolist()
        self.update_ratio = {name: ratios[i] for i, name in owning if ratios[i] >= 0 and math.isfinite(ratios[i])}
        below = thorough.below_eps.tolist()
        self.below_eps = {name: below[i] for i, name in owning if below[i] >= 0}
        signals = thorough.signal.tolist()
        self.signal = {name: signals[i] for i, name in owning if signals[i] >= 0}
        self.has_half_gradients = bool((thorough.output_zeros >= 0).any())

    def _add_causes(
        self, named: list[tuple[int, str]], inputs: list[list[float]], attribution: Attribution | None
    ) -> None:
        # at the second step of a batch nothing may have been seen: the probe was put in place for the first
        self.inputs = {name: Inputs(*inputs[i]) for i, name in named if inputs[i][2] >= 0} or self.inputs
        self.first_std = {**{name: given.std for name, given in self.inputs.items()}, **self.first_std}
        self.attribution = attribution or self.attribution

    def keep(self, layers: Collection[str]) -> None:
        """Forget every layer but these: the others are no more."""
        for part in (self, self.weights):
            for key, facts in part.__dict__.items():
                if isinstance(facts, dict):
                    part.__dict__[key] = {name: fact for name, fact in facts.items() if name in layers}

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back; what comes with every observation is left out.

        What losses and time steps have kept stands in it once more, for versions that look for it here.
        """
        facts = {name: copy(getattr(self, name)) for name in _KEPT}
        elsewhere = {"horizons": dict(self.horizons), "losses": self.losses, "first_loss": self.first_loss}
        return {
            **facts,
            **elsewhere,
            **self.weights.state_dict(),
            **self.steps.state_dict(),
            "inputs": {name: list(inputs) for name, inputs in self.inputs.items()},
            "attribution": {} if self.attribution is None else self.attribution.state_dict(),
        }

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken; each fact that was not there, or is of another kind, afresh."""
        saved = Saved.of(state)
        for name, kind in _KEPT.items():
            setattr(self, name, saved.take(name, kind, getattr(self, name)))
        self.attribution = Attribution.load(saved.part("attribution")) or self.attribution
        self.weights.load_state_dict(saved)
        self.steps.load_state_dict(saved)


def typical(values: Mapping[str, float], default: float = math.nan) -> float:
    """Median over layers; ``default`` without any."""
    return median(values.values()) if values else default
