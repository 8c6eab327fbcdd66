"""An incident opens at a threshold, holds, and ends clearly below it: hysteresis, shared by all rules."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from lightning_gradwatch.core.records import AlertKind, AlertLevel, Finding

RELEASE = 0.75
"""An incident ends when its value falls below this share of the threshold at which it opened."""


class Incident:
    """The state of one kind of trouble.

    Args:
        kind: What is wrong when it is open.
        threshold: Value at which it opens.
        persistence: Number of judgements in a row that must reach the threshold before it opens.
        release: Share of the threshold below which it ends; as often in a row as it took to open.
    """

    def __init__(self, kind: AlertKind, threshold: float, persistence: int = 1, release: float = RELEASE) -> None:
        self._kind = kind
        self._threshold = threshold
        self._persistence = persistence
        self._release = release
        self._above = 0
        self._below = 0
        self._held_at = 0
        self.finding: Finding | None = None

    def judge(
        self, step: int, value: float, layers: tuple[str, ...] = (), level: AlertLevel = "alert", threshold: float = 0.0
    ) -> Finding | None:
        """Take in a value; the finding if it opened, changed its level upwards, or ended just now."""
        threshold = threshold or self._threshold
        self._above = self._above + 1 if value >= threshold else 0
        self._below = self._below + 1 if value < self._release * threshold else 0
        if self._below == 0:
            self._held_at = step
        if self.finding is None and self._above >= self._persistence:
            self.finding = Finding(self._kind, level, step, None, layers, value, threshold)
            return self.finding
        if self.finding is not None and self._below >= self._persistence:
            ended, self.finding = replace(self.finding, until_step=self._held_at), None
            return ended
        if self.finding is not None and (self.finding.level, level) == ("notice", "alert") and self._above:
            self.finding = replace(self.finding, level="alert", value=value, layers=layers or self.finding.layers)
            return self.finding
        return None

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        finding = finding_state(self.finding)
        return {"above": self._above, "below": self._below, "held_at": self._held_at, "finding": finding}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._above, self._below, self._held_at = state["above"], state["below"], state["held_at"]
        self.finding = finding_from(state["finding"])


def finding_state(finding: Finding | None) -> dict[str, Any] | None:
    """A finding as primitives."""
    return None if finding is None else asdict(finding)


def finding_from(state: dict[str, Any] | None) -> Finding | None:
    """The finding of :func:`finding_state`."""
    return None if state is None else Finding(**{**state, "layers": tuple(state["layers"])})
