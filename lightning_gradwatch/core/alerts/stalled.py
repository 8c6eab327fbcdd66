"""Training that does not move."""

from __future__ import annotations

import math

from lightning_gradwatch.core.alerts.causes import saturating, weight_decay
from lightning_gradwatch.core.alerts.hysteresis import Hysteresis, SteadyRule
from lightning_gradwatch.core.alerts.kind import Diagnosis, Kind, first_of
from lightning_gradwatch.core.alerts.lost import targets_out_of_reach
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.samples import Sample

SMALL_EFFECT = 1e-3
SMALL_UPDATE = 3e-5
SMALL_PUSH = 1e-2
"""Below this share of the loss at stake it is the gradient that is small, above it the learning rate."""
EXPLAINED_BY = ("vanishing", "vanishing_through_time", "exploding", "nonfinite", "dead", "underflow")
"""Alerts that say why nothing moves, so that this one would say it twice."""


class StalledRule(SteadyRule):
    """The loss is no better than at the start, and the gradients, or the updates, are too small to change that.

    Either the largest ``|W| |g| / |loss|`` of any layer (what a step could change at most) is at most 1e-3, or the
    largest ``|dW| / |W|`` is at most 3e-5. A loss without noise may fall at every step and get nowhere all the same:
    less than a thousandth in 200 steps, with updates as small as that, is no better. Nothing is judged while an alert
    is open that explains it, while the learning rate is being warmed up, or once next to nothing is left of the loss.
    """

    def __init__(self) -> None:
        super().__init__(Hysteresis("stalled", 1.0, persistence=2))

    def update(self, observation: Observation, history: History) -> Finding | None:
        """Judge a sample."""
        if history.sample is None:
            return None
        for kind in EXPLAINED_BY:
            if kind in history.open and history.open[kind].level == "alert":
                return None
        losses, has_no_step = history.losses, _has_no_step(observation, history)
        is_stalled = (
            (has_no_step or _has_no_push(observation, history.sample, history))
            and (losses.has_not_improved or (has_no_step and losses.is_still))
            and not losses.is_done
            and not history.evidence.steps.is_warming_up
        )
        return self.hysteresis.judge(history.sample.step, float(is_stalled))

    def scores(self, history: History) -> dict[str, float]:
        """Whether training is stalled, as 1 or 0."""
        return {"stalled": float(self.finding is not None)}


def _has_no_push(observation: Observation, sample: Sample, history: History) -> bool:
    """Whether the gradients are too small to change the loss."""
    pairs = zip(sample.weight_norms, observation.last_norms, strict=True)
    effects = [max(weight, 0.0) * max(gradient, 0.0) for weight, gradient in pairs]
    now = abs(history.losses.now)
    return now > 0 and 0 < max(effects, default=0.0) / now <= SMALL_EFFECT


def _has_no_step(observation: Observation, history: History) -> bool:
    """Whether the updates are too small, at a learning rate above zero."""
    is_frozen = observation.lr is not None and observation.lr == 0.0
    return 0 <= history.largest_update <= SMALL_UPDATE and not is_frozen


def describe(finding: Finding, _: Evidence) -> str:
    """What is wrong, in a sentence."""
    return f"Training is stalled (step {finding.step}): the loss is no lower than at the start, and nothing moves it."


def diagnose(_: Finding, evidence: Evidence) -> Diagnosis:
    """A learning rate that is too small, or a gradient that is."""
    largest = max(evidence.update_ratio.values(), default=math.nan)
    if largest <= SMALL_UPDATE and not evidence.effect <= SMALL_PUSH:
        lr = evidence.steps.lr
        rate = "" if lr is None else f" at a learning rate of {lr:.2g}"
        return Diagnosis(
            "learning_rate",
            f"the largest update of any layer is {largest:.1g} of its weights{rate}, where 1e-3 is usual",
            ("a higher learning rate", "a look at the schedule", "a float32 copy of the weights, if they are bf16"),
        )
    saturated = Diagnosis(
        "saturated_output",
        "the gradient is tiny right at the last layer already, so the output or the loss has saturated",
        ("a loss on logits (cross_entropy, binary_cross_entropy_with_logits)", "a smaller last layer at the start"),
    )
    return first_of(weight_decay(evidence), targets_out_of_reach(evidence), saturating(evidence), saturated)


STALLED = Kind(
    name="stalled",
    title="The loss does not fall",
    label="Stalled",
    unit="1 while it holds",
    rule=StalledRule,
    describe=describe,
    diagnose=diagnose,
)
