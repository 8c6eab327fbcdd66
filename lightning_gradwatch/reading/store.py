"""What GradWatch wrote, read back through TensorBoard's ``DataProvider``, whichever loader is behind it."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorboard.data.provider import DataProvider, RunTagFilter
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS

from lightning_gradwatch.core.metrics import ALERT_DOCUMENT, PLUGIN
from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.quantities.several import SEQUENCE
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.schema import Array, Description, UnreadableError, decode_alerts

ALL_SAMPLES = 1_000_000
"""More than any loader keeps of one series."""
MAX_BYTES = 256 * 2**20
MAX_AGE_SECONDS = 1.0


class MissingError(LookupError):
    """There is no such run, series or layer."""


@dataclass(frozen=True)
class Series:
    """One tag of a run.

    Attributes:
        run: The run.
        tag: The tag.
        description: What it holds.
        last_step: Largest step in it.
        wall_time: When it was last written, in seconds since the epoch.
    """

    run: str
    tag: str
    description: Description
    last_step: int
    wall_time: float


@dataclass(frozen=True)
class Samples:
    """The samples of a series, by rising step.

    Attributes:
        steps: Shape ``(samples,)``, int64.
        values: One entry per sample: an array of shape ``(samples, layers)`` or ``(samples, layers, numbers)``, or for
            ``sequence`` a list of arrays of shape ``(time steps, 2)``.
    """

    steps: Array
    values: Any

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        parts = self.values if isinstance(self.values, list) else [self.values]
        return int(self.steps.nbytes + sum(part.nbytes for part in parts))

    def __len__(self) -> int:
        return len(self.steps)

    def place(self, step: int) -> int:
        """The place of the sample at ``step``, or else of the nearest before it, or else of the first."""
        return max(int(np.searchsorted(self.steps, step, side="right")) - 1, 0)

    def between(self, first: int | None, last: int | None) -> Samples:
        """Those from step ``first`` to step ``last``, both included; None for an open end."""
        start = 0 if first is None else int(np.searchsorted(self.steps, first, side="left"))
        end = len(self.steps) if last is None else int(np.searchsorted(self.steps, last, side="right"))
        return Samples(self.steps[start:end], self.values[start:end])


@dataclass(frozen=True)
class Document:
    """The alerts of a run.

    Attributes:
        alerts: As dictionaries, the oldest first.
        num_dropped: How many older ones are left out.
        problem: Why they cannot be read; ``""`` if all is well.
    """

    alerts: Sequence[AlertRecord] = ()
    num_dropped: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Catalogue:
    """What there is of one run.

    Attributes:
        run: The run.
        series: What GradWatch wrote, but for the alerts.
        scalars: Tags of all scalars, sorted.
        document: The alerts; None if there is no document of them.
        problem: Why a series cannot be read; ``""`` if all is well.
        last_step: Largest step of anything; None if there is nothing.
        wall_time: When anything was last written, in seconds since the epoch; 0 if there is nothing.
        stamp: Changes whenever anything was written.
    """

    run: str
    series: tuple[Series, ...]
    scalars: tuple[str, ...]
    document: Document | None
    problem: str
    last_step: int | None
    wall_time: float
    stamp: str

    @property
    def is_watched(self) -> bool:
        """Whether GradWatch has written anything."""
        return bool(self.series or self.document or self.problem)

    @property
    def optimizers(self) -> dict[str, list[int]]:
        """Names of the optimizers, with the versions of their lists of layers."""
        found: dict[str, set[int]] = {}
        for series in self.series:
            found.setdefault(series.description.optimizer, set()).add(series.description.version)
        return {name: sorted(versions) for name, versions in sorted(found.items())}

    @property
    def own_quantities(self) -> dict[str, Quantity]:
        """Quantities of the user's own, as the run declares them."""
        declared = [series.description.declaration for series in self.series]
        return {quantity.name: quantity for quantity in declared if quantity is not None}

    def of(self, optimizer: str, version: int) -> dict[str, Series]:
        """The series with one row per layer, by their quantity."""
        return {s.description.quantity: s for s in self._all(optimizer, version) if s.description.quantity != SEQUENCE}

    def sequences(self, optimizer: str, version: int) -> dict[str, Series]:
        """The series along time steps, by their layer."""
        found = [s for s in self._all(optimizer, version) if s.description.quantity == SEQUENCE]
        return {s.description.layers[0]: s for s in found}

    def _all(self, optimizer: str, version: int) -> list[Series]:
        here = (optimizer, version)
        return [s for s in self.series if (s.description.optimizer, s.description.version) == here]


class Cache:
    """Keeps what was decoded, what was used last the longest, within a number of bytes. Safe between threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock, self._listing = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, Samples]] = OrderedDict()
        self._listings: dict[Hashable, tuple[float, dict[str, Catalogue]]] = {}
        self.num_bytes = 0

    def get(self, key: Hashable, state: Hashable) -> Samples | None:
        """What was kept under a key in this state."""
        with self._lock:
            kept_state, samples = self._kept.get(key, (None, None))
            if samples is None or kept_state != state:
                return None
            self._kept.move_to_end(key)
            return samples

    def put(self, key: Hashable, state: Hashable, samples: Samples) -> None:
        """Keep it, instead of what was kept under this key."""
        with self._lock:
            self._drop(key)
            self._kept[key] = (state, samples)
            self.num_bytes += samples.num_bytes
            while self.num_bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))

    def recent(self, key: Hashable, make: Callable[[], dict[str, Catalogue]]) -> dict[str, Catalogue]:
        """A listing, made anew if it is older than a second: a page asks for much at once."""
        with self._listing:
            made_at, listing = self._listings.get(key, (-math.inf, {}))
            if time.monotonic() - made_at > MAX_AGE_SECONDS:
                listing = make()
                self._listings = {key: (time.monotonic(), listing)}
            return listing

    def _drop(self, key: Hashable) -> None:
        if key in self._kept:
            self.num_bytes -= self._kept.pop(key)[1].num_bytes


class Store:
    """One experiment, as TensorBoard's data provider knows it at present.

    Args:
        provider: TensorBoard's source of data.
        context: The ``RequestContext`` that the provider asks for.
        experiment: Name of the experiment; ``""`` for the local one.
        cache: What to keep between requests.
    """

    def __init__(self, provider: DataProvider, context: Any, experiment: str = "", cache: Cache | None = None) -> None:
        self._provider = provider
        self._where = {"ctx": context, "experiment_id": experiment}
        self._experiment = experiment
        self._cache = cache or Cache()

    def catalogues(self) -> dict[str, Catalogue]:
        """What there is of every run that TensorBoard knows; at most a second old."""
        return self._cache.recent(self._experiment, self._survey)

    def catalogue(self, run: str) -> Catalogue:
        """What there is of a run.

        Raises:
            MissingError: If TensorBoard does not know it.
        """
        found = self.catalogues()
        if run not in found:
            raise MissingError(f"`run` must be a run that TensorBoard knows, but {run!r} came: see /runs for the list.")
        return found[run]

    def _survey(self) -> dict[str, Catalogue]:
        runs = [run.run_name for run in self._provider.list_runs(**self._where)]
        ours = self._provider.list_tensors(plugin_name=PLUGIN, **self._where)
        scalars = self._provider.read_last_scalars(plugin_name=SCALARS, **self._where)
        documents = self._documents([run for run in runs if ALERT_DOCUMENT in ours.get(run, {})])
        return {run: _catalogue(run, ours.get(run, {}), scalars.get(run, {}), documents.get(run)) for run in runs}

    def _documents(self, runs: list[str]) -> dict[str, Document]:
        """The latest documents of alerts; together if they are sound, one by one if one of them is not."""
        try:
            found = self._read(runs, ALERT_DOCUMENT, 1)
        except UnreadableError as problem:
            if len(runs) == 1:
                return {runs[0]: Document(problem=str(problem))}
            return {run: document for one in runs for run, document in self._documents([one]).items()}
        return {run: _document(data[-1].numpy) for run, data in found.items() if data}

    def samples(self, series: Series) -> Samples:
        """The readable samples of a series.

        A step that comes again, or lies before one that came already, starts the rest of the run anew, as after a
        resume from an earlier checkpoint: what was written from there on before is left out.

        Raises:
            UnreadableError: If none can be read.
        """
        key, state = (self._experiment, series.run, series.tag), (series.last_step, series.wall_time)
        kept = self._cache.get(key, state)
        if kept is None:
            kept = self._decode(series)
            self._cache.put(key, state, kept)
        return kept

    def scalars(self, run: str, tag: str) -> Samples:
        """A scalar of a run, of shape ``(samples,)``.

        Raises:
            MissingError: If there is no such tag.
        """
        chosen = RunTagFilter(runs=[run], tags=[tag])
        found = self._provider.read_scalars(
            plugin_name=SCALARS, downsample=ALL_SAMPLES, run_tag_filter=chosen, **self._where
        )
        data = found.get(run, {}).get(tag)
        if not data:
            raise MissingError(f"`tag` must be a scalar of the run {run!r}, but {tag!r} came: see /run for the list.")
        steps = np.array([datum.step for datum in data])
        kept = latest_course(steps)
        return Samples(steps[kept], np.array([datum.value for datum in data])[kept])

    def _decode(self, series: Series) -> Samples:
        data = self._read([series.run], series.tag, ALL_SAMPLES).get(series.run, [])
        data = [datum for datum in data if series.description.fits(datum.numpy)]
        if not data:
            raise UnreadableError(f"The series {series.tag!r} of the run {series.run!r} holds no readable sample.")
        steps = np.array([datum.step for datum in data])
        kept = latest_course(steps)
        values = [datum.numpy for datum, is_kept in zip(data, kept, strict=True) if is_kept]
        return Samples(steps[kept], values if series.description.quantity == SEQUENCE else np.stack(values))

    def _read(self, runs: list[str], tag: str, num_samples: int) -> dict[str, list[Any]]:
        chosen = RunTagFilter(runs=runs, tags=[tag])
        try:
            found = self._provider.read_tensors(
                plugin_name=PLUGIN, downsample=num_samples, run_tag_filter=chosen, **self._where
            )
        except (KeyError, TypeError, ValueError) as failure:  # a tensor whose bytes do not fit its shape or dtype
            raise UnreadableError(f"The series {tag!r} of the run {runs[0]!r} is damaged: {failure}.") from None
        return {run: list(tags[tag]) for run, tags in found.items() if tag in tags}


def latest_course(steps: Array) -> Array:
    """Which samples, in the order in which they were written, none with the same or an earlier step comes after.

    Returns:
        Shape ``(samples,)``, bool; the steps of these rise.
    """
    later = np.minimum.accumulate(steps[::-1])[::-1]
    return np.append(steps[:-1] < later[1:], True)


def _document(values: Array) -> Document:
    text = values.reshape(-1)[:1].tolist()
    try:
        if not text or not isinstance(text[0], (bytes, str)):
            raise UnreadableError("The document of the alerts is damaged: it is no text.")
        return Document(**decode_alerts(text[0]))
    except UnreadableError as problem:
        return Document(problem=str(problem))


def _catalogue(
    run: str, tensors: Mapping[str, Any], scalars: Mapping[str, Any], document: Document | None
) -> Catalogue:
    series, problems = [], []
    for tag, found in sorted(tensors.items()):
        try:
            description = Description.decode(found.plugin_content)
            series.append(Series(run, tag, description, found.max_step, found.max_wall_time))
        except UnreadableError as problem:
            problems.append(str(problem))
    times = [(found.max_step, found.max_wall_time) for found in tensors.values()]
    times += [(last.step, last.wall_time) for last in scalars.values()]
    last_step = max((step for step, _ in times), default=None)
    wall_time = max((wall_time for _, wall_time in times), default=0.0)
    return Catalogue(
        run=run,
        series=tuple(s for s in series if s.tag != ALERT_DOCUMENT),
        scalars=tuple(sorted(scalars)),
        document=document,
        problem=problems[0] if problems else "",
        last_step=last_step,
        wall_time=wall_time,
        # the data server takes in one series after the other: each of them must change the stamp
        stamp=f"{len(times)}-{last_step}-{wall_time!r}-{sum(step for step, _ in times)}",
    )
