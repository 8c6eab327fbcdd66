"""What is wrong with a network: an untreated copy is trained for a while under the eyes of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_gradwatch.core.alerts.explain import explain
from lightning_gradwatch.core.detector import Detector
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Alert, Observation
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.trials.run import TrialRun
from lightning_gradwatch.trials.runner import TrialRunner

MAX_STEPS, MIN_STEPS = 70, 20
"""The slowest rules hold the last thirty losses against the thirty before."""
SHARE_OF_TIME = 0.3
MANY_DECADES = 3.0
"""What a recurrence may lose along time without a word."""
LEARNED, BY_HEART = 0.75, 0.5
"""Shares of the loss: what falls by the first has learned; by the second any batch is soon learned by heart."""


def diagnose(runner: TrialRunner) -> Alert | str:
    """The first alert within 70 steps; without one, what was looked at, in a sentence."""
    trial_run = runner.admit((), Schedule(every_n_steps=3))
    is_late = False
    for step in range(MAX_STEPS):
        is_late = step > 0 and runner.is_time_up(SHARE_OF_TIME)
        if is_late:
            break
        trial_run.advance()
        has_learned = step >= MIN_STEPS and trial_run.fall > LEARNED
        if trial_run.has_diverged or has_learned or _loud(trial_run.seen.alerts):
            break
    trial_run.end()
    is_slow = len(trial_run.losses) == MAX_STEPS and trial_run.fall < BY_HEART
    found = _loud(trial_run.seen.alerts) or (_loud(as_if_flat(trial_run.seen.observations)) if is_slow else None)
    return found or _all_clear(trial_run, len(runner.batches), is_late)


def _all_clear(trial_run: TrialRun, num_batches: int, is_late: bool) -> str:
    """What was looked at without finding anything; no all-clear if that was not enough."""
    num_steps, lost = len(trial_run.losses), trial_run.seen.lost(through_time=True)
    where = "this batch" if num_batches == 1 else f"these {num_batches} batches"
    if is_late:
        seen = f"No alert in {num_steps} step{'s' * (num_steps > 1)} on {where}, when time was up"
        return f"{seen}: too few to tell. Give more `max_seconds`: watching takes {SHARE_OF_TIME:.0%} of them."
    clear = f"Nothing was found: no alert in {num_steps} steps on {where}."
    if not lost > MANY_DECADES:
        return clear
    length = trial_run.seen.num_time_steps
    along_time = f"Along its {length} time steps the gradient loses {lost:.1f} orders of magnitude, though"
    return f"{clear} {along_time}: what lies far back is hardly learned from."


def _loud(alerts: Sequence[Alert]) -> Alert | None:
    return next((alert for alert in alerts if alert.level == "alert"), None)


def as_if_flat(observations: Sequence[Observation]) -> list[Alert]:
    """What the detector raises if the loss of these steps is taken to have stood still.

    Over the same few batches any loss falls, which need not be progress.
    """
    detector, truth, alerts = Detector(Settings().vanishing_threshold), History(), []
    first = next((loss for observation in observations for loss in observation.losses if loss is not None), None)
    for observation in observations:
        still = replace(observation, losses=(first,) * len(observation.losses))
        findings = detector.update(still, is_scaled=False)
        truth.add(observation)  # causes are found by the loss as it was
        truth.evidence.add(observation)
        alerts += [explain(finding, truth.evidence) for finding in findings]
    return alerts
