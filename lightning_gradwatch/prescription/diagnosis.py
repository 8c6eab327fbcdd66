"""What is wrong with a network: an untreated copy is trained for a while under the eyes of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_gradwatch.core.detect import Detector
from lightning_gradwatch.core.diagnose import explain
from lightning_gradwatch.core.evidence import Evidence
from lightning_gradwatch.core.records import Alert, Observation
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.watcher import Settings
from lightning_gradwatch.prescription.ward import Ward

MAX_STEPS, MIN_STEPS = 70, 20
"""The slowest rules hold the last thirty losses against the thirty before."""
SHARE_OF_TIME = 0.3
LEARNED, BY_HEART = 0.75, 0.5
"""Shares of the loss: what falls by the first has learned; by the second any batch is soon learned by heart."""


def diagnose(ward: Ward) -> Alert | None:
    """The first alert within 70 steps; None for a network that is well."""
    course = ward.admit((), Schedule(every_n_steps=3))
    for step in range(MAX_STEPS):
        if step and ward.is_time_up(SHARE_OF_TIME):
            break
        course.advance()
        has_learned = step >= MIN_STEPS and course.fall > LEARNED
        if course.has_diverged or has_learned or _loud(course.alerts):
            break
    course.end()
    is_slow = len(course.losses) == MAX_STEPS and course.fall < BY_HEART
    return _loud(course.alerts) or (_loud(as_if_flat(course.observations)) if is_slow else None)


def _loud(alerts: Sequence[Alert]) -> Alert | None:
    return next((alert for alert in alerts if alert.level == "alert"), None)


def as_if_flat(observations: Sequence[Observation]) -> list[Alert]:
    """What the detector raises if the loss of these steps is taken to have stood still.

    Over the same few batches any loss falls, which need not be progress.
    """
    detector, evidence, alerts = Detector(Settings().vanishing_threshold), Evidence(), []
    first = next((loss for observation in observations for loss in observation.losses if loss is not None), None)
    for observation in observations:
        still = replace(observation, losses=(first,) * len(observation.losses))
        findings = detector.update(still, is_scaled=False)
        evidence.add(observation, detector.time.horizons)
        alerts += [explain(finding, evidence) for finding in findings]
    return alerts
