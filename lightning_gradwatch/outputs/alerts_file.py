"""``alerts.jsonl``: one line of JSON per event, appended and flushed at once, for people and programs that follow it.

Each line is one object: ``event``, ``time`` (UTC, ISO 8601), ``run``, and the fields of
:class:`~lightning_gradwatch.core.records.Alert`. Lines with the same ``kind``, ``step`` and ``optimizer`` tell of the
same incident, and the newest of them holds. A number that is NaN or infinite is null. A program that follows the file
should skip what it cannot read: of a process that was killed the last line may be torn; the next one ends it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypedDict

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.records import Alert

NAME = "alerts.jsonl"
MAX_BYTES = 4_000_000
"""Size at which the file is put aside as ``alerts.jsonl.1``; a new one begins with what is still open."""
NUM_ASIDE = 2
"""Files that were put aside and are kept, ``.1`` being the newest."""


Event = Literal["opened", "escalated", "ended", "continued", "prescribed"]
"""What has become of an incident; ``continued`` repeats one that is still open at the head of a new file,
``prescribed`` says what remedies did to a copy of the model."""
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


def append(directory: str | Path, event: Event, alert: Alert, run: str = "") -> None:
    """Append what has become of an alert.

    Args:
        directory: The logger's directory; made if it is missing.
        event: Whether it opened, rose from a notice to an alert, ended, or is still open.
        alert: The alert; ``until_step`` is None until it has ended.
        run: Name of the run.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(directory) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size >= MAX_BYTES:
        _put_aside(path)
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _write(path, [{"event": event, "time": time, "run": run, **asdict(alert)}])


def read(directory: str | Path) -> list[Line]:
    """Every line that can be read, the oldest first, also of the files that were put aside."""
    path = Path(directory) / NAME
    return [line for file in [*reversed(_aside(path)), path] for line in _lines(file)]


def entry(event: Event, alert: Alert) -> Entry:
    """What tells one line of the file from another."""
    return event, alert.kind, alert.step, alert.optimizer


def entries(directory: str | Path) -> frozenset[Entry]:
    """Every line of a file that is there already, as :func:`entry`; lines that cannot be read are left out."""
    return frozenset((line["event"], *_incident(line)) for line in read(directory))


def prescribed(directory: str | Path, alert: Alert) -> Alert | None:
    """The alert with what was tried for it according to the file; None if it knows of nothing."""
    for line in reversed(read(directory)):
        if (line["event"], *_incident(line)) == entry("prescribed", alert):
            with contextlib.suppress(KeyError, TypeError):
                message, remedies = str(line["message"]), tuple(map(str, line["remedies"]))
                return replace(alert, message=message, remedies=remedies, prescription=dict(line["prescription"]))
    return None


def _incident(line: Line) -> tuple[str, int, str]:
    return line["kind"], line["step"], line["optimizer"]


def _lines(path: Path) -> Iterator[Line]:
    try:
        if not path.is_file():  # a device would never end
            return
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError) as failure:  # a path that cannot be
        if is_the_users(failure):
            raise
        return
    for text in texts:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line: Line = json.loads(text)
            hash((line["event"], *_incident(line)))
            yield line


def _write(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Append whole lines in one write; a torn line before them is ended first."""
    text = "".join(json.dumps(_plain(line)) + "\n" for line in lines)
    with path.open("ab") as file:
        file.write((b"\n" if _is_torn(path) else b"") + text.encode())


def _plain(value: object) -> object:
    """The value, None for a number that JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _aside(path: Path) -> list[Path]:
    return [path.with_name(f"{NAME}.{number}") for number in range(1, NUM_ASIDE + 1)]


def _put_aside(path: Path) -> None:
    """Begin a new file with what is still open, so that it can be read by itself."""
    open_ones: dict[tuple[str, int, str], Line] = {}
    for line in _lines(path):
        open_ones.pop(_incident(line), None)
        if line["event"] != "ended":
            open_ones[_incident(line)] = {**line, "event": "continued"}
    files = [path, *_aside(path)]
    for newer, older in reversed(list(itertools.pairwise(files))):
        if newer.is_file():
            newer.replace(older)
    _write(path, open_ones.values())
