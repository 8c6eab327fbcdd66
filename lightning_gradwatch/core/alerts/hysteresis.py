"""An alert opens at a threshold, holds, and ends clearly below it: hysteresis, shared by all rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from lightning_gradwatch.core.records import AlertLevel, Finding
from lightning_gradwatch.core.saved import Saved, State, count

RELEASE = 0.75
"""An alert ends when its value falls below this share of the threshold at which it opened."""


class Hysteresis:
    """The state of one kind of trouble, for rules that judge a value against a threshold.

    Args:
        kind: What is wrong when it is open.
        threshold: Value at which it opens.
        persistence: Number of judgements in a row that must reach the threshold before it opens.
        release: Share of the threshold below which it ends; as often in a row as it took to open.

    Attributes:
        finding: What is open; None if nothing is.
        is_in_doubt: Whether the latest values reach the threshold, and too few of them yet.
    """

    def __init__(self, kind: str, threshold: float, persistence: int = 1, release: float = RELEASE) -> None:
        self._kind = kind
        self._threshold = threshold
        self._persistence = persistence
        self._release = release
        self._above = 0
        self._below = 0
        self._held_at = 0
        self.finding: Finding | None = None
        self.is_in_doubt = False

    def judge(
        self, step: int, value: float, layers: tuple[str, ...] = (), level: AlertLevel = "alert", threshold: float = 0.0
    ) -> Finding | None:
        """Take in a value.

        Args:
            step: The step at which it was measured.
            value: The value, in any unit; the higher, the worse. NaN neither opens nor ends anything.
            layers: The layers that show it, the most telling first.
            level: How bad it is. A notice rises to an alert, and does not fall back.
            threshold: Value at which it opens from now on; 0 for that of the constructor.

        Returns:
            The finding if it opened, rose to an alert, or ended just now; otherwise None.
        """
        threshold = threshold or self._threshold
        self._above = self._above + 1 if value >= threshold else 0
        self._below = self._below + 1 if value < self._release * threshold else 0
        self.is_in_doubt = self.finding is None and 0 < self._above < self._persistence
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

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        finding = finding_state(self.finding)
        return {"above": self._above, "below": self._below, "held_at": self._held_at, "finding": finding}

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        saved = Saved.of(state)
        self._above = saved.take("above", int, self._above, count)
        self._below = saved.take("below", int, self._below, count)
        self._held_at = saved.take("held_at", int, self._held_at)
        self.finding = take_finding(saved, self._kind)


class SteadyRule:
    """A rule whose whole memory is one hysteresis.

    Args:
        hysteresis: That of its kind.
    """

    def __init__(self, hysteresis: Hysteresis) -> None:
        self.hysteresis = hysteresis

    @property
    def finding(self) -> Finding | None:
        """What is open; None if nothing is."""
        return self.hysteresis.finding

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return self.hysteresis.state_dict()

    def load_state_dict(self, state: Saved) -> None:
        """Go on where ``state_dict`` was taken."""
        self.hysteresis.load_state_dict(state)


def finding_state(finding: Finding | None) -> State | None:
    """A finding as primitives."""
    return None if finding is None else asdict(finding)


def take_finding(saved: Saved, kind: str) -> Finding | None:
    """The open finding of that kind in a state that was saved; None without one."""
    return saved.find("finding", Finding, lambda finding: finding.kind == kind)
