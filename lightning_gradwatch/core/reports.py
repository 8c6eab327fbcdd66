"""What a watcher has to say after a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lightning_gradwatch.core.records import Alert, Observation, Publication
from lightning_gradwatch.core.snapshot import Snapshot


class Change(NamedTuple):
    """A gradient that somebody has changed between the backward pass and the step: its total norm on either side."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class Report:
    """What a watcher has to say after a step: mostly nothing.

    Attributes:
        alerts: Alerts that opened or ended.
        publications: What is to be written to the loggers.
        has_news: Whether anything has arrived from the device, so that scores may have changed.
        observations: What has arrived.
        change: How somebody has changed a gradient before it was observed; None where nobody did, as far as is known.
        snapshots: What samples measured, for the record of the run.
    """

    alerts: tuple[Alert, ...] = ()
    publications: tuple[Publication, ...] = ()
    has_news: bool = False
    observations: tuple[Observation, ...] = ()
    change: Change | None = None
    snapshots: tuple[Snapshot, ...] = ()


NOTHING = Report()


def join(first: Report, second: Report) -> Report:
    """Two reports as one, the older one first."""
    return Report(
        first.alerts + second.alerts,
        first.publications + second.publications,
        first.has_news or second.has_news,
        first.observations + second.observations,
        first.change or second.change,
        first.snapshots + second.snapshots,
    )
