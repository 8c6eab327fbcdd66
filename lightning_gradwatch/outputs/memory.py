"""The record of a run in memory, beside its files or in place of them: the same events, within a few megabytes.

When it is full it is thinned in rounds: of samples about every other one goes, then bins of steps merge to twice
the width, as many at a time as there must be room for, so that training never waits for all of them. Both are thinned
evenly over the steps, and the newest stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.quantities.several import ALERTS, STEPS
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.step_log import BLOCK_STEPS
from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.in_memory import Content, MemoryProvider, Sample, text_of
from lightning_gradwatch.reading.left_out import LeftOut
from lightning_gradwatch.reading.samples import latest_course
from lightning_gradwatch.reading.schema import Array, Description, encode_alerts
from lightning_gradwatch.reading.steps import Part, put_together

if TYPE_CHECKING:
    from lightning_gradwatch.outputs.recorder import Event

MAX_BYTES = 4_000_000
SAMPLE_BYTES = 200
"""What a sample takes besides its values."""
MAX_NEWEST = 200
"""Samples of a tag, a quarter of it at most, that are not thinned."""
MAX_NEWEST_BLOCKS = MAX_NEWEST // BLOCK_STEPS
"""The same for blocks of bins."""
MERGED_AT_ONCE = 64_000
"""Norms that are merged at once: some hundredths of a second."""
_TOO_LITTLE = 0.1
"""Where a round frees no more than this part there is nothing more to be thinned, and a tag has to go."""


@dataclass
class _Series:
    """What is held of one tag.

    Attributes:
        description: What it is.
        samples: In the order in which they were written; of steps, blocks of bins.
        width: Steps to which bins are merged in the present round.
        num_merged: Blocks that this has come to already.
    """

    description: Description
    samples: list[Sample] = field(default_factory=list)
    width: int = 0
    num_merged: int = 0

    @property
    def is_of_steps(self) -> bool:
        """Whether it holds bins of steps."""
        return self.description.quantity == STEPS

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return sum(map(_size, self.samples))

    def merge_some(self) -> int | None:
        """Merge the bins of the next few blocks into one; the bytes that this frees, None at the end of the round."""
        if not self.width:  # no round has begun
            return None
        about, widths, end = self.description, self._widths(), self._num_old()
        while self.num_merged < end and widths[self.num_merged] >= self.width:
            self.num_merged += 1
        start, num, parts = self.num_merged, 0, list[Part]()
        for block in self.samples[start:end]:
            num += Bins.number_in(block.values.tobytes()) * len(about.layers)
            if parts and num > MERGED_AT_ONCE:
                break
            bins = Bins.decode(block.values.tobytes(), len(about.layers), len(about.lines))
            parts.append(Part(bins, np.full(len(bins), block.time), about.lines))
        if not parts:
            return None
        before = self.samples[start : start + len(parts)]
        bins = put_together(parts, [], about.lines)
        bins = bins.merged(np.flatnonzero(np.diff(bins.first // self.width, prepend=-1)))
        # all of it was written before whatever comes next
        merged = Sample(int(bins.last[-1]), before[-1].time, np.frombuffer(bins.encode(), np.uint8))
        self.samples[start : start + len(parts)] = [merged]
        self.num_merged += 1
        return sum(map(_size, before)) - _size(merged)

    def begin_round(self) -> None:
        """Thin samples, or let bins be merged to twice the width of the finest from now on."""
        if self.is_of_steps:
            # blocks of a run that was resumed may go back; single steps take less room than pairs do
            finest = min((width for width in self._widths()[: self._num_old()] if width > 0), default=0.0)
            self.width, self.num_merged = int(2 * max(finest, 2.0)), 0
        else:
            self.samples = _thinned(self.samples)

    def _num_old(self) -> int:
        return len(self.samples) - min(MAX_NEWEST_BLOCKS, len(self.samples) // 4)

    def _widths(self) -> list[float]:
        """Steps in a bin of each block, on average."""
        steps = [-1, *(block.step for block in self.samples)]
        numbers = [Bins.number_in(block.values.tobytes()) for block in self.samples]
        return [(after - before) / number for (before, after), number in zip(pairwise(steps), numbers, strict=True)]


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
        self._num_freed, self._is_thinning = 0, False
        self._series: dict[str, _Series] = {}
        self._alerts: tuple[tuple[Alert, ...], int, str, tuple[LeftOut, ...]] | None = None
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

    def set_alerts(
        self, alerts: Sequence[Alert], num_alerts: int, end: str = "", left_out: Sequence[LeftOut] = ()
    ) -> None:
        """Keep the alerts as they are now.

        Args:
            alerts: The alerts, the oldest first.
            num_alerts: How many there were, notices left out.
            end: How the run ended; ``""`` while it goes on.
            left_out: What the run goes on without.
        """
        self._alerts, self._alerts_time = (tuple(alerts), num_alerts, end, tuple(left_out)), time.time()

    def provider(self) -> MemoryProvider:
        """What is kept now, for a store; what comes later does not change it."""
        contents = {tag: Content(s.description.encode(), tuple(s.samples)) for tag, s in [*self._series.items()]}
        if self._alerts is not None:
            alerts, num_alerts, end, left_out = self._alerts
            step = max((alert.step if alert.until_step is None else alert.until_step for alert in alerts), default=0)
            sample = Sample(step, self._alerts_time, text_of(encode_alerts(alerts, num_alerts, end, left_out)))
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
        """Free something: go on with the present round, or begin another one."""
        for series in self._series.values():
            freed = series.merge_some() if series.is_of_steps else None
            if freed is not None:
                self.num_bytes -= freed
                self._num_freed += freed
                return
        if self._num_freed <= _TOO_LITTLE * self.num_bytes and self._is_thinning:
            # the norms of every step go last
            found = {tag: (not s.is_of_steps, s.num_bytes) for tag, s in self._series.items()}
            self._drop(max(found, key=lambda tag: found[tag]))
        before, self._is_thinning = self.num_bytes, True
        for series in self._series.values():
            series.begin_round()
        self.num_bytes = sum(series.num_bytes for series in self._series.values())
        self._num_freed = before - self.num_bytes

    def _drop(self, tag: str) -> None:
        if tag in self._series:
            self.num_bytes -= self._series.pop(tag).num_bytes


def _size(sample: Sample) -> int:
    return SAMPLE_BYTES + int(sample.values.nbytes)


def _thinned(samples: list[Sample]) -> list[Sample]:
    """About every other sample, and the newest."""
    steps = np.array([sample.step for sample in samples])
    kept = np.flatnonzero(latest_course(steps))
    old = len(kept) - min(MAX_NEWEST, len(kept) // 4)
    chosen = [*kept[:old][_every_other(steps[kept[:old]])], *kept[old:]]
    return [samples[place] for place in chosen]


def _every_other(steps: Array) -> Array:
    """Places of at most half of the steps, which rise: where each of equally wide stretches of them begins."""
    width = 1
    while True:
        starts = np.flatnonzero(np.diff(steps // width, prepend=-1))
        if len(starts) <= max(len(steps) // 2, 1):
            return starts
        width *= 2
