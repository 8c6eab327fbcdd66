"""The headroom of a model whose remedies are being tried."""

from __future__ import annotations

from lightning_gradwatch.core._guard import is_the_users
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
