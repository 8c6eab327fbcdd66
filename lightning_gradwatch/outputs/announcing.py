"""When an alert is announced: alerts that come and go must not flood the console."""

from __future__ import annotations

from collections import Counter

from lightning_gradwatch.core.records import Alert

PAUSE_STEPS = 50


class Pauses:
    """One announcement per kind and optimizer, then pauses that double."""

    def __init__(self) -> None:
        self._next: dict[tuple[str, str], int] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def passes(self, alert: Alert) -> bool:
        """Whether to announce an alert that has just opened."""
        key = alert.kind, alert.optimizer
        if alert.step < self._next.get(key, alert.step):
            return False
        self._next[key] = alert.step + PAUSE_STEPS * 2 ** self._counts[key]
        self._counts[key] += 1
        return True
