"""Gradients that vanish through time, in recurrent layers."""

from __future__ import annotations

import math
from statistics import median

from lightning_gradwatch.core.alerts.causes import blown_up, learning_rate
from lightning_gradwatch.core.alerts.hysteresis import Hysteresis, SteadyRule
from lightning_gradwatch.core.alerts.kind import Diagnosis, Kind
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import SMALL_SHARE, Finding, Observation

DECADES = 3.0
GRAVE_DECADES = 2 * DECADES


class ThroughTimeRule(SteadyRule):
    """The same decades as for depth, along the time steps of recurrent layers.

    Losing them is no illness as such: a task may need the last few steps only. So three decades are an alert only while
    the loss is flat, a notice before that if it has not begun to fall, and otherwise nothing.

    A falling loss speaks only for layers that make it fall. One that has less than 1 % of the squared gradient and
    loses six decades, in five samples running, is an alert as soon as a loss could be called flat, whatever it does:
    so an encoder that forgets behind a decoder that learns without it.
    """

    def __init__(self) -> None:
        super().__init__(Hysteresis("vanishing_through_time", DECADES))

    def is_suspicious(self, history: History) -> bool:
        """Whether the latest sample alone would be worth a word that is not said yet."""
        if self.hysteresis.finding is not None or history.losses.concern is None:
            return False
        return history.time.is_alone(DECADES)

    def update(self, observation: Observation, history: History) -> Finding | None:
        """Judge a sample of a network with recurrent layers."""
        sample, time = history.sample, history.time
        if sample is None or not time.recent:
            return None
        level, level_regardless = history.losses.concern, history.losses.concern_regardless
        layer, decades = time.worst
        if level != "alert" and level_regardless is not None:
            hidden = time.hidden(GRAVE_DECADES, SMALL_SHARE)
            if hidden:
                layer, level, decades = hidden, level_regardless, median(time.recent[hidden])
        if self.hysteresis.finding is None and level is None:
            return None
        return self.hysteresis.judge(sample.step, decades, (layer,), level or "notice")

    def scores(self, history: History) -> dict[str, float]:
        """Decades that the worst layer loses, where there are recurrent layers."""
        return {"vanishing_through_time": max(history.time.worst[1], 0.0)} if history.time.horizons else {}


def describe(finding: Finding, evidence: Evidence) -> str:
    """What is wrong, in a sentence."""
    layer = finding.layers[0]
    horizon, length, _ = evidence.horizons.get(layer, (0, 0, 0.0))
    reach = f"only the last {horizon} of {length} time steps carry at least 1 % of the largest gradient"
    if layer in evidence.two_sided:
        reach = f"the middle of its {length} time steps gets that much less than both ends"
    when = "whatever the loss does" if _is_overlooked(finding, evidence) else "while the loss does not fall"
    lost = f"{finding.value:.1f} orders of magnitude"
    return f"Gradients vanish through time in {layer} (step {finding.step}) by {lost} {when}: {reach}."


def diagnose(finding: Finding, evidence: Evidence) -> Diagnosis:
    """Updates that have blown up the recurrent weights; otherwise the recurrence itself."""
    layer = finding.layers[0]
    is_of_updates = evidence.first_growth.get(layer, -math.inf) > -finding.threshold and blown_up(evidence, (layer,))
    by_updates = learning_rate(evidence) if is_of_updates else None
    if by_updates is not None:
        return by_updates
    length = evidence.horizons.get(layer, (0, 0, 0.0))[1]
    others = (
        f"; with {100 * evidence.shares[layer]:.1g} % of the squared gradient it is not what lowers the loss"
        if _is_overlooked(finding, evidence)
        else ""
    )
    return Diagnosis(
        "recurrence",
        f"the gradient is multiplied by the same weights {length} times on its way back through {layer}{others}",
        (
            "in place of a plain RNN an LSTM or GRU, or an orthogonal initialisation of its recurrent weights",
            f"in an LSTM or GRU a forget gate bias of about log({length}) = {math.log(max(length, 2)):.1f}",
            "attention, or shorter sequences",
        ),
    )


def _is_overlooked(finding: Finding, evidence: Evidence) -> bool:
    """Whether a layer forgets much and has so little of the gradient that a falling loss is the work of others."""
    return finding.value >= 2 * finding.threshold and evidence.shares.get(finding.layers[0], 1.0) < SMALL_SHARE


VANISHING_THROUGH_TIME = Kind(
    name="vanishing_through_time",
    title="Gradients vanish through time",
    label="Vanishing through time",
    unit="orders of magnitude",
    rule=ThroughTimeRule,
    describe=describe,
    diagnose=diagnose,
    saved_at=("TimeRule", "incident"),
)
