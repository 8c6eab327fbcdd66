"""A record of every step, written by hand: blocks of bins in an event file, and whatever else is wanted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.quantities.several import ALERTS, STEPS, STEPS_AROUND
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.reading.bins import reduce_steps
from lightning_gradwatch.reading.schema import Description, encode_alerts

LINES = ("total_norm", "loss")


class Record:
    """The event file of one run.

    Args:
        directory: Where it lies.
        layers: Names of the layers.
        optimizer: Name of the optimizer.
        version: That of the list of layers.
        lines: Names of the numbers of the run.
        elements: How many elements each layer has; empty for a log from before that was written.
        vectors: Places of the layers without a matrix.
    """

    def __init__(
        self,
        directory: Path,
        layers: Sequence[str],
        optimizer: str = "",
        version: int = 0,
        lines: Sequence[str] = LINES,
        elements: Sequence[int] = (),
        vectors: Sequence[int] = (),
    ) -> None:
        self.experiment = SummaryWriter(str(directory))
        self.layers, self.optimizer, self.version, self.lines = tuple(layers), optimizer, version, tuple(lines)
        self.elements, self.vectors = tuple(elements), tuple(vectors)
        self._described: set[str] = set()
        self._clock = 0.0

    def write(
        self, first: int, norms: Any, lines: Any = None, width: int = 1, part: int = 0, around: bool = False
    ) -> None:
        """One block: the steps from ``first`` on, so many in a bin.

        Args:
            first: The first step.
            norms: Shape ``(steps, layers)``.
            lines: Shape ``(steps, lines)``; each step's own number for all of them if left out.
            width: Steps in a bin.
            part: Which part of the series.
            around: Whether it is a window around an alert.
        """
        norms = np.asarray(norms, np.float32)
        steps = np.arange(first, first + len(norms))
        if lines is None:
            lines = np.repeat(steps[:, None], len(self.lines), axis=1)
        bins = reduce_steps(steps, norms, np.asarray(lines, np.float32), width)
        quantity = STEPS_AROUND if around else STEPS
        tag = metrics.part_tag(metrics.layers_tag(quantity, self.version, self.optimizer), part)
        sizes = {"lines": self.lines, "elements": self.elements, "vectors": self.vectors}
        description = Description(quantity, self.optimizer, self.version, self.layers, **sizes)  # type: ignore[arg-type]
        self.add(tag, description, np.frombuffer(bins.encode(), np.uint8), int(steps[-1]))

    def write_plain(self, quantity: str, step: int, values: Sequence[float]) -> None:
        """One sample of a quantity with one number for each layer."""
        tag = metrics.layers_tag(quantity, self.version, self.optimizer)
        description = Description(quantity, self.optimizer, self.version, self.layers)
        self.add(tag, description, np.array(values, np.float32), step)

    def close(self, *alerts: Alert) -> None:
        """Write the alerts; everything reaches the disk."""
        self.write_alerts(*alerts)
        self.experiment.close()

    def write_alerts(self, *alerts: Alert) -> None:
        """The document of the alerts as they are now."""
        self.add(metrics.ALERT_DOCUMENT, Description(ALERTS), encode_alerts(alerts, len(alerts)), 0)

    def add(self, tag: str, description: Description, values: Any, step: int) -> None:
        """One value, later than the one before."""
        summary = Summary()
        value = summary.value.add(tag=tag)
        if tag not in self._described:
            self._described.add(tag)
            value.metadata.data_class = DATA_CLASS_TENSOR
            value.metadata.plugin_data.plugin_name = metrics.PLUGIN
            value.metadata.plugin_data.content = description.encode()
        value.tensor.CopyFrom(make_tensor_proto(values))
        # Samples of one run are a millisecond apart, also those written in less: never later than what is written next.
        self._clock = max(time.time() - 1, self._clock + 1e-3)
        event = Event(summary=summary, step=step, wall_time=self._clock)
        self.experiment._get_file_writer().event_writer.add_event(event)


@contextlib.contextmanager
def record(directory: Path, layers: Sequence[str], *alerts: Alert, **options: Any) -> Iterator[Record]:
    """A whole run."""
    written = Record(directory, layers, **options)
    yield written
    written.close(*alerts)
