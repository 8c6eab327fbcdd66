"""The headroom of a model whose remedies are being tried, along its training without a remedy.

At its start alone it would mislead: momentum has not gathered yet, and a rate may spoil the weights over several steps.
"""

from __future__ import annotations

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.trials.headroom.records import Headroom
from lightning_gradwatch.trials.runner import TrialRunner

STEPS = (0, 4, 8, 12, 16)
"""After how many steps of an untreated copy it is measured."""
SHARE_OF_TIME = 0.5


def headroom_of(runner: TrialRunner) -> Headroom | None:
    """The headroom in the first steps of the untreated model, until it diverges; None where it cannot be measured."""
    multiples: list[float] = []
    rates: tuple[float, ...] = ()
    try:
        for num_steps in STEPS:
            trial_run = runner.admit(())
            rates = rates or trial_run.rates
            for _ in range(num_steps):
                trial_run.advance()
            if num_steps and (trial_run.has_diverged or runner.is_time_up(SHARE_OF_TIME)):
                break
            multiples.append(trial_run.headroom())
    except Exception as failure:  # the trials say what fails
        if is_the_users(failure):
            raise
    return Headroom(tuple(multiples), rates, over="steps") if multiples else None
