"""``alerts.jsonl``: one line of JSON per event, appended and flushed at once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from lightning_gradwatch.core.records import Alert

NAME = "alerts.jsonl"


def append(directory: str | Path, alert: Alert) -> None:
    """Append an alert that opened or ended.

    Args:
        directory: The logger's directory; made if it is missing.
        alert: The alert; ``until_step`` is None in the line that opens it.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    event = "opened" if alert.until_step is None else "ended"
    with (path / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, **asdict(alert)}) + "\n")
