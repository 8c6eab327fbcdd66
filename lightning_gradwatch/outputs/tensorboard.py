"""Into TensorBoard's event files: through Lightning's own writer where there is one, never through a second file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING, DT_UINT8
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.custom_scalar.metadata import PLUGIN_NAME as CUSTOM_SCALARS
from tensorboard.plugins.text.metadata import PLUGIN_NAME as TEXT

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.quantities.several import ALERTS
from lightning_gradwatch.core.records import Alert, Publication
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.dashboards import alert_table, has_layout, layout, prescription_table
from lightning_gradwatch.outputs.recorder import Event
from lightning_gradwatch.reading.left_out import LeftOut
from lightning_gradwatch.reading.schema import Array, Description, encode_alerts

DENSE_DOCUMENTS = 100
DOCUMENT_GROWTH = 1.02


def is_writable(experiment: object) -> bool:
    """Whether a logger's experiment is torch's TensorBoard writer."""
    from torch.utils.tensorboard import SummaryWriter

    return isinstance(experiment, SummaryWriter)


class Writer:
    """Writes the record, run-level numbers and alerts into the event file of a logger.

    Args:
        experiment: The ``SummaryWriter`` of the logger.
        cards: What the standard dashboards show of the layers.
        prefix: What the logger puts before the tags of its metrics.
    """

    def __init__(self, experiment: Any, cards: Cards, prefix: str = "") -> None:
        self._experiment = experiment
        self._cards = cards
        self._prefix = prefix
        self._described: set[str] = set()
        self._alerts: tuple[Alert, ...] | None = None
        self._further = "", 0
        self._document_step = 0
        self._num_documents = 0

    @property
    def directory(self) -> str:
        """Where the event file lies."""
        return str(self._experiment.log_dir)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._experiment.flush()

    def publish(self, publication: Publication, num_alerts: int) -> None:
        """Write run-level numbers.

        Args:
            publication: The numbers.
            num_alerts: Alerts of the run so far.
        """
        summary = Summary()
        numbers = {**metrics.run_level(publication, num_alerts), **self._cards.norms(publication)}
        for tag, number in numbers.items():
            summary.value.add(tag=self._prefix + tag, simple_value=number)
        self._add_event(summary, publication.step)

    def record(self, events: Iterable[Event]) -> None:
        """Write what the record is to hold; what is urgent is in the file when this returns."""
        is_urgent = False
        for event in events:
            summary = Summary()
            for value in event.values:
                self._add_tensor(summary, value.tag, value.description, value.values)
            self._add_event(summary, event.step)
            is_urgent = is_urgent or event.is_urgent
        if is_urgent:
            self._experiment.flush()

    def show(self, snapshot: Snapshot) -> None:
        """Write the histograms of the standard dashboards, if the sample has any."""
        summary = Summary()
        self._cards.add_histograms(summary, snapshot, self._prefix)
        if summary.value:
            self._add_event(summary, snapshot.step)

    def write_alerts(
        self, alerts: Sequence[Alert], num_alerts: int, end: str = "", left_out: Sequence[LeftOut] = ()
    ) -> None:
        """Write all alerts, for the tab and as a table, and how the run ended, unless it stands in the file already.

        After 100 times they are written again only when the run has become longer by one part in fifty, or ends: alerts
        that come and go must not flood the file.

        Args:
            alerts: The alerts, the oldest first.
            num_alerts: How many there were, notices left out.
            end: How the run ended; ``""`` while it goes on.
            left_out: What the run goes on without.
        """
        alerts, further = tuple(alerts), (end, len(left_out))
        if (alerts, further) == (self._alerts, self._further):
            return
        step = max((alert.step if alert.until_step is None else alert.until_step for alert in alerts), default=0)
        is_early = self._num_documents >= DENSE_DOCUMENTS and step < self._document_step * DOCUMENT_GROWTH
        if is_early and further == self._further:
            return
        has_changed, before = alerts != self._alerts, self._alerts or ()
        self._alerts, self._further, self._document_step = alerts, further, step
        self._num_documents += 1
        summary, document = Summary(), encode_alerts(alerts, num_alerts, end, left_out)
        self._add_text(summary, metrics.ALERT_DOCUMENT, metrics.PLUGIN, document.encode(), Description(ALERTS))
        if has_changed:
            self._add_text(summary, metrics.ALERT_TABLE, TEXT, alert_table(alerts).encode())
        for alert in alerts:
            if alert.prescription is not None and not any(a.prescription == alert.prescription for a in before):
                self._add_text(
                    summary, metrics.PRESCRIPTION_TABLE, TEXT, prescription_table(alert.prescription).encode()
                )
        self._add_event(summary, step)
        self._experiment.flush()

    def write_layout(self, optimizers: Iterable[str]) -> None:
        """Lay out charts in the Custom Scalars dashboard, unless somebody has done so: a run has one layout only.

        Args:
            optimizers: Names of the optimizers.
        """
        self._experiment.flush()
        if not has_layout(self.directory):
            summary = Summary()
            self._add_text(summary, CONFIG_SUMMARY_TAG, CUSTOM_SCALARS, layout(optimizers, self._prefix))
            self._add_event(summary, 0)

    def _add_event(self, summary: Summary, step: int) -> None:
        """Write an event, unless somebody has taken the file away.

        The error would come out in a thread of the logger's own writer, and end the run when the logger is closed.
        """
        writer = self._experiment._get_file_writer()
        path = os.fsdecode(getattr(writer.event_writer, "_file_name", self.directory))
        if "://" not in path and not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        writer.add_summary(summary, step)

    def _add_tensor(self, summary: Summary, tag: str, description: Description, values: Array) -> None:
        """Raw bytes, so that NaN, inf and 0 survive."""
        value = self._add_value(summary, tag, metrics.PLUGIN, description)
        value.tensor.dtype = DT_UINT8 if values.dtype == np.uint8 else DT_FLOAT
        for size in values.shape:
            value.tensor.tensor_shape.dim.add(size=size)
        value.tensor.tensor_content = values.tobytes()

    def _add_text(
        self, summary: Summary, tag: str, plugin: str, text: bytes, description: Description | None = None
    ) -> None:
        value = self._add_value(summary, tag, plugin, description)
        value.tensor.dtype = DT_STRING
        value.tensor.string_val.append(text)

    def _add_value(self, summary: Summary, tag: str, plugin: str, description: Description | None) -> Any:
        """A value whose tag is described in its first event; the Rust loader takes a description from nowhere else."""
        value = summary.value.add(tag=tag)
        if tag not in self._described:
            self._described.add(tag)
            value.metadata.data_class = DATA_CLASS_TENSOR
            value.metadata.plugin_data.plugin_name = plugin
            value.metadata.plugin_data.content = description.encode() if description is not None else b""
        return value
