"""The headroom of a model whose remedies are being tried, and what it makes of the advice to lower the rate."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.alerts.causes import LOWER_RATE
from lightning_gradwatch.trials.headroom.measure import NUM_BATCHES
from lightning_gradwatch.trials.headroom.records import Headroom
from lightning_gradwatch.trials.runner import TrialRunner

SHARE_OF_TIME = 0.5


def headroom_of(runner: TrialRunner) -> Headroom | None:
    """The headroom of the untreated model on its first batches; None where it cannot be measured."""
    multiples: list[float] = []
    rates: tuple[float, ...] = ()
    try:
        for place in range(min(NUM_BATCHES, len(runner.batches))):
            if place and runner.is_time_up(SHARE_OF_TIME):
                break
            trial_run = runner.admit(())
            rates = trial_run.rates
            multiples.append(trial_run.headroom(place))
    except Exception as failure:  # the trials say what fails
        if is_the_users(failure):
            raise
    return Headroom(tuple(multiples), rates) if multiples else None


def advice(remedies: Sequence[str], headroom: Headroom) -> tuple[str, ...]:
    """Remedies whose guess at a lower rate gives way to what was measured, where that is surely past the edge.

    Room for the next step is no reason to drop the guess: a rate may spoil the weights over several steps.
    """
    others = [remedy for remedy in remedies if remedy != LOWER_RATE]
    if len(others) == len(remedies) or not headroom.is_sure or not 0 < headroom.median < 1:
        return tuple(remedies)
    factor = f"{headroom.median:.2g} times the present one"
    rate = f"{headroom.rates[0] * headroom.median:.2g}" if len(set(headroom.rates)) == 1 else factor
    return f"a learning rate below {rate}, as measured", *others
