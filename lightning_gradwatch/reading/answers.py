"""What the tab asks and what it gets: plain dictionaries and frames, from a store. No HTTP here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypedDict

import numpy as np

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.memory_horizon import MEMORY_HORIZON
from lightning_gradwatch.core.quantities.several import HISTOGRAM, HISTOGRAM_BINS, NORM_RANGE
from lightning_gradwatch.core.records import BINS_PER_DECADE, LOWEST, MISSING, NUM_BINS
from lightning_gradwatch.reading import lines
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.damage import Damage
from lightning_gradwatch.reading.dividing import divided, divisors
from lightning_gradwatch.reading.document import Document
from lightning_gradwatch.reading.folding import MOST_ALONE, MOST_ROWS, Row, fold, plain
from lightning_gradwatch.reading.heatmaps import column, columns_of
from lightning_gradwatch.reading.left_out import LeftOut
from lightning_gradwatch.reading.norms import chosen, norms_for
from lightning_gradwatch.reading.run_list import verdict_of
from lightning_gradwatch.reading.samples import Samples, Span
from lightning_gradwatch.reading.schema import (
    UnreadableError,
    decode_histogram,
    encode_frame,
)
from lightning_gradwatch.reading.status import loss_tag, urgency
from lightning_gradwatch.reading.store import Catalogue, MissingError, Series, Store
from lightning_gradwatch.reading.tables import Status, words
from lightning_gradwatch.reading.trials import ShownAlert, shown

DEFAULT_COLUMNS = 1000
MAX_NAMES = 20
_GLANCES = 16
"""Samples, spread over the run, by which it is decided which layers are alike."""
_NOTHING_USED = (-LOWEST * BINS_PER_DECADE, -LOWEST * BINS_PER_DECADE + 1)


class VersionContents(TypedDict):
    """What there is of one list of layers of an optimizer.

    Attributes:
        rows: How layers share rows where there are many, as by ``plain``;
            empty but for the newest list.
        norms: Ways to show a quantity, by its name, the default first; quantities with but one way are left out.
        num_vectors: Layers that can be hidden: normalisation layers, and biases by themselves.
        num_samples: Steps that were observed, of its gradient norm or else of what there is.
    """

    version: int
    layers: list[str]
    rows: list[object]
    norms: dict[str, list[str]]
    num_vectors: int
    first_step: int
    last_step: int
    num_samples: int
    quantities: list[str]
    sequences: list[str]


class OptimizerContents(TypedDict):
    """What there is of an optimizer."""

    name: str
    versions: list[VersionContents]


class View(TypedDict):
    """What a page must know to draw a run.

    Attributes:
        quantities: Words for quantities of the user's own.
        lines: Tags of the lines, by optimizer and name; of the loss only where it was recorded at every step.
        choices: Tags of what can take the place of the loss.
    """

    quantities: dict[str, dict[str, str]]
    lines: dict[str, dict[str, str]]
    choices: list[str]


class Contents(TypedDict):
    """What there is of a run besides its alerts."""

    optimizers: list[OptimizerContents]
    scalars: list[str]
    loss_tag: str | None
    view: View


class RunDocument(Contents):
    """What there is of a run, and its alerts."""

    run: str
    stamp: str
    status: Status
    headline: str
    num_open: int
    alerts: Sequence[AlertRecord]
    num_dropped: int
    damage: Sequence[Damage]
    left_out: Sequence[LeftOut]


class TimeProfile(TypedDict):
    """The gradient of a recurrent layer along its time steps."""

    step: int
    steps_back: list[int]
    norms: list[float]
    horizon: float | None


NO_CONTENTS: Contents = {
    "optimizers": [],
    "scalars": [],
    "loss_tag": None,
    "view": {"quantities": {}, "lines": {}, "choices": []},
}
"""What there is of a run without an event file."""


class Layout(NamedTuple):
    """What decides which layers share rows.

    Attributes:
        norm: How gradient norms are shown; None for the default.
        hides_vectors: Whether normalisation layers and lone biases have a row only if an alert is about them.
        most: Rows at most, as by ``fold``.
    """

    norm: str | None = None
    hides_vectors: bool = False
    most: int = MOST_ROWS


USUAL = Layout()


def run(store: Store, run: str, layout: Layout = USUAL) -> RunDocument:
    """What there is of a run, and its alerts."""
    catalogue = store.catalogue(run)
    document = catalogue.document or Document()
    verdict = verdict_of(catalogue)
    every_step = lines.every_step(store, catalogue)
    losses = [tags["loss"] for tags in every_step.values() if "loss" in tags]
    return {
        "run": run,
        "stamp": catalogue.stamp,
        "status": verdict.status,
        "headline": verdict.headline,
        "num_open": verdict.num_open,
        "alerts": ranked(document.alerts),
        "num_dropped": document.num_dropped,
        "damage": list(catalogue.damage),
        "left_out": list(document.left_out),
        "optimizers": [_optimizer(store, catalogue, name, layout) for name in catalogue.optimizers],
        "scalars": sorted([*catalogue.scalars, *(tag for tags in every_step.values() for tag in tags.values())]),
        "loss_tag": losses[0] if losses else loss_tag(catalogue.scalars),
        "view": _view(catalogue, every_step),
    }


def ranked(alerts: Sequence[AlertRecord]) -> list[ShownAlert]:
    """Alerts as they are shown, in the order in which they come, each with its ``rank``: 0 matters most."""
    worst = sorted(range(len(alerts)), key=lambda place: urgency(alerts[place]))
    ranks = {place: rank for rank, place in enumerate(worst)}
    return [{**shown(alert), "rank": ranks[place]} for place, alert in enumerate(alerts)]


def _view(catalogue: Catalogue, every_step: dict[str, dict[str, str]]) -> View:
    own = [tag for tags in every_step.values() for tag in tags.values()]
    return {
        "quantities": {name: words(quantity) for name, quantity in catalogue.own_quantities.items()},
        "lines": {name: lines.tags_of(catalogue, name, every_step.get(name, {})) for name in catalogue.optimizers},
        "choices": [*own, *(tag for tag in catalogue.scalars if not metrics.is_layer_norm(tag))],
    }


def distribution(store: Store, series: Series, layer: str, span: Span, columns: int) -> bytes:
    """A frame of the log10|g| histograms of one layer, shape ``(columns, bins)``, uint8, over the bins in use."""
    samples = store.samples(series).between(*span)
    first, shares = decode_histogram(samples.values[:, row_of(series, layer)])
    bins = np.zeros((len(samples), NUM_BINS), np.uint8)
    np.put_along_axis(bins, first[:, None] + np.arange(HISTOGRAM_BINS), shares, axis=1)
    used = np.flatnonzero(bins.any(0))
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else _NOTHING_USED
    starts, header = columns_of(samples, columns)
    merged = Samples(samples.steps, bins).merged(starts)
    scale = {"lowest": LOWEST + low / BINS_PER_DECADE, "bins_per_decade": BINS_PER_DECADE}
    return encode_frame(merged[:, low:high], {**header, **scale})


def sequence(store: Store, catalogue: Catalogue, optimizer: str, version: int, layer: str, step: int) -> TimeProfile:
    """The gradient of a recurrent layer along its time steps, and its memory horizon."""
    found = catalogue.sequences(optimizer, version)
    if layer not in found:
        raise MissingError(f"`layer` must be a recurrent layer ({_one_of(found)}), but {layer!r} came.")
    samples = store.samples(found[layer])
    place = samples.place(step)
    steps_back, norms = samples.values[place].T
    horizons = catalogue.of(optimizer, version).get(MEMORY_HORIZON.name)
    horizon = MISSING
    if horizons is not None and layer in horizons.description.layers:
        horizon = column(store, horizons, step)["values"][row_of(horizons, layer)]
    return {
        "step": int(samples.steps[place]),
        "steps_back": steps_back.astype(int).tolist(),
        "norms": norms.tolist(),
        "horizon": None if horizon == MISSING else horizon,
    }


def layer(store: Store, catalogue: Catalogue, optimizer: str, version: int, layer: str, step: int) -> dict[str, object]:
    """Every number of one layer at a step or nearest before it; the steps are those of its gradient norm.

    ``grad_norm_range`` is the smallest, the mean and the largest gradient norm in these steps; in a log from before
    every step was recorded, the smallest, median and largest since the point before. ``grad_norm_rms`` is the gradient
    norm per element, None where the number of elements is not known.
    """
    numbers, columns = {}, {}
    for quantity, series in catalogue.of(optimizer, version).items():
        row = row_of(series, layer)
        if quantity != HISTOGRAM.name and _is_readable(store, series):
            found = columns[quantity] = column(store, series, step)
            numbers[quantity] = found["values"][row]
    if not columns:
        raise MissingError(f"`layer` must have been measured, but of {layer!r} nothing can be read in this run.")
    norm_range = numbers.pop(NORM_RANGE.name, None)
    norms = catalogue.of(optimizer, version).get(GRAD_NORM.name)
    if norms is not None and norms.parts and GRAD_NORM.name in numbers:
        norm_range = _range(store.samples(norms), row_of(norms, layer), step)
    shown = columns.get(GRAD_NORM.name) or max(columns.values(), key=lambda found: found["step"])
    where = {"step": shown["step"], "last_step": shown["last_step"]}
    rms = _per_element(norms, layer, numbers.get(GRAD_NORM.name, MISSING))
    return {**where, "numbers": numbers, NORM_RANGE.name: norm_range, "grad_norm_rms": rms}


def _per_element(norms: Series | None, layer: str, norm: float) -> float | None:
    """The root mean square of a layer's gradient; None if it is not known."""
    elements = () if norms is None else norms.description.elements
    if norms is None or not elements or norm < 0:
        return None
    return norm / math.sqrt(max(elements[row_of(norms, layer)], 1))


def _range(samples: Samples, row: int, step: int) -> list[float] | None:
    place = samples.place(step)
    bins = samples.bins
    return None if bins is None else [float(norms[place, row]) for norms in (bins.low, bins.mean, bins.high)]


def find(catalogue: Catalogue, optimizer: str | None, version: int | None) -> tuple[str, int]:
    """The optimizer and the version that are meant; those left out are the first one and the newest.

    Raises:
        MissingError: If there is no such one.
    """
    optimizers = catalogue.optimizers
    if not optimizers:
        why = catalogue.problem or "GradWatch does not watch it."
        raise MissingError(f"`run` must be a run with layers, but {catalogue.run!r} came, which has none: {why}")
    name = next(iter(optimizers)) if optimizer is None else optimizer
    if name not in optimizers:
        raise MissingError(f"`optimizer` must be {_one_of(optimizers)}, but {name!r} came.")
    number = optimizers[name][-1] if version is None else version
    if number not in optimizers[name]:
        raise MissingError(f"`version` must be {_one_of(optimizers[name])}, but {number} came.")
    return name, number


def series_of(catalogue: Catalogue, optimizer: str, version: int, quantity: str) -> Series:
    """The series of a quantity.

    Raises:
        MissingError: If there is none.
    """
    quantities = catalogue.of(optimizer, version)
    if quantity not in quantities:
        raise MissingError(f"`quantity` must be {_one_of(quantities)}, but {quantity!r} came.")
    return quantities[quantity]


def row_of(series: Series, layer: str) -> int:
    """The row of a layer.

    Raises:
        MissingError: If there is none.
    """
    layers = series.description.layers
    if layer not in layers:
        raise MissingError(f"`layer` must be {_one_of(layers)}, but {layer!r} came.")
    return layers.index(layer)


def _optimizer(store: Store, catalogue: Catalogue, name: str, layout: Layout) -> OptimizerContents:
    numbers = catalogue.optimizers[name]
    layouts = [layout if version == numbers[-1] else None for version in numbers]
    versions = [_version(store, catalogue, name, *which) for which in zip(numbers, layouts, strict=True)]
    return {"name": name, "versions": [version for version in versions if version is not None]}


def _version(
    store: Store, catalogue: Catalogue, optimizer: str, version: int, layout: Layout | None
) -> VersionContents | None:
    quantities = catalogue.of(optimizer, version)
    by_weight = sorted(quantities.values(), key=lambda series: series.description.quantity != GRAD_NORM.name)
    leading = next((series for series in by_weight if _is_readable(store, series)), None)
    if leading is None:
        return None
    samples = store.samples(leading)
    alerts = catalogue.document.alerts if catalogue.document else ()
    return {
        "version": version,
        "layers": list(leading.description.layers),
        "rows": [] if layout is None else plain(rows_of(leading, samples, alerts, layout)),
        "norms": {name: ways for name, one in quantities.items() if (ways := norms_for(one.description))},
        "num_vectors": len(leading.description.vectors),
        "first_step": int(samples.steps[0]),
        "last_step": int(samples.last_steps[-1]),
        "num_samples": int(samples.counts.sum()),
        "quantities": list(quantities),
        "sequences": list(catalogue.sequences(optimizer, version)),
    }


def rows_of(series: Series, samples: Samples, alerts: Iterable[AlertRecord], layout: Layout = USUAL) -> tuple[Row, ...]:
    """How layers share rows. What alerts are about has rows of its own, and what was NaN or infinite.

    Args:
        series: The leading quantity, such as the gradient norm.
        samples: Its samples.
        alerts: Those of the run.
        layout: What else decides it.
    """
    about = series.description
    worst = sorted(alerts, key=urgency)
    sick = [alert["layer"] for alert in worst if alert["layer"] and alert["optimizer"] in ("", about.optimizer)]
    if len(about.layers) > layout.most or layout.hides_vectors:
        sick += [about.layers[place] for place in np.flatnonzero(~np.isfinite(samples.values.max(0)))[:MOST_ALONE]]
    hidden = {about.layers[place] for place in about.vectors} - set(sick) if layout.hides_vectors else set[str]()
    seen = [place for place, name in enumerate(about.layers) if name not in hidden] or range(len(about.layers))
    glances = np.unique(np.linspace(0, len(samples) - 1, _GLANCES).astype(int))
    values = np.median(samples.values[glances], axis=0)
    by = divisors(chosen(about, layout.norm), about, samples)
    values = (values if by is None else divided(values, by)).astype(np.float64)
    return _folded(about.layers, tuple(seen), values.tobytes(), tuple(sick), layout.most)


@lru_cache(maxsize=32)
def _folded(
    layers: tuple[str, ...], seen: tuple[int, ...], values: bytes, sick: tuple[str, ...], most: int
) -> tuple[Row, ...]:
    """The same while nothing has changed, for the page asks again and again."""
    rows = fold([layers[place] for place in seen], np.frombuffer(values)[list(seen)], sick, most)
    return tuple(row.among(seen) for row in rows)


def _is_readable(store: Store, series: Series) -> bool:
    try:
        return len(store.samples(series)) > 0
    except UnreadableError:
        return False


def _one_of(names: Iterable[object]) -> str:
    known = [repr(name) for name in names]
    more = f" and {len(known) - MAX_NAMES} more" if len(known) > MAX_NAMES else ""
    return f"one of {', '.join(known[:MAX_NAMES])}{more}" if known else "there is none"
