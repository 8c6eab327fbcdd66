"""The heatmap and the depth profile as a small matrix: few enough rows and columns for a terminal. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.core.quantities.quantity import Quantity, ScaleKind
from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.reading.dividing import divided
from lightning_gradwatch.reading.folding import Row, places_of
from lightning_gradwatch.reading.heatmaps import in_rows
from lightning_gradwatch.reading.samples import Samples
from lightning_gradwatch.reading.schema import Array
from lightning_gradwatch.reading.tables import LEAST_DECADES


@dataclass(frozen=True)
class Scale:
    """From values to positions.

    Attributes:
        kind: As in the table of the quantities.
        low: Where 0 lies; decades if the kind is ``"log"``.
        high: Where 1 lies.
    """

    kind: ScaleKind
    low: float
    high: float

    @classmethod
    def of(cls, values: Array, kind: ScaleKind) -> Scale:
        """The scale of a quantity over the values of a run: whole decades, six at least; or from 0 to 1 or more."""
        real = values[np.isfinite(values) & (values > 0)]
        if kind != "log":
            return cls(kind, 0.0, max(float(real.max(initial=1.0)), 1.0) if kind == "linear" else 1.0)
        high = math.ceil(math.log10(real.max()) - 1e-9) if real.size else 0
        low = math.floor(math.log10(real.min()) + 1e-9) if real.size else high
        return cls(kind, min(low, high - LEAST_DECADES), high)

    def position(self, value: float) -> float:
        """A value's place from 0 to 1; it must be finite and positive."""
        place = (math.log10(value) if self.kind == "log" else value) - self.low
        return min(max(place / (self.high - self.low), 0.0), 1.0)

    @property
    def ends(self) -> tuple[str, str]:
        """What stands at either end."""
        if self.kind == "log":
            return f"1e{self.low:.0f}", f"1e{self.high:.0f}"
        return ("0 %", "100 %") if self.kind == "fraction" else ("0", f"{self.high:.3g}")


@dataclass(frozen=True)
class Picture:
    """Layers against steps. NaN, infinity, 0 and -1 keep their meaning.

    Attributes:
        quantity: What is shown.
        names: What each row is called: its layer, or those that share it; the input end first.
        values: Largest value in each cell, NaN before anything; shape ``(rows, columns)``.
        latest: The same at the last sample, shape ``(rows,)``.
        steps: First and last step.
        latest_steps: First and last step of the last sample.
        scale: Over all samples.
    """

    quantity: Quantity
    names: tuple[str, ...]
    values: Array
    latest: Array
    steps: tuple[int, int]
    latest_steps: tuple[int, int]
    scale: Scale


def paint(samples: Samples, rows: Sequence[Row], quantity: Quantity, columns: int, by: Array | None = None) -> Picture:
    """Shrink the samples of a quantity to a picture, whose columns are equally many steps wide.

    Args:
        samples: At least one; values of shape ``(samples, layers)``.
        rows: Which layers share a row, at least one; the input end first.
        quantity: What they are.
        columns: Neighbouring samples share a column, or one sample fills several, as do the steps it stands for.
        by: What the values of each layer are divided by, shape ``(layers,)``; None for nothing.
    """
    values = samples.values if by is None else divided(samples.values, by)
    by_row = in_rows(values, places_of(rows))
    first, last = int(samples.steps[0]), int(samples.last_steps[-1])
    edges = np.linspace(first, last + 1, columns + 1)
    begins = np.searchsorted(samples.last_steps, edges[:-1], side="left")
    ends = np.searchsorted(samples.steps, edges[1:], side="left")
    cells = [by_row[b:e].max(0) if e > b else by_row[max(b - 1, 0)] for b, e in zip(begins, ends, strict=True)]
    return Picture(
        quantity=quantity,
        names=tuple(row.path for row in rows),
        values=np.stack(cells, axis=1),
        latest=by_row[-1],
        steps=(first, last),
        latest_steps=(int(samples.steps[-1]), last),
        scale=Scale.of(values, quantity.scale),
    )


def is_seen(values: Array) -> bool:
    """Whether anything was observed at all."""
    return bool((values != MISSING).any())
