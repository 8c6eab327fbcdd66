"""The run's numbers over its steps, such as its loss: as a logger wrote them, or from every step."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import TypedDict

import numpy as np

from lightning_gradwatch.core import metrics
from lightning_gradwatch.reading.samples import Samples, Span
from lightning_gradwatch.reading.schema import Array
from lightning_gradwatch.reading.store import Catalogue, MissingError, Store
from lightning_gradwatch.reading.tables import LINES

THRESHOLD = "clip_threshold"
TOLERANCE = 0.01
"""Numbers of every step are known to 0.15 % at least."""


class Scalars(TypedDict):
    """A scalar of a run."""

    steps: list[int]
    values: list[float]


class Stretches(Scalars):
    """A number of the run from every step: of several steps the mean, and what it lies between."""

    last_steps: list[int]
    lows: list[float]
    highs: list[float]


def every_step(store: Store, catalogue: Catalogue) -> dict[str, dict[str, str]]:
    """Tags of the numbers of the run of which the norms of every step know any value, by optimizer and name."""
    found: dict[str, dict[str, str]] = {}
    for tag, (optimizer, name) in catalogue.lines.items():
        with contextlib.suppress(MissingError):
            if np.isfinite(store.scalars(catalogue.run, tag).values).any():
                found.setdefault(optimizer, {})[name] = tag
    for tags in found.values():
        if not _limits_the_norm(store, catalogue.run, tags):
            tags.pop(THRESHOLD, None)
    return found


def _limits_the_norm(store: Store, run: str, tags: dict[str, str]) -> bool:
    """Whether the threshold is one of the total norm, which is never above it once it is clipped.

    That of a policy for some of the layers, or for single elements, is not.
    """
    if not {THRESHOLD, "total_norm", "clip_coefficient"} <= tags.keys():
        return False
    norm, limit, coefficient = (
        store.scalars(run, tags[name]) for name in ("total_norm", THRESHOLD, "clip_coefficient")
    )
    if norm.bins is None:
        return False
    is_single = norm.bins.first == norm.bins.last
    is_above = norm.values * coefficient.values > limit.values * (1 + TOLERANCE)
    return not (is_above & is_single).any()


def tags_of(catalogue: Catalogue, optimizer: str, every_step: dict[str, str]) -> dict[str, str]:
    """The tags of an optimizer's lines that have been written, by the names of the lines; rather of every step."""
    names = [name for line in LINES for name in (line.name, line.limits) if name]
    tags = {name: metrics.run_level_tag(name, optimizer) for name in names}
    written = {name: tag for name, tag in tags.items() if tag in catalogue.scalars and name != THRESHOLD}
    found = {**written, **{name: tag for name, tag in every_step.items() if name in (*tags, "loss")}}
    limited = {line.limits for line in LINES if line.limits and line.name not in found}  # drawn with its limit alone
    return {name: tag for name, tag in found.items() if name not in limited}


def scalars(store: Store, run: str, tag: str, span: Span, points: int) -> Scalars:
    """A scalar, thinned if it has more points: of each stretch the lowest and the highest, NaN above all.

    Of a number that is known from every step, a point is what lies between the lowest and the highest.
    """
    samples = store.scalars(run, tag).between(*span)
    if samples.bins is not None:
        return _stretches(samples, points)
    kept = _extremes(samples.values, points)
    return {"steps": samples.steps[kept].tolist(), "values": samples.values[kept].tolist()}


def _stretches(samples: Samples, points: int) -> Stretches:
    assert samples.bins is not None
    bins = samples.bins.merged(samples.columns(points))
    low, mean, high = bins.lines[:, 0].T
    return {
        "steps": bins.first.tolist(),
        "last_steps": bins.last.tolist(),
        "values": mean.tolist(),
        "lows": low.tolist(),
        "highs": high.tolist(),
    }


def _extremes(values: Array, points: int) -> Array:
    if len(values) <= points:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), points // 2 + 1).astype(int)
    parts = [(start, values[start:end]) for start, end in pairwise(edges)]
    places = [start + place for start, part in parts for place in (_lowest(part), int(part.argmax()))]
    return np.unique(places)


def _lowest(part: Array) -> int:
    return int(np.where(np.isnan(part), np.inf, part).argmin())
