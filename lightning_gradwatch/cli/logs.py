"""A directory of runs, read from its files: how each is, by its event files and by ``alerts.jsonl``."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightning_gradwatch.cli.events import EventReader
from lightning_gradwatch.cli.incidents import merge, newest
from lightning_gradwatch.core.metrics import ALERT_DOCUMENT
from lightning_gradwatch.outputs import alerts_file
from lightning_gradwatch.reading import answers
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.schema import UnreadableError, is_alert
from lightning_gradwatch.reading.status import SICKEST_FIRST, Verdict, judge
from lightning_gradwatch.reading.store import Catalogue, MissingError, Series, Store

_FEW = 4
"""Runs of which all samples are kept in memory at once."""
_EMPTY_FILE = f"`{alerts_file.NAME}` holds no line that can be read, and there is nothing else of GradWatch."
_BAD_NAME = "TensorBoard cannot read a directory whose name is no UTF-8: rename it."


class _Files(NamedTuple):
    """Which files of ours there are in a directory."""

    has_events: bool
    has_alerts: bool


@dataclass(frozen=True)
class Run:
    """One run as it stands now.

    Attributes:
        name: Its directory, relative to that of the logs.
        catalogue: What its event files hold; None if it has none.
        verdict: How it is.
        alerts: What is known of its alerts, the oldest first.
        num_dropped: Older alerts that are left out.
        last_step: Largest step of anything; None if there is nothing.
        wall_time: When anything was last written, in seconds since the epoch; 0 if that is not known.
        stamp: Changes whenever anything was written.
    """

    name: str
    catalogue: Catalogue | None
    verdict: Verdict
    alerts: tuple[AlertRecord, ...]
    num_dropped: int
    last_step: int | None
    wall_time: float
    stamp: str

    @property
    def is_watched(self) -> bool:
        """Whether GradWatch has written anything."""
        return self.verdict.status != "not_watched"


@dataclass(frozen=True)
class OpenRun:
    """A run of which everything has been read.

    Attributes:
        run: How it is.
        store: Its samples, as the tab reads them.
        document: What there is of it, and its alerts, as the tab gets them.
    """

    run: Run
    store: Store
    document: answers.RunDocument

    @property
    def catalogue(self) -> Catalogue:
        """What its event files hold."""
        return self.store.catalogue(self.run.name)

    def quantities(self, optimizer: str, version: int) -> dict[str, Series]:
        """The series with one row per layer that can be read, by their quantity."""
        return self._readable(self.catalogue.of(optimizer, version))

    def sequences(self, optimizer: str, version: int) -> dict[str, Series]:
        """The series along time steps that can be read, by their layer."""
        return self._readable(self.catalogue.sequences(optimizer, version))

    def _readable(self, series: dict[str, Series]) -> dict[str, Series]:
        found = {}
        for name, one in series.items():
            with contextlib.suppress(UnreadableError):
                if len(self.store.samples(one)):
                    found[name] = one
        return found


class Logs:
    """The runs below a directory; nothing is read before :meth:`reload`.

    Where there are many runs, only the latest sample of each is kept, and all samples of the one that was opened last.

    Args:
        directory: The directory of one run or of several; it need not exist yet.
        only: The one run to read; None for all.

    Attributes:
        directory: As given.
    """

    def __init__(self, directory: Path, only: str | None = None) -> None:
        self.directory = directory
        self._only = only
        self._reader: EventReader | None = None
        self._opened: tuple[str, EventReader] | None = None
        self._lines: dict[str, tuple[object, list[alerts_file.Line]]] = {}

    def reload(self) -> list[Run]:
        """Read what has been written since, and say how every run is: the sickest first, then the latest."""
        found = {name: files for name, files in self._files().items() if self._only in (None, name)}
        readable = [name for name, files in found.items() if files.has_events and self._is_utf8(name)]
        if self._reader is None:
            self._reader = EventReader(self.directory, keeps_all=len(readable) <= _FEW)
        catalogues = self._reader.reload(readable).catalogues()
        runs = [self._run(name, catalogues.get(name), files, self._reader) for name, files in found.items()]
        return sorted(runs, key=lambda r: (SICKEST_FIRST.index(r.verdict.status), -r.wall_time, r.name))

    def title(self, run: Run) -> str:
        """What people call a run: one that lies in the directory itself has the name of that."""
        return self.directory.resolve().name if run.name == os.curdir else run.name

    def open(self, run: Run) -> OpenRun:
        """Everything of one run, as far as it has been written."""
        store = self._reader_of(run).reload([] if run.catalogue is None else [run.name])
        try:
            found: answers.Contents = answers.run(store, run.name)
        except MissingError:  # there is only a file of alerts, or the directory has just been removed
            found = answers.NO_CONTENTS
        document: answers.RunDocument = {
            **found,
            "run": run.name,
            "status": run.verdict.status,
            "headline": run.verdict.headline,
            "num_open": run.verdict.num_open,
            "alerts": list(run.alerts),
            "num_dropped": run.num_dropped,
            "stamp": run.stamp,
        }
        return OpenRun(run, store, document)

    def _reader_of(self, run: Run) -> EventReader:
        """The reader that keeps all samples of a run."""
        if self._reader is not None and self._reader.keeps_all:
            return self._reader
        if self._opened is None or self._opened[0] != run.name:
            self._opened = run.name, EventReader(self.directory, keeps_all=True)
        return self._opened[1]

    def _run(self, name: str, catalogue: Catalogue | None, files: _Files, reader: EventReader) -> Run:
        # the alerts: from the event files, and from alerts.jsonl, which may know more
        lines, changed = self._lines_of(name) if files.has_alerts else ([], 0.0)
        document = None if catalogue is None else catalogue.document
        is_read = document is not None and not document.problem
        written = reader.written(name, ALERT_DOCUMENT) if is_read else -math.inf
        is_known = is_read or any(is_alert(line) for line in lines)
        alerts = merge(document.alerts if document else (), lines, written)
        kept = newest(alerts)
        # how far the run has come, by whatever tells most
        steps = [alert["step"] if alert["until_step"] is None else alert["until_step"] for alert in alerts]
        steps += [] if catalogue is None or catalogue.last_step is None else [catalogue.last_step]
        last_step = max(steps, default=None)
        # what cannot be read is no sign of health
        problem = "" if is_known else _BAD_NAME if files.has_events else _EMPTY_FILE
        if catalogue is not None:
            problem = document.problem if document is not None and document.problem else catalogue.problem
        is_watched = catalogue is None or catalogue.is_watched or changed > 0
        return Run(
            name=name,
            catalogue=catalogue,
            verdict=judge(kept if is_known else None, is_watched, problem, last_step),
            alerts=tuple(kept),
            num_dropped=len(alerts) - len(kept) + (document.num_dropped if document else 0),
            last_step=last_step,
            wall_time=max(catalogue.wall_time if catalogue else 0.0, changed),
            stamp=f"{catalogue.stamp if catalogue else ''}-{changed!r}-{len(lines)}",
        )

    def _files(self) -> dict[str, _Files]:
        """The runs by their directory, relative to that of the logs."""
        found = {}
        for path, _, names in os.walk(self.directory):
            files = _Files(any("tfevents" in name for name in names), alerts_file.NAME in names)
            if any(files):
                found[os.path.relpath(path, self.directory)] = files
        return found

    def _is_utf8(self, name: str) -> bool:
        """Whether TensorBoard can read a directory."""
        try:
            return bool(str(self.directory / name).encode())
        except UnicodeEncodeError:
            return False

    def _lines_of(self, name: str) -> tuple[list[alerts_file.Line], float]:
        """The lines of a run's file and when it was last written; 0 if there is none. Read only if it has changed."""
        path = self.directory / name / alerts_file.NAME
        try:
            state = path.stat()
        except OSError:
            return [], 0.0
        if not stat.S_ISREG(state.st_mode):  # a device would never end
            return [], 0.0
        signature = (state.st_size, state.st_mtime_ns, state.st_ino)
        before, lines = self._lines.get(name, (None, []))
        if before != signature:
            lines = alerts_file.read(path.parent)
            self._lines[name] = (signature, lines)
        return lines, state.st_mtime
