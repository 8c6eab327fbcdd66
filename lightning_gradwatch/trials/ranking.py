"""Which remedy is the better one: by the loss it leaves, the gradient that arrives, and how much it changes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from lightning_gradwatch.trials.records import Effect, Trial

CLEAR_CHANGE, CLEAR_PART = 0.02, 0.1
"""Shares of the loss: what is no accident of a short trial, and what tells one remedy from another."""
CLEAR_DECADES, HEALTHY_DECADES = 1.0, 2.0
NEARLY_AS_GOOD = 0.4
"""Share of the gain of the best single remedy, from which on a short trial cannot tell which is better in the end."""
_LEAST_CHANGE_FIRST = (
    "lr", "clip", "adam_eps", "weight_decay", "precision", "input", "output", "init", "activation", "prenorm", "norm",
    "residual", "recurrent",
)  # fmt: skip
_UNDOES = {
    "weight_decay": ("weight_decay",),
    "learning_rate": ("lr", "clip"),
    "small_init": ("init",),
    "large_init": ("init",),
    "saturating_activation": ("activation",),
    "recurrence": ("recurrent",),
    "input_scale": ("input",),
    "half_precision": ("precision",),
    "adam_eps": ("adam_eps",),
    "normalisation_order": ("prenorm",),
    "no_skip_or_norm": ("residual", "norm"),
}
"""The families that take away a cause itself, where others make up for it."""
_GATED = ("recurrent.forget_bias", "recurrent.gru", "recurrent.lstm")
"""Recurrences with gates; the one that changes least first: an LSTM has more weights than a GRU and another output."""
_EFFECTS: tuple[Effect, ...] = ("helps", "no change", "worse")


def ranked(untreated: Trial, trials: Iterable[Trial], kind: str = "", cause: str = "") -> list[Trial]:
    """Trials with their effects, best first.

    A remedy helps if it leaves at least 2 % less of the loss than no remedy. It also helps if it leaves no more than
    2 % more, the gradient is cured, which then loses a decade less, and less than two in all, and the loss falls faster
    than without it. It makes things worse if it leaves 2 % more.

    What it gains is counted from the lowest loss that any of them started with, which is about that of a network that
    has learned nothing. Those that gain nearly as much as the best single one come first: what takes away the diagnosed
    cause itself before what makes up for it (two together only if that alone takes less than a tenth off the loss);
    then the best of each family, what changes least about the network before the others (settings, then weights, then
    layers); two together; and the rest of the families. Behind them come all others by their gain.

    Where the loss cannot tell, cured gradients come first. That is so if no remedy takes a tenth off it; and for what
    is lost through time, as the few sequences of a trial are soon learned by heart without any memory: there a cured
    gradient helps if the loss is not a tenth worse, and gates, which keep what they hold, come before a recurrence that
    only starts well; a higher loss is not called worse. After a single backward pass nothing but the gradient tells:
    nearest to zero first.

    Args:
        untreated: The trial without a remedy.
        trials: Those with one or two, in any order.
        kind: Kind of the alert.
        cause: Its cause.
    """
    trials = list(trials)
    start = _finite([untreated.loss_after, *(trial.loss_before for trial in (untreated, *trials))])
    through_time = kind == "vanishing_through_time"
    judged = [replace(trial, effect=_effect(untreated, trial, start, through_time)) for trial in trials]
    by_gain = sorted(judged, key=lambda trial: (-_gain(trial, start), _distance(trial)))
    if all(trial.loss_after == trial.loss_before for trial in (untreated, *trials)):
        return sorted(judged, key=lambda trial: (_EFFECTS.index(trial.effect), _distance(trial)))
    tells = not through_time and any(not _gained(untreated, trial, start) <= CLEAR_PART for trial in trials)
    single = [trial for trial in by_gain if len(_families(trial)) == 1]
    most = next((gain for gain in (_gain(trial, start) for trial in (*single[:1], *by_gain[:1])) if gain > 0), 0.0)
    best = {_families(trial): trial.key for trial in reversed(by_gain)}
    direct = set(_UNDOES.get(cause, ()))
    is_enough = any(_gain(trial, start) > CLEAR_PART * abs(start) and direct & {*_families(trial)} for trial in single)

    def place(trial: Trial) -> tuple[float, ...]:
        effect, families = _EFFECTS.index(trial.effect), _families(trial)
        is_indirect = not direct & set(families) or (len(families) > 1 and is_enough)
        is_variant = best[families] != trial.key
        if not tells and _is_cured(untreated, trial):
            return (effect, 0, is_indirect, _gate(trial))
        if not 0 < NEARLY_AS_GOOD * most <= _gain(trial, start):
            return (effect, 2)
        kin = 2 if is_variant else len(families) - 1
        return (effect, 1, is_variant or is_indirect, kin, max(map(_change, families)))

    return sorted(by_gain, key=place)


def _finite(losses: Iterable[float]) -> float:
    return min((loss for loss in losses if math.isfinite(loss)), default=0.0)


def _gain(trial: Trial, start: float) -> float:
    return start - trial.loss_after if math.isfinite(trial.loss_after) else -math.inf


def _gained(untreated: Trial, trial: Trial, start: float) -> float:
    """Share of the loss that is less than without a remedy; NaN where that diverges."""
    return (untreated.loss_after - trial.loss_after) / max(abs(start), 1e-30)


def _distance(trial: Trial) -> float:
    return math.inf if math.isnan(trial.decades) else abs(trial.decades)


def _families(trial: Trial) -> tuple[str, ...]:
    return tuple(key.split(".")[0] for key in trial.key.split(" + "))


def _change(family: str) -> int:
    return _LEAST_CHANGE_FIRST.index(family) if family in _LEAST_CHANGE_FIRST else len(_LEAST_CHANGE_FIRST)


def _gate(trial: Trial) -> int:
    """Place among the gated recurrences; the last for what is none."""
    return next((place for place, key in enumerate(_GATED) if key in trial.key.split(" + ")), len(_GATED))


def _is_cured(untreated: Trial, trial: Trial) -> bool:
    return _nearer(untreated, trial) >= CLEAR_DECADES and abs(trial.decades) < HEALTHY_DECADES


def _nearer(untreated: Trial, trial: Trial) -> float:
    return abs(untreated.decades) - abs(trial.decades)


def _effect(untreated: Trial, trial: Trial, start: float, through_time: bool) -> Effect:
    if trial.loss_after == trial.loss_before and untreated.loss_after == untreated.loss_before:
        return _effect_on_gradient(untreated, trial)
    if not math.isfinite(trial.loss_after):
        return "worse" if math.isfinite(untreated.loss_after) else "no change"
    gained = _gained(untreated, trial, start)
    if through_time and _is_cured(untreated, trial):  # a few sequences are learned by heart, without any memory
        return "no change" if gained < -CLEAR_PART else "helps"
    if not gained <= CLEAR_CHANGE:
        return "helps"
    excess = (trial.loss_after - untreated.loss_after) / max(abs(untreated.loss_after), 1e-30)
    if excess <= CLEAR_CHANGE and _is_cured(untreated, trial) and _fall(trial) > _fall(untreated):
        return "helps"
    return "worse" if gained < -CLEAR_CHANGE else "no change"


def _effect_on_gradient(untreated: Trial, trial: Trial) -> Effect:
    """What a single backward pass tells: a decade is clear, and what is still lost must be little, or half of it."""
    nearer = _nearer(untreated, trial)
    if nearer <= -CLEAR_DECADES:
        return "worse"
    is_enough = abs(trial.decades) <= max(HEALTHY_DECADES, abs(untreated.decades) / 2)
    return "helps" if nearer >= CLEAR_DECADES and is_enough else "no change"


def _fall(trial: Trial) -> float:
    return (trial.loss_before - trial.loss_after) / max(abs(trial.loss_before), 1e-30)
