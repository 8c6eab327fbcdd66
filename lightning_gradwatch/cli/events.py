"""Event files, read in this process for TensorBoard's own data provider: no server, no thread."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from tensorboard import data_compat, dataclass_compat
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_accumulator import TENSORS
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.context import RequestContext
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS

from lightning_gradwatch.core.metrics import PLUGIN
from lightning_gradwatch.paths import Place
from lightning_gradwatch.reading.damage import Damage, unintelligible
from lightning_gradwatch.reading.event_file import EventFile
from lightning_gradwatch.reading.store import Store
from lightning_gradwatch.tensorboard.loader import SAMPLES

_MAX_RETRIES = 2


class RunEvents:
    """The events of one run, in the place of TensorBoard's own loader of a directory.

    Args:
        directory: Where its event files lie.
    """

    def __init__(self, directory: Place) -> None:
        self._failure: Exception | None = None
        self._directory = directory
        self._files: dict[str, EventFile] = {}
        self._described: dict[str, object] = {}

    def look(self, names: Iterable[str]) -> None:
        """Learn which event files there are."""
        for name in names:
            if name not in self._files:
                self._files[name] = EventFile(str(self._directory / name))

    def stop(self, failure: Exception) -> None:
        """Give no more events, because the last one could not be taken in."""
        self._failure = failure

    def Load(self) -> Iterator[Event]:  # noqa: N802 - the name by which TensorBoard's accumulator asks
        """What has been written since."""
        for _, file in sorted(self._files.items()) if self._failure is None else ():
            for event in file.read():
                yield from dataclass_compat.migrate_event(data_compat.migrate_event(event), self._described)

    @property
    def is_replaced(self) -> bool:
        """Whether a file is another one now."""
        return any(file.is_replaced for file in self._files.values())

    @property
    def damage(self) -> tuple[Damage, ...]:
        """What of its files cannot be read."""
        found = [file.damage for _, file in sorted(self._files.items())]
        found += [unintelligible(self._failure)] if self._failure is not None else []
        return tuple(damage for damage in found if damage is not None)


class EventReader:
    """The event files of some runs.

    Args:
        directory: Where the runs lie.
        keeps_all: Whether to keep 5000 samples of each series of ours, as the tab does; else only the last one.
    """

    def __init__(self, directory: Place, keeps_all: bool) -> None:
        logging.getLogger("tensorboard").setLevel(logging.CRITICAL)  # a torn file is no news here
        self.keeps_all = keeps_all
        self._directory = directory
        self._forget()

    def _forget(self) -> None:
        max_samples = SAMPLES if self.keeps_all else 1
        self._events: dict[str, RunEvents] = {}
        self._multiplexer = EventMultiplexer(
            size_guidance={TENSORS: 1}, tensor_size_guidance={PLUGIN: max_samples, SCALARS: max_samples}
        )
        self._provider = MultiplexerDataProvider(self._multiplexer, str(self._directory))

    def reload(self, runs: Mapping[str, Iterable[str]]) -> Store:
        """Read what has been written since to the event files of these runs, and show it as it is now.

        Args:
            runs: The names of the event files by that of the run.
        """
        self._read(runs)
        for _ in range(_MAX_RETRIES):
            if not any(events.is_replaced for events in self._events.values()):
                break
            self._forget()  # what came of one file cannot be taken back alone
            self._read(runs)
        return Store(self._provider, RequestContext(), inspect=lambda _: self._damage())

    def _read(self, runs: Mapping[str, Iterable[str]]) -> None:
        for run, names in runs.items():
            if run not in self._events:
                self._events[run] = RunEvents(self._directory / run)
                self._multiplexer.AddRun(str(self._directory / run), run)
                self._multiplexer.GetAccumulator(run)._generator = self._events[run]
            self._events[run].look(names)
            try:
                self._multiplexer.GetAccumulator(run).Reload()
            except Exception as failure:  # an event of somebody's that TensorBoard makes no sense of
                self._events[run].stop(failure)

    def _damage(self) -> dict[str, tuple[Damage, ...]]:
        return {run: events.damage for run, events in self._events.items() if events.damage}

    def written(self, run: str, tag: str) -> float:
        """When one of our tags was last written, in seconds since the epoch."""
        chosen = RunTagFilter(runs=[run], tags=[tag])
        found = self._provider.list_tensors(
            RequestContext(), experiment_id="", plugin_name=PLUGIN, run_tag_filter=chosen
        )
        return float(found[run][tag].max_wall_time)
