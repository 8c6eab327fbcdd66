"""A publication becomes one TensorBoard event: through Lightning's own writer, never through a second file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.histogram import EDGES, NUM_BINS
from lightning_gradwatch.core.layers import roll_up
from lightning_gradwatch.core.records import Publication

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch import Tensor

SCHEMA_VERSION = 1


def is_writable(experiment: object) -> bool:
    """Whether a logger's experiment is torch's TensorBoard writer."""
    from torch.utils.tensorboard import SummaryWriter

    return isinstance(experiment, SummaryWriter)


class Writer:
    """Writes publications into the event file of a logger.

    Args:
        experiment: The ``SummaryWriter`` of the logger.
        group_by: Number of leading path components by which layers share a row of the standard dashboards; None for
            :func:`~lightning_gradwatch.core.layers.roll_up`'s own choice.
    """

    def __init__(self, experiment: Any, group_by: int | None = None) -> None:
        self._experiment = experiment
        self._group_by = group_by
        self._rows: dict[tuple[str, ...], dict[str, list[int]]] = {}
        self._described: set[str] = set()
        self._layer_lists: dict[str, list[tuple[str, ...]]] = {}

    def write(self, publication: Publication, num_alerts: int) -> None:
        """Write one event.

        Args:
            publication: The numbers.
            num_alerts: Alerts of the run so far.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary()
        for tag, number in metrics.run_level(publication, num_alerts).items():
            summary.value.add(tag=tag, simple_value=number)
        names = tuple(layer.name for layer in publication.layers)
        if names not in self._rows:
            self._rows[names] = roll_up(names, self._group_by)
        rows = self._rows[names]
        norms = metrics.row_norms(publication.window.last[1:].tolist(), rows)
        for row, norm in norms.items():
            summary.value.add(tag=metrics.layer_norm_tag(row, publication.optimizer), simple_value=norm)
        if publication.histogram is not None:
            for row, indices in rows.items():
                counts = publication.histogram[indices, :NUM_BINS].sum(0).tolist()
                _add_histogram(summary, metrics.layer_histogram_tag(row, publication.optimizer), counts, EDGES)
        known = self._layer_lists.setdefault(publication.optimizer, [names])
        known += [] if names in known else [names]
        for tensor_name, tensor in _layer_tensors(publication).items():
            tag = metrics.layers_tag(tensor_name, known.index(names), publication.optimizer)
            self._add_tensor(summary, tag, tensor, names)
        self._experiment._get_file_writer().add_summary(summary, publication.step)

    def _add_tensor(self, summary: Summary, tag: str, tensor: Tensor, names: Sequence[str]) -> None:
        """Raw float32, so that NaN, inf and 0 survive; the first event of a tag says what the rows are."""
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.compat.proto.types_pb2 import DT_FLOAT

        value = summary.value.add(tag=tag)
        if tag not in self._described:
            self._described.add(tag)
            value.metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
            value.metadata.plugin_data.plugin_name = metrics.PLUGIN
            value.metadata.plugin_data.content = json.dumps({"schema": SCHEMA_VERSION, "layers": names}).encode()
        value.tensor.dtype = DT_FLOAT
        for size in tensor.shape:
            value.tensor.tensor_shape.dim.add(size=size)
        value.tensor.tensor_content = tensor.contiguous().numpy().tobytes()


def _layer_tensors(publication: Publication) -> dict[str, Tensor]:
    import torch

    window, sample = publication.window, publication.sample
    tensors = {
        "grad_norm": window.last[1:],
        "grad_norm_range": torch.stack([window.min, window.median, window.max], dim=1)[1:],
    }
    if sample is not None:
        tensors["output_grad_norm"] = sample.output_grad_norm
        tensors["weight_norm"] = sample.weight_norm
        tensors["zero_fraction"] = sample.zero_fraction
    if publication.clipped_fraction is not None:
        tensors["clipped_fraction"] = publication.clipped_fraction
    if publication.histogram is not None:
        tensors["nonfinite_fraction"] = publication.histogram[:, -1] / publication.histogram.sum(1).clamp(min=1)
    return tensors


def _add_histogram(summary: Summary, tag: str, counts: Sequence[float], edges: Sequence[float]) -> None:
    """Add a histogram without its empty ends; nothing at all if every bin is empty.

    TensorBoard draws 30 equal bins from the lowest to the highest edge, so empty ends would squeeze the rest into one.
    """
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return
    first, last = filled[0], filled[-1]
    histogram = summary.value.add(tag=tag).histo
    histogram.min, histogram.max = edges[first], edges[last + 1]
    histogram.num = sum(counts)
    middles = [(edges[i] + edges[i + 1]) / 2 for i in range(len(counts))]
    histogram.sum = sum(counts[i] * middles[i] for i in filled)
    histogram.sum_squares = sum(counts[i] * middles[i] ** 2 for i in filled)
    histogram.bucket_limit.extend(edges[first + 1 : last + 2])
    histogram.bucket.extend(counts[first : last + 1])
