"""``alerts.jsonl``: one line of JSON per event, appended and flushed at once."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from lightning_gradwatch.core.records import Alert

NAME = "alerts.jsonl"


Event = Literal["opened", "escalated", "ended"]
Entry = tuple[Event, str, int, str]


def append(directory: str | Path, event: Event, alert: Alert) -> None:
    """Append what has become of an alert.

    Args:
        directory: The logger's directory; made if it is missing.
        event: Whether it opened, rose from a notice to an alert, or ended.
        alert: The alert; ``until_step`` is None until it has ended.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    with (path / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, **asdict(alert)}) + "\n")


def entry(event: Event, alert: Alert) -> Entry:
    """What tells one line of the file from another."""
    return event, alert.kind, alert.step, alert.optimizer


def entries(directory: str | Path) -> frozenset[Entry]:
    """Every line of a file that is there already, as :func:`entry`; lines that cannot be read are left out."""
    try:
        lines = (Path(directory) / NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    found = set()
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            found.add((event["event"], event["kind"], event["step"], event["optimizer"]))
    return frozenset(found)
