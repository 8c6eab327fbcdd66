"""Layers whose gradient is exactly zero."""

from __future__ import annotations

import math
from statistics import median

from lightning_gradwatch.core.alerts.causes import (
    INIT_REMEDIES,
    LOWER_RATE,
    half_precision,
    input_scale,
    learning_rate,
    rails,
    weight_decay,
)
from lightning_gradwatch.core.alerts.hysteresis import Hysteresis, SteadyRule
from lightning_gradwatch.core.alerts.kind import Diagnosis, Kind, first_of, named
from lightning_gradwatch.core.alerts.lost import stopped_by_the_head
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.saved import Saved, State

SHARE = 0.5
SAMPLES = 5
MANY_SAMPLES = 10
DEAD_UNITS = 0.95
"""Share of units that are zero for every sample from which on an activation is at fault."""


class DeadRule(SteadyRule):
    """At least half of the first third of the layers with exactly zero gradient in five samples in a row.

    Where the loss is flat, zeros that come and go will do: the middle one of the last ten samples counts. Anywhere else
    a layer is dead after ten samples of zeros if one behind it has a gradient: so a branch is found whose sister
    learns. Zeros that rounding makes are another kind of alert: nothing is judged while that is open.
    """

    def __init__(self) -> None:
        super().__init__(Hysteresis("dead", SHARE, persistence=SAMPLES, release=1.0))
        self._shares: list[float] = []
        self._starved: dict[str, int] = {}

    def update(self, observation: Observation, history: History) -> Finding | None:
        """Judge a sample."""
        if history.sample is None or "underflow" in history.open:
            return None
        trained, silent = history.reach.trained, history.reach.silent
        if silent and (observation.losses[-1] == 0 or history.losses.is_done):  # nothing is left to learn
            silent = []
        first_third = trained[: math.ceil(len(trained) / 3)]
        share = len({*first_third} & {*silent}) / len(first_third) if first_third else 0.0
        self._shares = [*self._shares, share][-MANY_SAMPLES:]
        usual = median(self._shares) if len(self._shares) == MANY_SAMPLES else 0.0
        if usual >= SHARE > share and self.hysteresis.finding is None and history.losses.concern == "alert":
            share = usual
        self._starved = {name: self._starved.get(name, 0) + 1 for name in silent if name in history.starved}
        if share < SHARE and any(number > SAMPLES for number in self._starved.values()):
            share, silent = SHARE, [*self._starved]
        return self.hysteresis.judge(history.sample.step, share, tuple(silent) or tuple(first_third))

    def scores(self, history: History) -> dict[str, float]:
        """Number of dead layers; 0 while there is no alert."""
        return {"dead_layers": float(len(self.finding.layers)) if self.finding is not None else 0.0}

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {**super().state_dict(), "shares": list(self._shares), "starved": dict(self._starved)}

    def load_state_dict(self, state: Saved) -> None:
        """Go on where ``state_dict`` was taken."""
        super().load_state_dict(state)
        self._shares = state.take("shares", list[float], [], lambda shares: len(shares) <= MANY_SAMPLES)
        self._starved = state.take("starved", dict[str, int], {})


def describe(finding: Finding, _: Evidence) -> str:
    """What is wrong, in a sentence."""
    layers = finding.layers
    return f"{len(layers)} layers are dead (step {finding.step}): {named(layers)} get gradients of exactly zero."


def diagnose(finding: Finding, evidence: Evidence) -> Diagnosis:
    """Rounding or zeros from the start; then what drives units into the flat part of their activation."""
    unknown = Diagnosis(
        "unknown",
        "the measurements do not tell why",
        ("a smaller learning rate", "a look at the activations of the named layers"),
    )
    return first_of(
        half_precision(evidence),
        stopped_by_the_head(evidence),
        _zero_init(finding, evidence),
        input_scale(evidence),
        _dead_relu(evidence),
        weight_decay(evidence),
        rails(evidence),
        learning_rate(evidence),
        unknown,
    )


def _zero_init(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    zeroed = evidence.weights.zeroed
    if len(zeroed) < 2 or not {*finding.layers} & {*zeroed}:
        return None
    return Diagnosis(
        "small_init",
        f"zero initialisation on both factors of a product: the weights of {named(zeroed)} are exactly zero, "
        "and each keeps the gradient of the other at zero",
        (
            "a random initialisation of one of them (kaiming_uniform_, as for A in LoRA); the other may start at zero",
            *INIT_REMEDIES[:1],
        ),
    )


def _dead_relu(evidence: Evidence) -> Diagnosis | None:
    at_fault = [(name, i.dead_units) for name, i in evidence.inputs.items() if i.dead_units >= DEAD_UNITS]
    if not at_fault or not dict(evidence.architecture.activations).get("relu", 0):
        return None
    name, share = at_fault[0]
    return Diagnosis(
        "dead_relu",
        f"{share:.0%} of the units at the input of {name} are zero for every sample",
        (LOWER_RATE, "LeakyReLU or GELU", "normalise before that activation; check its biases"),
    )


DEAD = Kind(
    name="dead",
    title="Layers without any gradient",
    label="Dead",
    unit="share of the first third of the layers",
    rule=DeadRule,
    describe=describe,
    diagnose=diagnose,
    saved_at=("SilenceRule", "dead"),
)
