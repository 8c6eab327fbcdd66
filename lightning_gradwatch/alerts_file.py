"""``alerts.jsonl``: one line of JSON per event, appended and flushed at once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from lightning_gradwatch.core.records import Alert

NAME = "alerts.jsonl"


Event = Literal["opened", "escalated", "ended"]


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
