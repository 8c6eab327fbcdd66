"""A publication becomes one TensorBoard event: through Lightning's own writer, never through a second file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING, DT_UINT8
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.custom_scalar.metadata import PLUGIN_NAME as CUSTOM_SCALARS
from tensorboard.plugins.text.metadata import PLUGIN_NAME as TEXT

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.histogram import EDGES
from lightning_gradwatch.core.layers import roll_up
from lightning_gradwatch.core.quantities import QUANTITIES
from lightning_gradwatch.core.quantities.several import ALERTS, HISTOGRAM, NORM_RANGE, SEQUENCE
from lightning_gradwatch.core.records import MISSING, NUM_BINS, Alert, Publication
from lightning_gradwatch.outputs.dashboards import (
    add_histograms,
    alert_table,
    has_layout,
    layout,
    prescription_table,
)
from lightning_gradwatch.reading.schema import (
    Array,
    Description,
    encode_alerts,
    encode_histogram,
    encode_sequence,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gradwatch.core.quantities.quantity import Quantity

DENSE_PUBLICATIONS = 200
DETAIL_EVERY = 10
"""The first 200 publications are written in full, then every tenth; of the others the run-level numbers and the norms
of the layers. Histograms are written whenever they are due; those of the standard dashboards, which keep 500 of them,
no closer than every tenth publication after the first 200."""
DENSE_DOCUMENTS = 100
DOCUMENT_GROWTH = 1.02


def is_writable(experiment: object) -> bool:
    """Whether a logger's experiment is torch's TensorBoard writer."""
    from torch.utils.tensorboard import SummaryWriter

    return isinstance(experiment, SummaryWriter)


@dataclass
class _Course:
    """How far the series of one optimizer have come.

    Attributes:
        optimizer: Its name; ``""`` if there is only one.
        layer_lists: The lists of layers so far; a tag's version is a place in it.
        names: The present one.
        rows: Its rows in the standard dashboards.
        num_publications: Publications so far.
        last_histogram: The one with the latest histograms for the standard dashboards.
        norm_range: Smallest, median and largest norm since they were written last, shape ``(layers, 3)``.
    """

    optimizer: str
    layer_lists: list[tuple[str, ...]] = field(default_factory=list)
    names: tuple[str, ...] = ()
    rows: dict[str, list[int]] = field(default_factory=dict)
    num_publications: int = 0
    last_histogram: int = 0
    norm_range: Array | None = None

    @property
    def version(self) -> int:
        """Which of the lists of layers is the present one."""
        return self.layer_lists.index(self.names)

    def describe(self, quantity: str, declaration: Quantity | None = None) -> Description:
        """What a tag of the present layers holds."""
        return Description(quantity, self.optimizer, self.version, self.names, declaration)

    def turn_to(self, names: tuple[str, ...], group_by: int | None) -> None:
        """Go on with these layers."""
        if names == self.names:
            return
        self.layer_lists += [] if names in self.layer_lists else [names]
        self.names, self.rows, self.norm_range = names, roll_up(names, group_by), None

    def widen_range(self, publication: Publication) -> None:
        """Let the range cover one more publication; of several medians it holds the last."""
        window = publication.window
        new = np.stack([numbers.numpy()[1:] for numbers in (window.min, window.median, window.max)], axis=1)
        if self.norm_range is not None:
            new[:, 0] = np.fmin(new[:, 0], self.norm_range[:, 0])
            new[:, 2] = np.fmax(new[:, 2], self.norm_range[:, 2])
        self.norm_range = new

    def take_range(self, last: Array) -> Array:
        """The range, which starts anew; ``-1`` for layers that had no gradient, as their last norms say."""
        assert self.norm_range is not None
        found, self.norm_range = self.norm_range, None
        found[(last < 0) & np.isnan(found[:, 0])] = MISSING
        return found


class Writer:
    """Writes publications and alerts into the event file of a logger.

    Args:
        experiment: The ``SummaryWriter`` of the logger.
        group_by: Number of leading path components by which layers share a row of the standard dashboards; None for
            :func:`~lightning_gradwatch.core.layers.roll_up`'s own choice.
        prefix: What the logger puts before the tags of its metrics.
    """

    def __init__(self, experiment: Any, group_by: int | None = None, prefix: str = "") -> None:
        self._experiment = experiment
        self._group_by = group_by
        self._prefix = prefix
        self._described: set[str] = set()
        self._courses: dict[str, _Course] = {}
        self._alerts: tuple[Alert, ...] | None = None
        self._document_step = 0
        self._num_documents = 0

    @property
    def directory(self) -> str:
        """Where the event file lies."""
        return str(self._experiment.log_dir)

    def write(self, publication: Publication, num_alerts: int) -> None:
        """Write one event.

        Args:
            publication: The numbers.
            num_alerts: Alerts of the run so far.
        """
        summary = Summary()
        course = self._courses.setdefault(publication.optimizer, _Course(publication.optimizer))
        course.turn_to(tuple(layer.name for layer in publication.layers), self._group_by)
        course.widen_range(publication)
        for tag, number in metrics.run_level(publication, num_alerts).items():
            summary.value.add(tag=self._prefix + tag, simple_value=number)
        if course.names:  # there are none where `include` wants no layer of this optimizer
            is_full = course.num_publications < DENSE_PUBLICATIONS or course.num_publications % DETAIL_EVERY == 0
            for quantity in (*QUANTITIES, *publication.declared):
                if is_full or quantity.is_always_written:
                    self._add_quantity(summary, course, quantity, publication)
            if is_full:
                self._add_details(summary, course, publication)
            if publication.histogram is not None:
                self._add_histograms(summary, course, publication.histogram.numpy())
        course.num_publications += 1
        self._add_event(summary, publication.step)

    def write_alerts(self, alerts: Sequence[Alert], num_alerts: int, is_last: bool = False) -> None:
        """Write all alerts, for the tab and as a table, unless they stand like this in the file already.

        After 100 times they are written again only when the run has become longer by one part in fifty, or ends: alerts
        that come and go must not flood the file.

        Args:
            alerts: The alerts, the oldest first.
            num_alerts: How many there were, notices left out.
            is_last: Whether the run ends.
        """
        alerts = tuple(alerts)
        if alerts == self._alerts:
            return
        step = max((alert.step if alert.until_step is None else alert.until_step for alert in alerts), default=0)
        is_early = self._num_documents >= DENSE_DOCUMENTS and step < self._document_step * DOCUMENT_GROWTH
        if is_early and not is_last:
            return
        before, self._alerts, self._document_step = self._alerts or (), alerts, step
        self._num_documents += 1
        summary, document = Summary(), encode_alerts(alerts, num_alerts)
        self._add_text(summary, metrics.ALERT_DOCUMENT, metrics.PLUGIN, document.encode(), Description(ALERTS))
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

    def _add_quantity(self, summary: Summary, course: _Course, quantity: Quantity, publication: Publication) -> None:
        """One number per layer, if there is any; a quantity of the user's own says what it is."""
        numbers = quantity.of(publication)
        if numbers is not None:
            description = course.describe(quantity.name, quantity if quantity.take is None else None)
            self._add_layers(summary, description, numbers.float().numpy())

    def _add_details(self, summary: Summary, course: _Course, publication: Publication) -> None:
        """What is too much for every publication."""
        norms = metrics.row_norms(publication.window.last[1:].tolist(), course.rows)
        for row, norm in norms.items():
            tag = self._prefix + metrics.layer_norm_tag(row, publication.optimizer)
            summary.value.add(tag=tag, simple_value=norm)
        norm_range = course.take_range(publication.window.last.numpy()[1:])
        self._add_layers(summary, course.describe(NORM_RANGE.name), norm_range)
        if publication.sample is not None:
            for layer, norms_over_time in publication.sample.sequences:
                self._add_sequence(summary, course, layer, norms_over_time)

    def _add_histograms(self, summary: Summary, course: _Course, counts: Array) -> None:
        num = course.num_publications
        if num < DENSE_PUBLICATIONS or num >= course.last_histogram + DETAIL_EVERY:
            course.last_histogram = num
            tags = [self._prefix + metrics.layer_histogram_tag(row, course.optimizer) for row in course.rows]
            rows = [counts[i[0]] if len(i) == 1 else counts[i].sum(0) for i in course.rows.values()]
            add_histograms(summary, tags, np.array(rows).reshape(len(tags), -1)[:, :NUM_BINS], EDGES)
        self._add_layers(summary, course.describe(HISTOGRAM.name), encode_histogram(counts))

    def _add_sequence(self, summary: Summary, course: _Course, layer: str, norms: Tensor) -> None:
        tag = metrics.sequence_tag(layer, course.version, course.optimizer)
        description = Description(SEQUENCE, course.optimizer, course.version, (layer,))
        self._add_tensor(summary, tag, description, encode_sequence(norms.numpy()))

    def _add_layers(self, summary: Summary, description: Description, values: Array) -> None:
        tag = metrics.layers_tag(description.quantity, description.version, description.optimizer)
        self._add_tensor(summary, tag, description, values)

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
