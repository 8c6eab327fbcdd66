"""The record of a run in memory, beside its files or in place of them: the same events, within a few megabytes.

When it is full it is thinned: bins of steps merge, of full samples about every other one goes, each evenly over the
steps, and the newest stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.quantities.several import ALERTS, STEPS
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.in_memory import Content, MemoryProvider, Sample, text_of
from lightning_gradwatch.reading.samples import latest_course
from lightning_gradwatch.reading.schema import Array, Description, encode_alerts
from lightning_gradwatch.reading.steps import Part, put_together

if TYPE_CHECKING:
    from lightning_gradwatch.outputs.recorder import Event

MAX_BYTES = 4_000_000
SAMPLE_BYTES = 200
"""What a sample takes besides its values."""
MAX_NEWEST = 200
"""Bins or samples of a tag, a quarter of it at most, that are not thinned."""
_TOO_LITTLE = 0.9
"""Where no less than this part is left by a thinning, there is nothing more to be thinned, and a tag has to go."""


@dataclass
class _Series:
    """What is held of one tag."""

    description: Description
    samples: list[Sample] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return sum(map(_size, self.samples))


class MemoryRecord:
    """What a run has written, or would have written, in a number of bytes. It can be pickled.

    Args:
        max_bytes: What it may hold.

    Attributes:
        run: Name of the run.
        num_bytes: What it holds, the alerts left out.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.run = ""
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._series: dict[str, _Series] = {}
        self._alerts: tuple[tuple[Alert, ...], int] | None = None
        self._alerts_time = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nobody has watched yet."""
        return self._alerts is None and not self._series

    def add(self, events: Iterable[Event]) -> None:
        """Keep events, and thin what is kept if it has become too much."""
        now = time.time()
        for event in events:
            for value in event.values:
                self._keep(value.tag, value.description, Sample(event.step, now, value.values.copy()))
        while self.num_bytes > self._max_bytes:
            self._shrink()

    def set_alerts(self, alerts: Sequence[Alert], num_alerts: int) -> None:
        """Keep the alerts as they are now.

        Args:
            alerts: The alerts, the oldest first.
            num_alerts: How many there were, notices left out.
        """
        self._alerts, self._alerts_time = (tuple(alerts), num_alerts), time.time()

    def provider(self) -> MemoryProvider:
        """What is kept now, for a store; what comes later does not change it."""
        contents = {tag: Content(s.description.encode(), tuple(s.samples)) for tag, s in [*self._series.items()]}
        if self._alerts is not None:
            alerts, num_alerts = self._alerts
            step = max((alert.step if alert.until_step is None else alert.until_step for alert in alerts), default=0)
            sample = Sample(step, self._alerts_time, text_of(encode_alerts(alerts, num_alerts)))
            contents[metrics.ALERT_DOCUMENT] = Content(Description(ALERTS).encode(), (sample,))
        return MemoryProvider(self.run, contents)

    def _keep(self, tag: str, description: Description, sample: Sample) -> None:
        if description.quantity == STEPS:  # there is no need of parts here
            tag = metrics.layers_tag(STEPS, description.version, description.optimizer)
        known = self._series.get(tag)
        # other layers, or other lines, under the same tag are those of a fit that began anew
        if known is None or known.description != description:
            self._drop(tag)
            known = self._series[tag] = _Series(description)
        known.samples.append(sample)
        self.num_bytes += _size(sample)

    def _shrink(self) -> None:
        before = self.num_bytes
        for series in self._series.values():
            thin = _merged if series.description.quantity == STEPS else _thinned
            series.samples = thin(series)
        self.num_bytes = sum(series.num_bytes for series in self._series.values())
        if self.num_bytes > _TOO_LITTLE * before:
            # the norms of every step go last
            found = {tag: (s.description.quantity != STEPS, s.num_bytes) for tag, s in self._series.items()}
            self._drop(max(found, key=lambda tag: found[tag]))

    def _drop(self, tag: str) -> None:
        if tag in self._series:
            self.num_bytes -= self._series.pop(tag).num_bytes


def _size(sample: Sample) -> int:
    return SAMPLE_BYTES + int(sample.values.nbytes)


def _merged(series: _Series) -> list[Sample]:
    """The bins as about half as many, and the newest as they are: each in one sample."""
    about = series.description
    found = [Bins.decode(s.values.tobytes(), len(about.layers), len(about.lines)) for s in series.samples]
    written = np.repeat([sample.time for sample in series.samples], [len(bins) for bins in found])
    bins = put_together([Part(Bins.joined(found), np.maximum.accumulate(written), about.lines)], [], about.lines)
    old = len(bins) - min(MAX_NEWEST, len(bins) // 4)
    parts = [bins[:old].merged(_every_other(bins.first[:old])), bins[old:]]
    # all of it was written before whatever comes next
    time = series.samples[-1].time
    return [Sample(int(b.last[-1]), time, np.frombuffer(b.encode(), np.uint8)) for b in parts if len(b)]


def _thinned(series: _Series) -> list[Sample]:
    """About every other sample, and the newest."""
    steps = np.array([sample.step for sample in series.samples])
    kept = np.flatnonzero(latest_course(steps))
    old = len(kept) - min(MAX_NEWEST, len(kept) // 4)
    chosen = [*kept[:old][_every_other(steps[kept[:old]])], *kept[old:]]
    return [series.samples[place] for place in chosen]


def _every_other(steps: Array) -> Array:
    """Places of at most half of the steps, which rise: where each of equally wide stretches of them begins."""
    width = 1
    while True:
        starts = np.flatnonzero(np.diff(steps // width, prepend=-1))
        if len(starts) <= max(len(steps) // 2, 1):
            return starts
        width *= 2
