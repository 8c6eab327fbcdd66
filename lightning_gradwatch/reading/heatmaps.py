"""Layers over steps as the tab, the page and the terminal show them: samples merged into columns, layers into rows."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha1
from typing import Any, NotRequired, TypedDict

import numpy as np

from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.reading.dividing import divided, divisors
from lightning_gradwatch.reading.norms import TOTAL, Norm
from lightning_gradwatch.reading.samples import Samples, Shared, Span, Statistic
from lightning_gradwatch.reading.schema import Array, encode_frame
from lightning_gradwatch.reading.store import Series, Store

MAX_NUMBERS, LEAST_COLUMNS = 4_000_000, 100
"""Numbers of a heatmap at most, and columns that it has in any case: a screen has room for no more."""
_AT_ONCE = 2**18
"""Numbers."""
Rows = tuple[Array, Array]
"""Places of layers, and where in them each row begins."""


class Column(TypedDict):
    """One sample of a quantity, which may stand for several steps: a number for each layer, or several.

    Attributes:
        values: The largest of each row, where layers share rows; else that of each layer.
        lows: The smallest of each row that is finite and there; only where layers share rows.
        medians: The median of these.
    """

    step: int
    last_step: int
    values: list[Any]
    lows: NotRequired[list[float]]
    medians: NotRequired[list[float]]


def heatmap(
    store: Store,
    series: Series,
    span: Span,
    columns: int,
    statistic: Statistic = "high",
    rows: Rows | None = None,
    norm: Norm = TOTAL,
) -> bytes:
    """A frame of a quantity with one number per layer, shape ``(columns, rows)``, float32.

    Neighbours are merged if there are more samples than columns, by maximum unless another statistic is wanted; NaN is
    larger than anything. Columns are of equally many steps, but one sample is never in two of them. There are fewer of
    them where there are very many rows. The header tells the smallest and the largest number of all layers.

    Args:
        store: Where it is.
        series: The quantity.
        span: First and last step.
        columns: At most.
        statistic: What stands for several steps.
        rows: Which layers share a row, of which the largest number is taken; None for a row for each.
        norm: How gradient norms are shown; the header names it.
    """
    shared = _shared(store, series, rows, norm)
    samples = shared.samples.between(*span)
    num_rows = len(series.description.layers) if rows is None else len(rows[1])
    starts, header = columns_of(samples, min(columns, max(MAX_NUMBERS // max(num_rows, 1), LEAST_COLUMNS)))
    return encode_frame(samples.merged(starts, statistic), {**header, "extent": shared.extent, "norm": norm.name})


def _shared(store: Store, series: Series, rows: Rows | None, norm: Norm) -> Shared:
    """The samples in rows, and the extent of all layers; kept, as people zoom and look around."""
    by = divisors(norm, series.description, store.samples(series))
    whole = store.kept(f"whole {norm.name}", series, lambda one: _whole(store.samples(one), by))
    if rows is None and by is None:
        return whole
    each = np.arange(len(series.description.layers))
    chosen = (each, each) if rows is None else rows
    key = sha1(b"".join(part.tobytes() for part in chosen), usedforsecurity=False).hexdigest()
    return store.kept(f"rows {key} {norm.name}", series, lambda _: _of_rows(whole, chosen, by))


def _whole(samples: Samples, by: Array | None) -> Shared:
    """The samples as they are, with the extent of what is shown of them."""
    return Shared(samples, _extent(samples.values, by), 0)


def _of_rows(whole: Shared, rows: Rows, by: Array | None) -> Shared:
    bins = whole.samples.bins
    if bins is None:
        samples = Samples(whole.samples.steps, in_rows(whole.samples.values, rows, by))
    else:
        # norms of single steps are low, mean and high at once
        norms = {id(array): array for array in (bins.low, bins.mean, bins.high)}
        found = {key: in_rows(array, rows, by) for key, array in norms.items()}
        low, mean, high = (found[id(array)] for array in (bins.low, bins.mean, bins.high))
        samples = Samples.of_norms(replace(bins, low=low, mean=mean, high=high))
    return Shared(samples, whole.extent, samples.num_bytes)


def in_rows(values: Array, rows: Rows, by: Array | None = None) -> Array:
    """The largest number of each row; NaN is larger than anything. The last of two axes is that of the layers.

    Args:
        values: Shape ``(samples, layers)``.
        rows: Which layers share a row.
        by: What the numbers of each layer are divided by, shape ``(layers,)``; None for nothing.
    """
    places, starts = rows
    # a part of the samples at a time, which stays in the caches of the processor
    parts = (_divided(part, by)[..., places] for part in np.array_split(values, _parts(values)))
    return np.concatenate([np.maximum.reduceat(part, starts, axis=-1) for part in parts])


def _divided(values: Array, by: Array | None) -> Array:
    return values if by is None else divided(values, by)


def _parts(values: Array) -> int:
    return max(values.size // _AT_ONCE, 1)


def _extent(values: Array, by: Array | None) -> tuple[float, ...]:
    """The smallest positive and the largest finite number; nothing if there is none."""
    lows, highs = list[float](), list[float]()
    for part in (_divided(part, by) for part in np.array_split(values, _parts(values))):
        known = np.isfinite(part) & (part > 0)
        lows.append(part.min(where=known, initial=np.inf))
        highs.append(part.max(where=known, initial=0.0))
    low, high = float(min(lows)), float(max(highs))
    return (low, high) if high > 0 else ()


def column(store: Store, series: Series, step: int, rows: Rows | None = None, norm: Norm = TOTAL) -> Column:
    """One sample of a quantity with one number per layer; of several steps the largest."""
    samples = store.samples(series)
    place = samples.place(step)
    values = _divided(samples.values[place], divisors(norm, series.description, samples))
    found: Column = {
        "step": int(samples.steps[place]),
        "last_step": int(samples.last_steps[place]),
        "values": (values if rows is None else in_rows(values[None], rows)[0]).tolist(),
    }
    if rows is not None:
        parts = [part[np.isfinite(part) & (part >= 0)] for part in np.split(values[rows[0]], rows[1][1:])]
        found["lows"] = [float(part.min()) if part.size else MISSING for part in parts]
        found["medians"] = [float(np.median(part)) if part.size else MISSING for part in parts]
    return found


def columns_of(samples: Samples, most: int) -> tuple[Array, dict[str, object]]:
    """Where each column starts among the samples, the steps that it covers, and how many steps or samples it merges."""
    starts = samples.columns(most)
    ends = np.append(starts[1:], len(samples))[: len(starts)] - 1
    counts = np.add.reduceat(samples.counts, starts) if len(samples) else samples.counts
    header = {"steps": samples.steps[starts], "last_steps": samples.last_steps[ends], "counts": counts}
    counted = "samples" if samples.bins is None else "steps"
    return starts, {**{name: numbers.tolist() for name, numbers in header.items()}, "counted": counted}
