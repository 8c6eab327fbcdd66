"""Which remedy is the better one: by the loss it leaves, the gradient that arrives, and how much it changes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from lightning_gradwatch.prescription.records import Effect, Trial

CLEAR_CHANGE = 0.02
"""Share of the loss that is no accident of a short trial."""
CLEAR_DECADES, HEALTHY_DECADES = 1.0, 2.0
NEARLY_AS_GOOD = 0.4
"""Share of the gain of the best single remedy, from which on a short trial cannot tell which is better in the end."""
_LEAST_CHANGE_FIRST = (
    "lr", "clip", "adam_eps", "weight_decay", "precision", "input", "output", "init", "activation", "prenorm", "norm",
    "residual", "recurrent",
)  # fmt: skip
_EFFECTS: tuple[Effect, ...] = ("helps", "no change", "worse")


def ranked(untreated: Trial, trials: Iterable[Trial]) -> list[Trial]:
    """Trials with their effects, best first.

    A remedy helps if it leaves at least 2 % less of the loss than no remedy. It also helps if it cures the gradient,
    which then loses a decade less, and less than two in all, and the loss falls faster than without it. It makes things
    worse if it leaves 2 % more and cures nothing. After a single backward pass only the gradient tells.

    What it gains is counted from the lowest loss that any of them started with, which is about that of a network that
    has learned nothing. Those that gain nearly as much as the best single one come first: the best of each family, what
    changes least about the network before the others (settings, then weights, then layers), two together, and then the
    rest of the families. Behind them come all others by their gain.

    Args:
        untreated: The trial without a remedy.
        trials: Those with one or two, in any order.
    """
    trials = list(trials)
    start = _finite([untreated.loss_after, *(trial.loss_before for trial in (untreated, *trials))])
    judged = [replace(trial, effect=_effect(untreated, trial, start)) for trial in trials]
    by_gain = sorted(judged, key=lambda trial: (-_gain(trial, start), abs(trial.decades)))
    single = [trial for trial in by_gain if len(_families(trial)) == 1]
    enough = NEARLY_AS_GOOD * _gain(single[0], start) if single else 0.0
    best = {_families(trial)[0]: trial.key for trial in reversed(single)}

    def place(trial: Trial) -> tuple[float, ...]:
        effect = _EFFECTS.index(trial.effect)
        if not 0 < enough <= _gain(trial, start):
            return (effect, math.inf)
        is_variant = len(_families(trial)) == 1 and best[_families(trial)[0]] != trial.key
        return (effect, 2 if is_variant else len(_families(trial)) - 1, max(map(_change, _families(trial))))

    return sorted(by_gain, key=place)


def _finite(losses: Iterable[float]) -> float:
    return min((loss for loss in losses if math.isfinite(loss)), default=0.0)


def _gain(trial: Trial, start: float) -> float:
    return start - trial.loss_after if math.isfinite(trial.loss_after) else -math.inf


def _families(trial: Trial) -> list[str]:
    return [key.split(".")[0] for key in trial.key.split(" + ")]


def _change(family: str) -> int:
    return _LEAST_CHANGE_FIRST.index(family) if family in _LEAST_CHANGE_FIRST else len(_LEAST_CHANGE_FIRST)


def _effect(untreated: Trial, trial: Trial, start: float) -> Effect:
    nearer = abs(untreated.decades) - abs(trial.decades)
    if trial.loss_after == trial.loss_before and untreated.loss_after == untreated.loss_before:
        return "helps" if nearer >= CLEAR_DECADES else "worse" if nearer <= -CLEAR_DECADES else "no change"
    if not math.isfinite(trial.loss_after):
        return "worse" if math.isfinite(untreated.loss_after) else "no change"
    gained = (untreated.loss_after - trial.loss_after) / max(abs(start), 1e-30)
    is_cured = nearer >= CLEAR_DECADES and abs(trial.decades) < HEALTHY_DECADES
    if not gained <= CLEAR_CHANGE or (is_cured and _fall(trial) > _fall(untreated)):
        return "helps"
    return "worse" if gained < -CLEAR_CHANGE and not is_cured else "no change"


def _fall(trial: Trial) -> float:
    return (trial.loss_before - trial.loss_after) / max(abs(trial.loss_before), 1e-30)
