"""A few rows of layers for dashboards in which each has a card of its own: TensorBoard's standard ones, and loggers'.

The tab shows all layers; a card each would bury what the user logs. A few, evenly from the input end to the loss end,
tell the same story, also where TensorBoard runs without the tab.
"""

from __future__ import annotations

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.histogram import EDGES
from lightning_gradwatch.core.layers import roll_up
from lightning_gradwatch.core.records import NUM_BINS, Layer, Publication
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.outputs.dashboards import add_histograms
from lightning_gradwatch.reading.schema import Array

Rows = dict[str, list[int]]
"""Places of the layers of each row, by its name."""


class Cards:
    """Chooses the rows, and makes their numbers.

    Args:
        num_rows: How many rows have cards; None for all.
        group_by: Number of leading path components by which layers share a row; None for
            ``roll_up``'s own choice.
    """

    def __init__(self, num_rows: int | None, group_by: int | None = None) -> None:
        self._num_rows = num_rows
        self._group_by = group_by
        self._rows: dict[str, tuple[tuple[Layer, ...], Rows]] = {}

    def norms(self, publication: Publication) -> dict[str, float]:
        """Gradient norms of the rows at the last step, by their tags."""
        rows = self._rows_of(publication.optimizer, publication.layers)
        norms = metrics.row_norms(publication.window.last[1:].tolist(), rows) if rows else {}
        return {metrics.layer_norm_tag(row, publication.optimizer): norm for row, norm in norms.items()}

    def histograms(self, snapshot: Snapshot) -> dict[str, Array]:
        """Counts of log10|g| for each row, shape ``(NUM_BINS,)``, by their tags; none where it was not counted."""
        rows = self._rows_of(snapshot.optimizer, snapshot.layers)
        if snapshot.histogram is None:
            return {}
        counts = snapshot.histogram.numpy()[:, :NUM_BINS]
        tags = [metrics.layer_histogram_tag(row, snapshot.optimizer) for row in rows]
        return {tag: counts[places].sum(0) for tag, places in zip(tags, rows.values(), strict=True)}

    def add_histograms(self, summary: Summary, snapshot: Snapshot, prefix: str) -> None:
        """Add a histogram of log10|g| for each row, if there is one.

        Args:
            summary: What to add them to.
            snapshot: A sample.
            prefix: What the logger puts before the tags of its metrics.
        """
        found = self.histograms(snapshot)
        if found:
            add_histograms(summary, [prefix + tag for tag in found], np.stack(list(found.values())), EDGES)

    def _rows_of(self, optimizer: str, layers: tuple[Layer, ...]) -> Rows:
        known, rows = self._rows.get(optimizer, (None, {}))
        if known is not layers and known != layers:
            rows = self._choose([layer.name for layer in layers])
        self._rows[optimizer] = layers, rows
        return rows

    def _choose(self, names: list[str]) -> Rows:
        """Rows at even distances, with both ends."""
        if not names or self._num_rows == 0:
            return {}
        rows = roll_up(names, self._group_by)
        if self._num_rows is None or len(rows) <= self._num_rows:
            return rows
        chosen = np.linspace(0, len(rows) - 1, self._num_rows).round().astype(int)
        kept = list(rows)
        return {kept[place]: rows[kept[place]] for place in chosen.tolist()}
