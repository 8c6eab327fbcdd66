"""What was measured on this run that can tell why something is wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy
from statistics import median
from typing import Any

from torch import distributed as dist

from lightning_gradwatch.core.records import Anatomy, Checkup, Inputs, Observation, Sample
from lightning_gradwatch.core.saved import Saved

_KEPT: dict[str, Any] = {
    **dict.fromkeys(("first_gain", "gain", "shrinkage", "first_std", "profile", "first_growth"), dict[str, float]),
    **dict.fromkeys(("shares", "update_ratio", "signal", "below_eps", "_first_weight"), dict[str, float]),
    **dict.fromkeys(("rates", "losses", "early_norms", "norms"), list[float]),
    **dict.fromkeys(("bad_inputs", "sound_inputs", "bad_losses", "sound_losses"), list[int]),
    **dict.fromkeys(("has_half_gradients", "takes_bad_inputs"), bool),
    **dict.fromkeys(("layers", "zeroed"), tuple[str, ...]),
    "horizons": dict[str, tuple[int, int, float]],
    "effect": float,
    "first_loss": float,
    "inputs": dict[str, Inputs],
}
"""What goes into a checkpoint, and of what kind it is; the rest comes with every observation."""
EARLY_STEPS = 20
RECENT_STEPS = 20
RECENT_RATES = 10


class Evidence:
    """Collects the facts of a run, observation by observation; read by the diagnosis.

    Attributes:
        layers: Names of the layers that own or share a matrix, in the order in which they ran. Figures of parameters
            are those of layers that own one.
        first_gain: Gain of their matrices when first seen, by layer.
        gain: The same at the latest checkup.
        shrinkage: Weight norms now relative to when they were first seen, by layer.
        zeroed: Layers whose first matrix is exactly zero.
        inputs: What the layers' inputs look like, by layer.
        first_std: Standard deviation of these inputs when first seen, by layer.
        profile: Gradient norms at the layers' outputs in the latest sample, by layer, the input end first.
        horizons: Memory horizon, number of time steps and decades lost on the way through them, by layer.
        first_growth: Decades by which the gradient grew on that way when first seen, by layer.
        shares: Part of these layers in the squared total norm.
        effect: The most that a step could change, relative to the loss: the largest ``|W| |g| / |loss|`` of any layer.
        update_ratio: Relative sizes of the latest update seen, by layer.
        signal: Squared first over second moment of Adam, by layer.
        anatomy: What the network is made of.
        dtypes: The dtypes of its parameters.
        has_half_gradients: Whether the gradients at its layers' outputs are float16, as under autocast.
        lr: The learning rate, None if it is not known.
        rates: Those of the last 10 observations, where they are known.
        losses: The known losses of the last 20 steps and of the first.
        norms: Total norms of the last 20 steps; those of the first 20 in ``early_norms``.
        bad_inputs: Of the steps whose loss or gradient was NaN or inf those whose batch held NaN or inf, too, the last
            20 of them.
        sound_inputs: Likewise those whose batch was wholly looked at and held none.
        bad_losses: Likewise those whose loss was NaN or inf.
        sound_losses: Likewise those whose loss was not.
        takes_bad_inputs: Whether a batch with NaN or inf has done no harm: then they may be there on purpose.
        num_ranks: Processes that share the gradients; losses and batches are those of this one alone.
    """

    def __init__(self) -> None:
        self.layers: tuple[str, ...] = ()
        self.first_gain: dict[str, float] = {}
        self.gain: dict[str, float] = {}
        self.shrinkage: dict[str, float] = {}
        self.zeroed: tuple[str, ...] = ()
        self.inputs: dict[str, Inputs] = {}
        self.first_std: dict[str, float] = {}
        self.profile: dict[str, float] = {}
        self.horizons: dict[str, tuple[int, int, float]] = {}
        self.first_growth: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.effect = math.nan
        self.update_ratio: dict[str, float] = {}
        self.signal: dict[str, float] = {}
        self.below_eps: dict[str, float] = {}
        self.anatomy = Anatomy((), 0, 0)
        self.dtypes: frozenset[str] = frozenset()
        self.has_half_gradients = False
        self.lr: float | None = None
        self.rates: list[float] = []
        self.first_loss = math.nan
        self.losses: list[float] = []
        self.early_norms: list[float] = []
        self.norms: list[float] = []
        self.bad_inputs: list[int] = []
        self.sound_inputs: list[int] = []
        self.takes_bad_inputs = False
        self.bad_losses: list[int] = []
        self.sound_losses: list[int] = []
        self.num_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self._first_weight: dict[str, float] = {}

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name, as far as they are known; each for the middle layer."""
        scores = {
            "update_ratio": typical(self.update_ratio),
            "weight_drift": typical(self.shrinkage),
            "gradient_signal": typical(self.signal),
        }
        return {name: score for name, score in scores.items() if not math.isnan(score)}

    def add(self, observation: Observation, horizons: Mapping[str, tuple[int, int, float]]) -> None:
        """Take in an observation."""
        self.lr, self.dtypes = observation.lr, observation.dtypes
        self.rates = [*self.rates, *([] if self.lr is None else [self.lr])][-RECENT_RATES:]
        self.anatomy = observation.anatomy or self.anatomy
        self.horizons = dict(horizons)
        self.first_growth = {**{name: -decades for name, (_, _, decades) in horizons.items()}, **self.first_growth}
        self._add_steps(observation)
        if observation.sample is not None:
            self._add_sample(observation, observation.sample)

    def _add_steps(self, observation: Observation) -> None:
        finite = [n for n in observation.total_norms if math.isfinite(n)]
        self.early_norms += finite[: EARLY_STEPS - len(self.early_norms)]
        self.norms = [*self.norms, *finite][-RECENT_STEPS:]
        rows = zip(observation.steps, observation.losses, observation.bad_inputs, observation.total_norms, strict=True)
        for step, loss, is_batch_bad, norm in rows:
            is_loss_bad = None if loss is None else not math.isfinite(loss)
            if not is_loss_bad and math.isfinite(norm):
                self.takes_bad_inputs |= bool(is_batch_bad)
                continue
            if is_batch_bad is not None:
                (self.bad_inputs if is_batch_bad else self.sound_inputs).append(step)
            if is_loss_bad is not None:
                (self.bad_losses if is_loss_bad else self.sound_losses).append(step)
        for steps in (self.bad_inputs, self.sound_inputs, self.bad_losses, self.sound_losses):
            del steps[:-RECENT_STEPS]
        losses = [loss for loss in observation.losses if loss is not None and math.isfinite(loss)]
        if losses:
            self.first_loss = losses[0] if math.isnan(self.first_loss) else self.first_loss
            self.losses = [*self.losses, *losses][-RECENT_STEPS:]

    def _add_sample(self, observation: Observation, sample: Sample) -> None:
        named = [(i, layer.name) for i, layer in enumerate(observation.layers) if layer.has_matrix]
        owning = [(i, name) for i, name in named if observation.layers[i].owns_matrix]
        self.layers = tuple(name for _, name in named)
        weights = sample.weight_norms
        if not sample.is_skipped:
            outputs = sample.output_norms
            self.profile = {name: outputs[i] for i, name in named if outputs[i] > 0 and math.isfinite(outputs[i])}
            self._add_gradients(owning, observation, weights)
        for i, name in owning:
            first = self._first_weight.setdefault(name, weights[i]) if weights[i] >= 0 else 0.0
            if first > 0 and math.isfinite(weights[i]):
                self.shrinkage[name] = weights[i] / first
        if sample.checkup is not None:
            self._add_checkup(owning, sample.checkup)
            inputs = sample.checkup.inputs.tolist()
            self.inputs = {name: Inputs(*inputs[i]) for i, name in named if inputs[i][2] >= 0}
            self.first_std = {**{name: given.std for name, given in self.inputs.items()}, **self.first_std}

    def _add_gradients(self, named: list[tuple[int, str]], observation: Observation, weights: list[float]) -> None:
        total, gradients = observation.total_norms[-1], observation.last_norms
        if 0 < total < math.inf:
            recurrent = [(i, name) for i, name in named if name in self.horizons]
            self.shares = {name: (max(gradients[i], 0.0) / total) ** 2 for i, name in recurrent}
        pushes = [weights[i] * gradients[i] for i, _ in named if gradients[i] >= 0 and weights[i] >= 0]
        self.effect = max(pushes, default=math.nan) / (
            abs(self.losses[-1]) if self.losses and self.losses[-1] else math.nan
        )

    def _add_checkup(self, named: list[tuple[int, str]], checkup: Checkup) -> None:
        gains, ratios = checkup.gain.tolist(), checkup.update_ratio.tolist()
        self.gain = {name: gains[i] for i, name in named if gains[i] > 0 and math.isfinite(gains[i])}
        self.first_gain = {**self.gain, **self.first_gain}
        self.zeroed = tuple(name for i, name in named if gains[i] == 0)
        self.update_ratio = {name: ratios[i] for i, name in named if ratios[i] >= 0 and math.isfinite(ratios[i])}
        below = checkup.below_eps.tolist()
        self.below_eps = {name: below[i] for i, name in named if below[i] >= 0}
        signals = checkup.signal.tolist()
        self.signal = {name: signals[i] for i, name in named if signals[i] >= 0}
        self.has_half_gradients = bool((checkup.output_zeros >= 0).any())

    def keep(self, layers: Collection[str]) -> None:
        """Forget every layer but these: the others are no more."""
        for key, facts in self.__dict__.items():
            if isinstance(facts, dict):
                self.__dict__[key] = {name: fact for name, fact in facts.items() if name in layers}

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back; what comes with every observation is left out."""
        facts = {name: copy(getattr(self, name)) for name in _KEPT}
        return {**facts, "inputs": {name: list(inputs) for name, inputs in self.inputs.items()}}

    def load_state_dict(self, state: Saved | Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; each fact that was not there, or is of another kind, afresh."""
        saved = Saved.of(state)
        for name, kind in _KEPT.items():
            setattr(self, name, saved.take(name, kind, getattr(self, name)))


def typical(values: Mapping[str, float], default: float = math.nan) -> float:
    """Median over layers; ``default`` without any."""
    return median(values.values()) if values else default
