"""What GradWatch wrote, read back through TensorBoard's ``DataProvider``, whichever loader is behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
from tensorboard.data.provider import DataProvider, RunTagFilter
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS

from lightning_gradwatch.core.metrics import ALERT_DOCUMENT, PLUGIN, steps_tag
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.quantities.several import IN_BINS, SEQUENCE, STEPS_AROUND
from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.cache import Cache
from lightning_gradwatch.reading.damage import Damage, Inspect
from lightning_gradwatch.reading.document import Document, document_of
from lightning_gradwatch.reading.samples import Samples, Shared, latest_course
from lightning_gradwatch.reading.schema import Description, UnreadableError
from lightning_gradwatch.reading.steps import Part, put_together

ALL_SAMPLES = 1_000_000
"""More than any loader keeps of one series."""
_Kept = TypeVar("_Kept", Samples, Part, Shared)
_Tags = Mapping[str, Any]


class MissingError(LookupError):
    """There is no such run, series or layer."""


@dataclass(frozen=True)
class Series:
    """One tag of a run, or several that belong together.

    Attributes:
        run: The run.
        tag: The tag.
        description: What it holds.
        last_step: Largest step in it.
        wall_time: When it was last written, in seconds since the epoch.
        parts: The tags that hold the norms of every step: see ``with_steps``. Empty for a series of its own.
    """

    run: str
    tag: str
    description: Description
    last_step: int
    wall_time: float
    parts: tuple[Series, ...] = ()

    @property
    def state(self) -> tuple[object, ...]:
        """Changes whenever something was written to it."""
        return self.last_step, self.wall_time, *(part.state for part in self.parts)


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
        damage: What of its files cannot be read, as far as is known.
    """

    run: str
    series: tuple[Series, ...]
    scalars: tuple[str, ...]
    document: Document | None
    problem: str
    last_step: int | None
    wall_time: float
    stamp: str
    damage: tuple[Damage, ...] = ()

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

    @property
    def lines(self) -> dict[str, tuple[str, str]]:
        """Numbers of the run that stand beside the norms of every step: optimizer and name, by the tag they go by."""
        found = [(s.description.optimizer, name) for s in self.series if s.parts for name in s.description.lines]
        return {steps_tag(name, optimizer): (optimizer, name) for optimizer, name in found}

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


class Store:
    """One experiment, as TensorBoard's data provider knows it at present.

    Args:
        provider: TensorBoard's source of data.
        context: The ``RequestContext`` that the provider asks for.
        experiment: Name of the experiment; ``""`` for the local one.
        cache: What to keep between requests.
        inspect: Tells what of the files cannot be read, which the provider does not; None if nobody knows.
    """

    def __init__(
        self,
        provider: DataProvider,
        context: Any,
        experiment: str = "",
        cache: Cache | None = None,
        inspect: Inspect | None = None,
    ) -> None:
        self._provider = provider
        self._inspect = inspect
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
        ours = self._provider.list_tensors(plugin_name=PLUGIN, **self._where)
        runs = self._runs(ours)
        scalars = self._last_scalars(runs)
        documents = self._documents([run for run in runs if ALERT_DOCUMENT in ours.get(run, {})])
        damage = {} if self._inspect is None else self._inspect(runs)
        return {
            run: _catalogue(run, ours.get(run, {}), scalars.get(run, {}), documents.get(run), damage.get(run, ()))
            for run in dict.fromkeys([*runs, *damage])
        }

    def _runs(self, ours: Mapping[str, Any]) -> list[str]:
        try:
            return [run.run_name for run in self._provider.list_runs(**self._where)]
        except OSError:  # TensorBoard opens the files of a run in which it has found nothing, and one cannot be read
            return list({**ours, **self._provider.list_scalars(plugin_name=SCALARS, **self._where)})

    def _last_scalars(self, runs: list[str]) -> Mapping[str, Any]:
        """The latest of each scalar; together if they are sound, one run after the other if one holds what is none."""
        chosen = RunTagFilter(runs=runs)
        try:
            return dict(self._provider.read_last_scalars(plugin_name=SCALARS, run_tag_filter=chosen, **self._where))
        except (TypeError, ValueError):
            return {} if len(runs) == 1 else {k: v for one in runs for k, v in self._last_scalars([one]).items()}

    def _documents(self, runs: list[str]) -> dict[str, Document]:
        """The latest documents of alerts; together if they are sound, one by one if one of them is not."""
        try:
            found = self._read(runs, ALERT_DOCUMENT, 1)
        except UnreadableError as problem:
            if len(runs) == 1:
                return {runs[0]: Document(problem=str(problem))}
            return {run: document for one in runs for run, document in self._documents([one]).items()}
        return {run: document_of(data[-1].numpy) for run, data in found.items() if data}

    def samples(self, series: Series) -> Samples:
        """The readable samples of a series.

        A step that comes again, or lies before one that came already, starts the rest of the run anew, as after a
        resume from an earlier checkpoint: what was written from there on before is left out.

        Raises:
            UnreadableError: If none can be read.
        """
        return self.kept("samples", series, self._put_together if series.parts else self._decode)

    def scalars(self, run: str, tag: str) -> Samples:
        """A scalar of a run, of shape ``(samples,)``; or a number that stands beside the norms of every step.

        Raises:
            MissingError: If there is no such tag.
        """
        lines = self.catalogue(run).lines
        if tag in lines:
            return self._line(run, *lines[tag])
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

    def kept(self, kind: str, series: Series, make: Callable[[Series], _Kept]) -> _Kept:
        """What was made of a series, made anew only if something was written to it since."""
        key = (self._experiment, kind, series.run, series.tag)
        kept = cast("_Kept | None", self._cache.get(key, series.state))
        if kept is None:
            kept = make(series)
            self._cache.put(key, series.state, kept)
        return kept

    def _put_together(self, series: Series) -> Samples:
        """The norms of every step from the tags that hold them; of a long series most do not change any more."""
        parts, around = list[Part](), list[Part]()
        newest = max(series.parts, key=lambda part: (part.description.quantity != STEPS_AROUND, part.wall_time))
        for part in series.parts:
            with contextlib.suppress(UnreadableError):
                # the newest part is going to change: to keep it would help nobody
                found = self._decode_part(part) if part is newest else self.kept("part", part, self._decode_part)
                (around if part.description.quantity == STEPS_AROUND else parts).append(found)
        if not parts and not around:
            raise _unreadable(series)
        return Samples.of_norms(put_together(parts, around, series.description.lines))

    def _line(self, run: str, optimizer: str, name: str) -> Samples:
        """A number of the run from its first value on, over all lists of layers that its optimizer has had."""
        found = []
        for series in sorted(self.catalogue(run).series, key=lambda one: one.description.version):
            about = series.description
            if series.parts and about.optimizer == optimizer and name in about.lines:
                with contextlib.suppress(UnreadableError):
                    if (bins := self.samples(series).bins) is not None:
                        found.append(Samples.of_line(bins, about.lines.index(name)).bins)
        if not found:
            raise MissingError(f"`tag` must be readable, but of {name!r} nothing can be read in the run {run!r}.")
        # where two lists of layers know of the same step, the later one counts
        bins = Bins.joined([bins for bins in found if bins is not None])
        order = np.argsort(bins.first, kind="stable")
        bins = bins[order[np.diff(bins.first[order], append=np.iinfo(np.int64).max) > 0]]
        # what is not known before is no NaN of the run
        known = np.flatnonzero(np.isfinite(bins.lines[:, 0, 1]))
        return Samples.of_line(bins[known[0] :] if len(known) else bins[:0], 0)

    def _decode(self, series: Series) -> Samples:
        data = self._fitting(series)
        steps = np.array([datum.step for datum in data])
        kept = latest_course(steps)
        values = [datum.numpy for datum, is_kept in zip(data, kept, strict=True) if is_kept]
        return Samples(steps[kept], values if series.description.quantity == SEQUENCE else np.stack(values))

    def _decode_part(self, series: Series) -> Part:
        """Norms of steps as they were written; those of before there were bins are bins of one step."""
        about, found = series.description, []
        data = self._fitting(series)
        times = np.maximum.accumulate([datum.wall_time for datum in data])
        if about.quantity not in IN_BINS:
            steps, norms = np.array([datum.step for datum in data]), np.stack([datum.numpy for datum in data])
            return Part(Bins.of_steps(steps, norms, np.empty((len(data), 0), np.float32)), times)
        for datum, time in zip(data, times, strict=True):
            with contextlib.suppress(UnreadableError):
                found.append((Bins.decode(datum.numpy.tobytes(), len(about.layers), len(about.lines)), time))
        if not found:
            raise _unreadable(series)
        bins = Bins.joined([bins for bins, _ in found])
        written = np.repeat([time for _, time in found], [len(bins) for bins, _ in found])
        return Part(bins.merged(starts := bins.starts()), written[starts], about.lines)

    def _fitting(self, series: Series) -> list[Any]:
        """The samples of a tag that can be what its description says, in the order in which they were written."""
        data = self._read([series.run], series.tag, ALL_SAMPLES).get(series.run, [])
        data = [datum for datum in data if series.description.fits(datum.numpy)]
        if not data:
            raise _unreadable(series)
        return data

    def _read(self, runs: list[str], tag: str, num_samples: int) -> dict[str, list[Any]]:
        chosen = RunTagFilter(runs=runs, tags=[tag])
        try:
            found = self._provider.read_tensors(
                plugin_name=PLUGIN, downsample=num_samples, run_tag_filter=chosen, **self._where
            )
        except (KeyError, TypeError, ValueError) as failure:  # a tensor whose bytes do not fit its shape or dtype
            raise UnreadableError(f"The series {tag!r} of the run {runs[0]!r} is damaged: {failure}.") from None
        return {run: list(tags[tag]) for run, tags in found.items() if tag in tags}


def _unreadable(series: Series) -> UnreadableError:
    return UnreadableError(f"The series {series.tag!r} of the run {series.run!r} holds no readable sample.")


def with_steps(series: Sequence[Series]) -> tuple[Series, ...]:
    """All series, in which those that hold norms of every step are one for each list of layers.

    They are the parts of a long series, the single steps around alerts, and the samples of before there were bins.
    """
    groups: dict[tuple[str, int], list[Series]] = {}
    for one in series:
        if one.description.quantity in (GRAD_NORM.name, *IN_BINS):
            groups.setdefault((one.description.optimizer, one.description.version), []).append(one)
    together = [group for group in groups.values() if any(one.description.quantity in IN_BINS for one in group)]
    taken = {one.tag for group in together for one in group}
    return *map(_joined, together), *(one for one in series if one.tag not in taken)


def _joined(group: Sequence[Series]) -> Series:
    newest = max(group, key=lambda s: (s.description.quantity in IN_BINS, any(s.description.elements), s.wall_time))
    parts = tuple(one for one in group if one.description.layers == newest.description.layers)
    lines = tuple(dict.fromkeys(name for part in parts for name in part.description.lines))
    return Series(
        run=newest.run,
        tag=newest.tag,
        description=replace(newest.description, quantity=GRAD_NORM.name, lines=lines),
        last_step=max(part.last_step for part in parts),
        wall_time=max(part.wall_time for part in parts),
        parts=parts,
    )


def _catalogue(
    run: str, tensors: _Tags, scalars: _Tags, document: Document | None, damage: Sequence[Damage] = ()
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
        series=with_steps([s for s in series if s.tag != ALERT_DOCUMENT]),
        scalars=tuple(sorted(scalars)),
        document=document,
        problem=problems[0] if problems else "",
        last_step=last_step,
        wall_time=wall_time,
        # the data server takes in one series after the other: each of them must change the stamp
        stamp=f"{len(times)}-{last_step}-{wall_time!r}-{sum(step for step, _ in times)}"
        + "".join(f"-{part['unread_bytes']}" for part in damage),
        damage=tuple(damage),
    )
