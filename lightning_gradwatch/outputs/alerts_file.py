"""``alerts.jsonl``: one line of JSON per event, appended and flushed at once, for people and programs that follow it.

Each line is one object: ``event``, ``time`` (UTC, ISO 8601), ``run``, and the fields of
``Alert``. Lines with the same ``kind``, ``step`` and ``optimizer`` tell of the
same incident, and the newest of them holds. A number that is NaN or infinite is null. A program that follows the file
should skip what it cannot read: of a process that was killed the last line may be torn; the next one ends it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from os import PathLike
from typing import Any, Literal, TypedDict, TypeVar

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.worker import Worker
from lightning_gradwatch.paths import Place, append_lines, at, is_url

T = TypeVar("T")

NAME = "alerts.jsonl"
MAX_BYTES = 4_000_000
"""Size at which the file is put aside as ``alerts.jsonl.1``; a new one begins with what is still open."""
NUM_ASIDE = 2
"""Files that were put aside and are kept, ``.1`` being the newest."""
ASK_S = 10.0
"""How long the beginning of a run waits for what a file at a URL holds already."""


Event = Literal["opened", "escalated", "ended", "continued", "prescribed", "traced"]
"""What has become of an incident; ``continued`` repeats one that is still open at the head of a new file,
``prescribed`` says what remedies did to a copy of the model, ``traced`` where NaN was born."""
Entry = tuple[Event, str, int, str]


class _Known(TypedDict):
    """What a line must have to be read."""

    event: Event
    kind: str
    step: int
    optimizer: str


class Line(_Known, total=False):
    """A line of the file as it was written: an event, and the fields of the alert at that time. Nobody checks them."""

    time: str
    run: str
    level: str
    until_step: int | None
    layer: str
    value: float | None
    threshold: float | None
    message: str
    cause: str
    evidence: str
    remedies: list[str]
    prescription: dict[str, Any] | None
    summary: str
    attribution: dict[str, Any] | None
    birth: dict[str, Any] | None
    title: str


class AlertsFile:
    """The file of one run, as the run writes it. What goes to a URL goes from a thread, which nobody waits for.

    Args:
        directory: Where it lies, also a URL.
        run: Name of the run.
        is_resumed: Whether the run goes on, so that the file may know of some alerts already.
    """

    def __init__(self, directory: str, run: str = "", is_resumed: bool = False) -> None:
        self._directory = directory
        self._run = run
        self._worker = Worker() if is_url(directory) else None
        told = self._ask(functools.partial(entries, directory)) if is_resumed else None
        self._told = told or frozenset()

    def has(self, event: Event, alert: Alert) -> bool:
        """Whether this was told before the run went on."""
        return entry(event, alert) in self._told

    def knows(self, alert: Alert) -> bool:
        """Whether anything was told of this alert before the run went on."""
        return entry("opened", alert)[1:] in {told[1:] for told in self._told}

    def prescribed(self, alert: Alert) -> Alert | None:
        """The alert with what was tried for it before the run went on; None if nothing was."""
        return (
            self._ask(functools.partial(prescribed, self._directory, alert)) if self.has("prescribed", alert) else None
        )

    def append(self, event: Event, alert: Alert) -> None:
        """Append what has become of an alert.

        Raises:
            OSError: If the file cannot be written.
        """
        write = functools.partial(append, self._directory, event, alert, self._run, datetime.now(timezone.utc))
        if self._worker is None:
            write()
        else:
            self._worker.submit(write)

    def settle(self, seconds: float) -> None:
        """Wait until what goes to a URL is there, but not for ever.

        Raises:
            OSError: If it cannot be written, or it takes longer.
        """
        if self._worker is not None:
            self._worker.settle(seconds)

    def close(self) -> None:
        """Let the thread end, if there is one."""
        if self._worker is not None:
            self._worker.close()

    def _ask(self, question: Callable[[], T]) -> T | None:
        """What the file says; None if that takes long."""
        return question() if self._worker is None else self._worker.ask(question, ASK_S)


def append(
    directory: str | PathLike[str], event: Event, alert: Alert, run: str = "", time: datetime | None = None
) -> None:
    """Append what has become of an alert.

    At a URL the file is written anew: what another process writes there in the same moment may be lost.

    Args:
        directory: The logger's directory, or its URL; made if it is missing.
        event: Whether it opened, rose from a notice to an alert, ended, or is still open.
        alert: The alert; ``until_step`` is None until it has ended.
        run: Name of the run.
        time: When it was; None for now.

    Raises:
        OSError: If the file cannot be written.
    """
    path = at(directory) / NAME
    if path.is_file() and path.stat().st_size >= MAX_BYTES:
        _put_aside(path)
    told = (time or datetime.now(timezone.utc)).isoformat(timespec="seconds")
    _write(path, [{"event": event, "time": told, "run": run, **asdict(alert)}])


def read(directory: str | PathLike[str] | Place) -> list[Line]:
    """Every line that can be read, the oldest first, also of the files that were put aside."""
    path = at(directory) / NAME
    return [line for file in [*reversed(_aside(path)), path] for line in _lines(file)]


def entry(event: Event, alert: Alert) -> Entry:
    """What tells one line of the file from another."""
    return event, alert.kind, alert.step, alert.optimizer


def entries(directory: str | PathLike[str]) -> frozenset[Entry]:
    """Every line of a file that is there already, as ``entry``; lines that cannot be read are left out."""
    return frozenset((line["event"], *_incident(line)) for line in read(directory))


def prescribed(directory: str | PathLike[str], alert: Alert) -> Alert | None:
    """The alert with what was tried for it according to the file; None if it knows of nothing."""
    for line in reversed(read(directory)):
        if (line["event"], *_incident(line)) == entry("prescribed", alert):
            with contextlib.suppress(KeyError, TypeError):
                message, remedies = str(line["message"]), tuple(map(str, line["remedies"]))
                return replace(alert, message=message, remedies=remedies, prescription=dict(line["prescription"]))
    return None


def _incident(line: Line) -> tuple[str, int, str]:
    return line["kind"], line["step"], line["optimizer"]


def _lines(path: Place) -> Iterator[Line]:
    try:
        if not path.is_file():  # a device would never end
            return
        texts = path.read_bytes().decode(errors="replace").splitlines()
    except (OSError, ValueError) as failure:  # a path that cannot be, or is out of reach
        if is_the_users(failure):
            raise
        return
    for text in texts:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            line: Line = json.loads(text)
            hash((line["event"], *_incident(line)))
            yield line


def _write(path: Place, lines: Iterable[Mapping[str, object]]) -> None:
    append_lines(path, "".join(json.dumps(_plain(line)) + "\n" for line in lines).encode())


def _plain(value: object) -> object:
    """The value, None for a number that JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _aside(path: Place) -> list[Place]:
    return [path.with_name(f"{NAME}.{number}") for number in range(1, NUM_ASIDE + 1)]


def _put_aside(path: Place) -> None:
    """Begin a new file with what is still open, so that it can be read by itself."""
    open_ones: dict[tuple[str, int, str], Line] = {}
    for line in _lines(path):
        open_ones.pop(_incident(line), None)
        if line["event"] != "ended":
            open_ones[_incident(line)] = {**line, "event": "continued"}
    files = [path, *_aside(path)]
    for newer, older in reversed(list(itertools.pairwise(files))):
        if newer.is_file():
            newer.replace(older)  # type: ignore[arg-type]  # either both are at a URL, or neither is
    _write(path, open_ones.values())
