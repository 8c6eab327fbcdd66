"""What watching costs, and how rarely samples must be taken so that it stays within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

HORIZON_STEPS = 100
"""Steps over which costs are averaged."""
MAX_THINNING = 64
SLACK = 0.8
"""Share of the budget below which samples may come more often again."""


class Cost:
    """The host's own time in each step, over the time of the step without it; an average of about the last 100 steps.

    Args:
        clock: Seconds that never run backwards.

    Attributes:
        spent: Own seconds so far, added up by whoever spends them.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.spent = 0.0
        self._begun: float | None = None
        self._spent_before = 0.0
        self._steps: list[tuple[float, float, bool]] = []
        self._own = _Mean()
        self._bare = _Mean()
        self._ordinary = _Mean()
        self._sampled = _Mean()

    def begin_step(self) -> None:
        """Call when a step begins, before anything is spent on it."""
        self._begun, self._spent_before = self.clock(), self.spent

    def end_step(self, is_sampled: bool) -> None:
        """Call when the step is over.

        Args:
            is_sampled: Whether a sample was taken in it.
        """
        if self._begun is None:
            return
        own = self.spent - self._spent_before
        self._steps.append((own, self.clock() - self._begun - own, is_sampled))
        if len(self._steps) >= HORIZON_STEPS:
            self._average()
        self._begun = None

    def _average(self) -> None:
        """Take in the steps since the last time: each of them would take as long as an operator."""
        for own, bare, is_sampled in self._steps:
            self._own.add(own)
            self._bare.add(max(bare, 0.0))
            (self._sampled if is_sampled else self._ordinary).add(own)
        self._steps = []

    @property
    def percent(self) -> float | None:
        """Own time in percent of the time without it; None before the first step is over."""
        self._average()
        return 100 * self._own.value / self._bare.value if self._bare.value > 0 else None

    def thinning(self, budget: float, every_n_steps: int, present: int) -> int:
        """By how much to stretch the distance of samples so that they and all the rest fit into a budget.

        Args:
            budget: Own time as a fraction of the time without it.
            every_n_steps: Average distance of samples as asked for.
            present: The stretch as it is now.

        Returns:
            A power of two, at most 64; 64, too, if what ordinary steps cost exceeds the budget alone.
        """
        self._average()
        if self._bare.value <= 0 or not self._sampled.count or not self._ordinary.count:
            return present
        needed = self._needed(budget, every_n_steps)
        if needed > present:
            return needed
        return min(present, self._needed(SLACK * budget, every_n_steps))

    def _needed(self, budget: float, every_n_steps: int) -> int:
        left = budget * self._bare.value - self._ordinary.value
        extra = max(self._sampled.value - self._ordinary.value, 0.0)
        if left <= extra / (every_n_steps * MAX_THINNING):
            return MAX_THINNING
        return 2 ** max(math.ceil(math.log2(extra / (left * every_n_steps))), 0) if extra > 0 else 1


class _Mean:
    """A running mean that forgets."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, number: float) -> None:
        self.count = min(self.count + 1, HORIZON_STEPS)
        self.value += (number - self.value) / self.count
