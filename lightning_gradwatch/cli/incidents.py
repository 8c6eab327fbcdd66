"""Two witnesses of one run's alerts: the document in the event file, and the lines of ``alerts.jsonl``. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime

from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.schema import MAX_ALERTS, is_alert

_OF_THE_LINE = frozenset({"event", "time", "run"})
_TICK_SECONDS = 1.0
"""Lines tell the time in whole seconds."""


def merge(document: Iterable[AlertRecord], lines: Iterable[Mapping[str, object]], written: float) -> list[AlertRecord]:
    """What is known of each incident, the oldest first.

    The document speaks for the time until it was written; a line that came later is added to it, so that nothing is
    missing of a run that was killed. What has ended stays ended.

    Args:
        document: The alerts of the document; empty if there is none.
        lines: The lines of ``alerts.jsonl``, in their order.
        written: When the document was written, in seconds since the epoch; ``-inf`` if there is none.
    """
    known = {_key(alert): alert for alert in document}
    for line in lines:
        alert = {name: value for name, value in line.items() if name not in _OF_THE_LINE}
        if not is_alert(alert) or _time(line) + _TICK_SECONDS <= written:
            continue
        before = known.get(_key(alert))
        if before is None or before["until_step"] is None:
            known[_key(alert)] = alert
    return sorted(known.values(), key=lambda alert: alert["step"])


def newest(alerts: list[AlertRecord]) -> list[AlertRecord]:
    """Those that are open, and the newest 100."""
    return [alert for i, alert in enumerate(alerts) if i >= len(alerts) - MAX_ALERTS or alert["until_step"] is None]


def _key(alert: AlertRecord) -> tuple[str, int, str]:
    return alert["kind"], alert["step"], alert["optimizer"]


def _time(line: Mapping[str, object]) -> float:
    """When a line was written; infinitely late if it does not say."""
    time = line.get("time")
    try:
        return datetime.fromisoformat(time).timestamp() if isinstance(time, str) else math.inf
    except ValueError:
        return math.inf
