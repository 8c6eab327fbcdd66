"""What the tab would ask for, gathered beforehand: documents and frames, within a few megabytes per run."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lightning_gradwatch.cli.logs import OpenRun
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.several import HISTOGRAM, NORM_RANGE
from lightning_gradwatch.reading import answers, lines, run_list, tables
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.dividing import divisors
from lightning_gradwatch.reading.folding import plain as folded
from lightning_gradwatch.reading.heatmaps import heatmap
from lightning_gradwatch.reading.norms import NORMS, norms_for
from lightning_gradwatch.reading.samples import Samples, Span, Statistic
from lightning_gradwatch.reading.schema import Array, encode_frame, plain
from lightning_gradwatch.reading.status import state_of
from lightning_gradwatch.reading.store import Series

MAX_RUNS = 20
_LEAST = 1000
_BINS = 64
_ALL: Span = (None, None)


class Limits(NamedTuple):
    """How much there may be of one run.

    Attributes:
        numbers: Of its heatmaps together.
        bytes: Of its histograms together.
        columns: Of each heatmap.
        distributions: Columns of the histograms of each layer.
        sequences: Samples of each recurrent layer.
        points: Of each line.
    """

    numbers: int = 1_500_000
    bytes: int = 4_000_000
    columns: int = 1000
    distributions: int = 200
    sequences: int = 100
    points: int = 2000

    @property
    def is_least(self) -> bool:
        """Whether halving it again would leave nothing to look at."""
        return self.numbers < _LEAST

    def halved(self) -> Limits:
        """Half of everything."""
        return Limits(*(max(limit // 2, 1) for limit in self))


def gather(runs: Iterable[tuple[OpenRun, str]], limits: Limits | None = None) -> dict[str, object]:
    """Plain JSON for the page; matrices are frames in base64.

    Args:
        runs: What there is of each, and what it is called.
        limits: How much of each there may be; None for a few megabytes.
    """
    found = [_run(whole, title, limits or Limits()) for whole, title in runs]
    return dict(plain({"tables": tables.encode(), "runs": found}))


def _run(whole: OpenRun, title: str, limits: Limits) -> dict[str, object]:
    run = whole.run
    end = None if run.catalogue is None or run.catalogue.document is None else run.catalogue.document.end
    state, state_text = state_of(end, run.wall_time, time.time())
    row = {"run": title, **run.verdict._asdict(), "last_step": run.last_step, "wall_time": run.wall_time}
    row |= {"state": state, "state_text": state_text, "stamp": run.stamp}
    row["layers"] = {} if run.catalogue is None else run_list.layers_of(run.catalogue)
    parts = [part for optimizer in whole.document["optimizers"] for part in _versions(whole, optimizer, limits)]
    scalars = {tag: _scalar(whole, tag, limits.points) for tag in whole.document["scalars"]}
    document = {**whole.document, "run": title, "alerts": answers.ranked(run.alerts)}
    return {"row": row, "document": document, "versions": parts, "scalars": scalars}


def _versions(whole: OpenRun, optimizer: answers.OptimizerContents, limits: Limits) -> Iterator[dict[str, object]]:
    store, name = whole.store, optimizer["name"]
    for version in optimizer["versions"]:
        whose = name, version["version"]
        series = whole.quantities(*whose)
        ranges, histograms = series.pop(NORM_RANGE.name, None), series.pop(HISTOGRAM.name, None)
        norms = series.get(GRAD_NORM.name)
        alerts = whole.document["alerts"]
        # where norms are of several steps, there is more than the largest
        others: tuple[Statistic, ...] = ("low", "mean") if norms is not None and norms.parts else ()
        columns = _within(
            limits.numbers // (len(version["layers"]) * max(len(series) + len(others), 1)), limits.columns
        )
        yield {
            "optimizer": name,
            "version": version["version"],
            **_ways(whole, norms, alerts, bool(version["rows"])),
            "heatmaps": {q: _encode(heatmap(store, s, _ALL, columns)) for q, s in series.items()},
            "steps": {one: _encode(heatmap(store, norms, _ALL, columns, one)) for one in others if norms},
            "ranges": None if others else ranges and _encode(_thinned(store.samples(ranges), columns)),
            "distributions": _distributions(whole, histograms, limits) if histograms else {},
            "sequences": {
                layer: _sequence(whole, *whose, layer, s, limits.sequences)
                for layer, s in whole.sequences(*whose).items()
            },
        }


def _ways(
    whole: OpenRun, norms: Series | None, alerts: Sequence[AlertRecord], is_newest: bool
) -> dict[str, dict[str, object]]:
    """What norms of layers are divided by in each way to show them, and how layers share rows then."""
    if norms is None:
        return {"divisors": {}, "plans": {}}
    samples, about = whole.store.samples(norms), norms.description
    by = {name: divisors(NORMS[name], about, samples) for name in norms_for(about)}
    layouts = [answers.Layout(name, hides) for name in by for hides in (False, True)] if is_newest else []
    plans = {_key(one): folded(answers.rows_of(norms, samples, alerts, one)) for one in layouts}
    return {"divisors": {name: found.tolist() for name, found in by.items() if found is not None}, "plans": plans}


def _key(layout: answers.Layout) -> str:
    return f"{layout.norm} without vectors" if layout.hides_vectors else str(layout.norm)


def _distributions(whole: OpenRun, series: Series, limits: Limits) -> dict[str, str]:
    layers = series.description.layers
    columns = _within(limits.bytes // (len(layers) * _BINS), limits.distributions)
    frames = {layer: answers.distribution(whole.store, series, layer, _ALL, columns) for layer in layers}
    return {layer: _encode(frame) for layer, frame in frames.items()}


def _sequence(
    whole: OpenRun, optimizer: str, version: int, layer: str, series: Series, most: int
) -> list[answers.TimeProfile]:
    """Evenly chosen samples, the last among them."""
    steps = whole.store.samples(series).steps
    chosen = steps[_evenly(len(steps), most)].tolist()
    return [answers.sequence(whole.store, whole.catalogue, optimizer, version, layer, step) for step in chosen]


def _scalar(whole: OpenRun, tag: str, points: int) -> lines.Scalars:
    return lines.scalars(whole.store, whole.run.name, tag, _ALL, points)


def _thinned(samples: Samples, columns: int) -> bytes:
    """Evenly chosen samples of several numbers per layer, one row for each number."""
    places = _evenly(len(samples), columns)
    steps = samples.steps[places].tolist()
    values = samples.values[places].reshape(len(places), -1)
    return encode_frame(values, {"steps": steps, "last_steps": steps})


def _evenly(count: int, most: int) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _within(number: int, most: int) -> int:
    """As many columns as there is room for, but a tenth of the most at least."""
    return min(max(number, most // 10, 1), most)


def _encode(frame: bytes) -> str:
    return b64encode(frame).decode("ascii")
