"""A directory of runs, read from its files: how each is, by its event files and by ``alerts.jsonl``."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_gradwatch.cli.alert_lines import NO_LINES, AlertLines, Lines
from lightning_gradwatch.cli.events import EventReader
from lightning_gradwatch.cli.incidents import merge, newest
from lightning_gradwatch.core.metrics import ALERT_DOCUMENT
from lightning_gradwatch.outputs import alerts_file
from lightning_gradwatch.paths import Place
from lightning_gradwatch.reading import answers
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.damage import Damage, unlistable
from lightning_gradwatch.reading.left_out import LeftOut
from lightning_gradwatch.reading.listing import Folder, folders
from lightning_gradwatch.reading.schema import UnreadableError, is_alert
from lightning_gradwatch.reading.status import SICKEST_FIRST, State, Verdict, judge, state_of
from lightning_gradwatch.reading.store import Catalogue, MissingError, Series, Store

_FEW = 4
"""Runs of which all samples are kept in memory at once."""
_EMPTY_FILE = f"`{alerts_file.NAME}` holds no line that can be read, and there is nothing else of GradWatch."


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
        damage: What of its files cannot be read.
        left_out: What it went on without.
        state: Whether it goes on, in one word.
        state_text: The same in a few words.
    """

    name: str
    catalogue: Catalogue | None
    verdict: Verdict
    alerts: tuple[AlertRecord, ...]
    num_dropped: int
    last_step: int | None
    wall_time: float
    stamp: str
    damage: tuple[Damage, ...]
    left_out: tuple[LeftOut, ...]
    state: State
    state_text: str

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
    """The runs below a directory; nothing is read before ``reload``.

    Where there are many runs, only the latest sample of each is kept, and all samples of the one that was opened last.

    Args:
        directory: The directory of one run or of several, or its URL; it need not exist yet.
        only: The one run to read; None for all.

    Attributes:
        directory: As given.
    """

    def __init__(self, directory: Place, only: str | None = None) -> None:
        self.directory = directory
        self._only = only
        self._reader: EventReader | None = None
        self._opened: tuple[str, EventReader] | None = None
        self._lines = AlertLines()
        self._event_files: dict[str, list[str]] = {}

    def reload(self) -> list[Run]:
        """Read what has been written since, and say how every run is: the sickest first, then the latest."""
        found = [folder for folder in folders(str(self.directory)) if self._is_meant(folder)]
        self._event_files = {folder.name: folder.event_files for folder in found if folder.event_files}
        if self._reader is None:
            self._reader = EventReader(self.directory, keeps_all=len(self._event_files) <= _FEW)
        catalogues = self._reader.reload(self._event_files).catalogues()
        runs = [self._run(folder, catalogues.get(folder.name), self._reader) for folder in found]
        return sorted(runs, key=lambda r: (SICKEST_FIRST.index(r.verdict.status), -r.wall_time, r.name))

    @classmethod
    def names(cls, directory: Place) -> list[str]:
        """Names of what are, or may be, runs below a directory, sorted."""
        return sorted(folder.name for folder in folders(str(directory)) if _may_be_run(folder))

    def title(self, run: Run) -> str:
        """What people call a run: one that lies in the directory itself has the name of that."""
        return self.directory.resolve().name if run.name == os.curdir else run.name

    def open(self, run: Run) -> OpenRun:
        """Everything of one run, as far as it has been written."""
        files = self._event_files.get(run.name)
        store = self._reader_of(run).reload({} if files is None else {run.name: files})
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
            "damage": list(run.damage),
            "left_out": list(run.left_out),
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

    def _is_meant(self, folder: Folder) -> bool:
        """Whether a directory is a run that was asked for, or may be one."""
        return _may_be_run(folder) and self._only in (None, folder.name)

    def _run(self, folder: Folder, catalogue: Catalogue | None, reader: EventReader) -> Run:
        # the alerts: from the event files, and from alerts.jsonl, which may know more
        told = self._lines.of(self.directory / folder.name) if alerts_file.NAME in folder.files else NO_LINES
        document = None if catalogue is None else catalogue.document
        is_read = document is not None and not document.problem
        written = reader.written(folder.name, ALERT_DOCUMENT) if is_read else -math.inf
        is_known = is_read or any(is_alert(line) for line in told.lines)
        alerts = merge(document.alerts if document else (), told.lines, written)
        kept = newest(alerts)
        # how far the run has come, by whatever tells most
        steps = [alert["step"] if alert["until_step"] is None else alert["until_step"] for alert in alerts]
        steps += [] if catalogue is None or catalogue.last_step is None else [catalogue.last_step]
        last_step = max(steps, default=None)
        # what cannot be read is no sign of health
        damage = tuple(_damage(folder, catalogue, told, written))
        problem = "" if is_known else _EMPTY_FILE
        if catalogue is not None:
            problem = document.problem if document is not None and document.problem else catalogue.problem
        problem = damage[0]["message"] if damage else problem or (document.doubt if document is not None else "")
        is_watched = catalogue is None or catalogue.is_watched or told.written > 0
        wall_time = max(catalogue.wall_time if catalogue else 0.0, told.written)
        state, state_text = state_of(None if document is None else document.end, wall_time, time.time())
        return Run(
            name=folder.name,
            catalogue=catalogue,
            verdict=judge(kept if is_known else None, is_watched, problem, last_step),
            alerts=tuple(kept),
            num_dropped=len(alerts) - len(kept) + (document.num_dropped if document else 0),
            last_step=last_step,
            wall_time=wall_time,
            stamp=f"{catalogue.stamp if catalogue else ''}-{told.written!r}-{len(told.lines)}",
            damage=damage,
            left_out=() if document is None else tuple(document.left_out),
            state=state,
            state_text=state_text,
        )


def _may_be_run(folder: Folder) -> bool:
    return bool(folder.event_files) or alerts_file.NAME in folder.files or folder.failure is not None


def _damage(folder: Folder, catalogue: Catalogue | None, told: Lines, written: float) -> Iterator[Damage]:
    """What of a run cannot be read, and may tell of an alert."""
    if folder.failure is not None:
        yield unlistable(folder.failure)
    if catalogue is not None:
        yield from catalogue.damage
    # the document repeats what the lines before it told
    if told.damage is not None and (not told.written or told.written > written):
        yield told.damage
