"""All that is known of the layers around one step, as ``gradwatch snapshot --json`` prints it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lightning_gradwatch.cli.logs import OpenRun
from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.quantities import BY_NAME
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.several import HISTOGRAM, NORM_RANGE
from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.reading.answers import VersionContents
from lightning_gradwatch.reading.percentiles import percentiles
from lightning_gradwatch.reading.samples import Samples
from lightning_gradwatch.reading.schema import plain
from lightning_gradwatch.reading.store import MissingError


def span(run: OpenRun) -> tuple[int, int] | None:
    """The first and the last step of which layers are known; None if there is none."""
    versions = [version for optimizer in run.document["optimizers"] for version in optimizer["versions"]]
    if not versions:
        return None
    return min(v["first_step"] for v in versions), max(v["last_step"] for v in versions)


def around(run: OpenRun, step: int) -> list[dict[str, Any]]:
    """What is known of each optimizer's layers at a step, or else nearest to it.

    Numbers that were taken for several steps stand for all of them. NaN and infinity are the words ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``; None is "no gradient" or "not observed".

    Returns:
        Of each optimizer ``name``, ``version`` (of its list of layers), ``numbers`` (of the run, by name: ``low``,
        ``mean`` and ``high``, with the steps for which they stand), ``samples`` (the steps for which the values of each
        quantity stand) and ``layers``, the input end first: ``layer``, ``values`` by quantity (of several steps the
        largest), ``grad_norm_range`` (``low``, ``mean`` and ``high`` of these steps) and ``histogram`` (sizes of the
        gradient's elements, see ``percentiles``). Steps are ``step`` and
        ``last_step``, both included, and ``num_steps``, those of them that were observed.
    """
    found = []
    for optimizer in run.document["optimizers"]:
        if optimizer["versions"]:
            found.append(plain(_optimizer(run, optimizer["name"], _version_at(optimizer["versions"], step), step)))
    return found


def _version_at(versions: list[VersionContents], step: int) -> VersionContents:
    """The newest list of layers that was there at a step; the first one if it is from before all of them."""
    begun = [version for version in versions if version["first_step"] <= step]
    return begun[-1] if begun else versions[0]


def _optimizer(run: OpenRun, name: str, version: VersionContents, step: int) -> dict[str, object]:
    series = run.quantities(name, version["version"])
    samples = {quantity: run.store.samples(one) for quantity, one in series.items() if quantity != NORM_RANGE.name}
    order = [*BY_NAME, *(own for own in samples if own not in BY_NAME)]
    chosen = {quantity: _at(samples[quantity], step) for quantity in order if quantity in samples}
    return {
        "name": name,
        "version": version["version"],
        "numbers": dict(_numbers(run, name, step)),
        "samples": {quantity: _steps(one) for quantity, one in chosen.items()},
        "layers": [_layer(layer, row, chosen) for row, layer in enumerate(version["layers"])],
    }


def _at(samples: Samples, step: int) -> Samples:
    """One sample alone."""
    place = samples.nearest(step)
    chosen = slice(place, place + 1)
    return Samples(
        samples.steps[chosen], samples.values[chosen], None if samples.bins is None else samples.bins[chosen]
    )


def _steps(one: Samples) -> dict[str, int]:
    return {"step": int(one.steps[0]), "last_step": int(one.last_steps[0]), "num_steps": int(one.counts[0])}


def _layer(layer: str, row: int, chosen: dict[str, Samples]) -> dict[str, object]:
    values = {quantity: _known(one.values[0, row]) for quantity, one in chosen.items() if quantity != HISTOGRAM.name}
    norms, histogram = chosen.get(GRAD_NORM.name), chosen.get(HISTOGRAM.name)
    ends = None
    if norms is not None:
        bins = norms.bins
        parts = (norms.values,) * 3 if bins is None else (bins.low, bins.mean, bins.high)
        ends = dict(zip(("low", "mean", "high"), (_known(part[0, row]) for part in parts), strict=True))
    return {
        "layer": layer,
        "values": values,
        NORM_RANGE.name: ends,
        "histogram": None if histogram is None else percentiles(histogram.values[0, row]),
    }


def _known(value: float) -> float | None:
    return None if value == MISSING else float(value)


def _numbers(run: OpenRun, optimizer: str, step: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Numbers of the run; rather those of every step than those that a logger wrote now and then."""
    written = {"total_norm": metrics.run_level_tag("total_norm", optimizer), "loss": run.document["loss_tag"]}
    tags = {name: tag for name, tag in written.items() if tag in run.document["scalars"]}
    tags |= {name: tag for tag, (whose, name) in run.catalogue.lines.items() if whose == optimizer}
    for name, tag in tags.items():
        with contextlib.suppress(MissingError):
            samples = run.store.scalars(run.run.name, str(tag))
            if len(samples):
                yield name, _number(_at(samples, step))


def _number(one: Samples) -> dict[str, float]:
    low, mean, high = one.values.repeat(3) if one.bins is None else one.bins.lines[0, 0]
    return {**_steps(one), "low": float(low), "mean": float(mean), "high": float(high)}
