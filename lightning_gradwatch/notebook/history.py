"""The recorded numbers of a run as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.cli.logs import OpenRun
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.quantities import BY_NAME
from lightning_gradwatch.core.quantities.several import HISTOGRAM, HISTOGRAM_BINS, SEVERAL
from lightning_gradwatch.core.records import BINS_PER_DECADE, LOWEST, NUM_BINS
from lightning_gradwatch.reading.samples import Samples
from lightning_gradwatch.reading.schema import Array, decode_histogram
from lightning_gradwatch.reading.store import Series

if TYPE_CHECKING:
    import pandas

_NO_PANDAS = "`to_pandas` needs pandas, which is not installed. To cure it: pip install pandas"


@dataclass(frozen=True)
class Recorded:
    """A quantity over the steps. Later samples may stand for several steps.

    Attributes:
        steps: Step of each sample, or the first one that it stands for; shape ``(samples,)``, int64.
        last_steps: The last step that each stands for; same shape.
        values: Of several steps the largest norm, or the mean of a number of the run; shape ``(samples, layers)``, or
            ``(samples,)`` for a number of the run. -1 is "no gradient" or "not observed".
        lows: The smallest of these steps; same shape.
        means: The mean of these steps, of norms in the logarithm; same shape.
        highs: The largest of these steps; same shape.
    """

    steps: Array
    last_steps: Array
    values: Array
    lows: Array
    means: Array
    highs: Array

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values.shape))
        span = f"steps {self.steps[0]:,} to {self.last_steps[-1]:,}" if len(self.steps) else "no step"
        return f"Recorded({shape} numbers, {span})"


@dataclass(frozen=True)
class Distributions:
    """The distribution of log10|g| of one layer over the steps.

    Attributes:
        steps: Step of each sample with a histogram, shape ``(samples,)``, int64.
        edges: Edges of the bins, in decades; shape ``(bins + 1,)``.
        shares: Share of the layer's non-zero, finite elements in each bin, shape ``(samples, bins)``.
    """

    steps: Array
    edges: Array
    shares: Array


@dataclass(frozen=True, repr=False)
class History:
    """What was recorded of one optimizer's layers, as it stood when this was made; made by ``watch.history``.

    Attributes:
        optimizers: Names of all optimizers; ``""`` for a single one.
        optimizer: The one whose layers these are.
        layers: Their names, the input end first: the columns of the values.
        quantities: Numbers of each layer by the name of the quantity, such as ``grad_norm``.
        numbers: Numbers of the run by name, such as ``loss``, ``total_norm`` and, where ``auto_clip`` clips,
            ``clip_coefficient`` and ``clip_threshold``.
    """

    optimizers: tuple[str, ...] = ()
    optimizer: str = ""
    layers: tuple[str, ...] = ()
    quantities: dict[str, Recorded] = field(default_factory=dict)
    numbers: dict[str, Recorded] = field(default_factory=dict)
    _opened: OpenRun | None = None
    _version: int = 0

    def of(self, optimizer: str) -> History:
        """The same of another optimizer.

        Raises:
            ValueError: If there is none of this name.
        """
        if optimizer not in self.optimizers or self._opened is None:
            names = ", ".join(map(repr, self.optimizers)) or "one that has stepped"
            raise refuse("optimizer", f"one of {names}", optimizer, "take a name from `watch.history.optimizers`")
        return read(self._opened, optimizer)

    def histogram(self, layer: str) -> Distributions:
        """The distribution of the logarithm of one layer's gradient.

        Raises:
            ValueError: If there is no such layer, or no histogram yet.
        """
        if layer not in self.layers:
            raise refuse("layer", "a layer that is watched", layer, "take a name from `watch.history.layers`")
        found = None if self._opened is None else self._series().get(HISTOGRAM.name)
        if self._opened is None or found is None:
            raise refuse("layer", "a layer with a histogram", layer, "train longer, or set `histogram_every` above 0")
        samples = self._opened.store.samples(found)
        first, shares = decode_histogram(samples.values[:, self.layers.index(layer)])
        counts = np.zeros((len(samples), NUM_BINS))
        np.put_along_axis(counts, first[:, None] + np.arange(HISTOGRAM_BINS), (shares / 255.0) ** 2, axis=1)
        used = np.flatnonzero(counts.any(0))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        edges = LOWEST + np.arange(low, high + 1) / BINS_PER_DECADE
        return Distributions(samples.steps, edges, counts[:, low:high])

    def to_pandas(self) -> pandas.DataFrame:
        """All numbers in one long table: ``quantity``, ``layer``, ``step``, ``last_step``, ``value``.

        Numbers of the run have the layer ``""``.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise ModuleNotFoundError(_NO_PANDAS) from None
        columns = ("quantity", "layer", "step", "last_step", "value")
        tables = [_table(name, self.layers, known) for name, known in self.quantities.items()]
        tables += [_table(name, ("",), known) for name, known in self.numbers.items()]
        joined = (
            [np.concatenate(parts) for parts in zip(*tables, strict=True)] if tables else [np.empty(0)] * len(columns)
        )
        return pandas.DataFrame(dict(zip(columns, joined, strict=True)))

    def __repr__(self) -> str:
        if not self.quantities:
            return "History: nothing was recorded yet."
        whose = f" of {self.optimizer}" if self.optimizer else ""
        lines = [f"History{whose}: {len(self.layers)} layers"]
        lines += [f"  {name}: {known!r}" for name, known in (*self.quantities.items(), *self.numbers.items())]
        return "\n".join(lines)

    def _series(self) -> dict[str, Series]:
        return {} if self._opened is None else self._opened.quantities(self.optimizer, self._version)


def read(run: OpenRun | None, optimizer: str | None = None) -> History:
    """The history of an optimizer's newest list of layers.

    Args:
        run: The run; None for one without a step.
        optimizer: Its name; None for the first one.
    """
    known = [] if run is None else [one for one in run.document["optimizers"] if one["versions"]]
    if run is None or not known:
        return History()
    chosen = next((one for one in known if one["name"] == optimizer), known[0])
    name, version = chosen["name"], chosen["versions"][-1]
    series = run.quantities(name, version["version"])
    order = [*BY_NAME, *(own for own in series if own not in BY_NAME)]
    shown = [quantity for quantity in order if quantity in series and quantity not in SEVERAL]
    tags = {number: tag for tag, (whose, number) in run.catalogue.lines.items() if whose == name}
    return History(
        optimizers=tuple(one["name"] for one in known),
        optimizer=name,
        layers=tuple(version["layers"]),
        quantities={quantity: _norms(run.store.samples(series[quantity])) for quantity in shown},
        numbers={number: _numbers(run.store.scalars(run.run.name, tag)) for number, tag in tags.items()},
        _opened=run,
        _version=version["version"],
    )


def _norms(samples: Samples) -> Recorded:
    bins, values = samples.bins, samples.values
    low, mean, high = (values, values, values) if bins is None else (bins.low, bins.mean, bins.high)
    return Recorded(samples.steps, samples.last_steps, values, low, mean, high)


def _numbers(samples: Samples) -> Recorded:
    assert samples.bins is not None
    low, mean, high = samples.bins.lines[:, 0].T
    return Recorded(samples.steps, samples.last_steps, mean, low, mean, high)


def _table(name: str, layers: tuple[str, ...], known: Recorded) -> tuple[Array, ...]:
    """A quantity as columns, all steps of a layer after one another."""
    num = len(known.steps)
    return (
        np.repeat(np.array([name], dtype=object), num * len(layers)),
        np.repeat(np.array(layers, dtype=object), num),
        np.tile(known.steps, len(layers)),
        np.tile(known.last_steps, len(layers)),
        known.values.reshape(num, -1).T.ravel(),
    )
