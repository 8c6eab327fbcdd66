"""Samples of a series by their steps: single ones, or stretches of steps that share one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.schema import Array

Span = tuple[int | None, int | None]
"""First and last step, both included; None for an open end."""
Statistic = Literal["low", "mean", "high"]
"""What stands for several steps: the smallest finite norm, the mean in the logarithm, or the largest norm."""


@dataclass(frozen=True)
class Samples:
    """The samples of a series, by rising step.

    Attributes:
        steps: Step of each, or the first one that it stands for; shape ``(samples,)``, int64.
        values: One entry per sample: an array of shape ``(samples, layers)`` or ``(samples, layers, numbers)``; for
            ``sequence`` a list of arrays of shape ``(time steps, 2)``; for a scalar an array of shape ``(samples,)``.
            Of several steps it is the largest norm, or the mean of a scalar.
        bins: What else is known where a sample may stand for several steps; None where each is a single step.
    """

    steps: Array
    values: Any
    bins: Bins | None = None

    @classmethod
    def of_norms(cls, bins: Bins) -> Samples:
        """The gradient norms in bins."""
        return cls(bins.first, bins.high, bins)

    @classmethod
    def of_line(cls, bins: Bins, place: int) -> Samples:
        """One of the numbers of the run in bins, which then hold no norms."""
        norms = np.empty((len(bins), 0), np.float32)
        alone = Bins(bins.first, bins.last, bins.count, norms, norms, norms, bins.lines[:, [place]])
        return cls(bins.first, alone.lines[:, 0, 1], alone)

    @property
    def last_steps(self) -> Array:
        """The last step that each stands for, shape ``(samples,)``."""
        return self.steps if self.bins is None else self.bins.last

    @property
    def counts(self) -> Array:
        """The steps that were observed for each, shape ``(samples,)``."""
        return np.ones(len(self.steps), np.int64) if self.bins is None else self.bins.count

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        if self.bins is not None:
            return self.bins.num_bytes
        parts = self.values if isinstance(self.values, list) else [self.values]
        return int(self.steps.nbytes + sum(part.nbytes for part in parts))

    def __len__(self) -> int:
        return len(self.steps)

    def place(self, step: int) -> int:
        """The place of the sample at ``step``, or else of the nearest before it, or else of the first."""
        return max(int(np.searchsorted(self.steps, step, side="right")) - 1, 0)

    def nearest(self, step: int) -> int:
        """The place of the sample that stands for ``step``, or else of the nearest, of two rather the earlier."""
        after = min(int(np.searchsorted(self.last_steps, step, side="left")), len(self) - 1)
        before = max(after - 1, 0)
        is_nearer = step - int(self.last_steps[before]) <= int(self.steps[after]) - step
        return before if is_nearer and self.steps[after] > step else after

    def between(self, first: int | None, last: int | None) -> Samples:
        """Those of steps from ``first`` to ``last``, both included; None for an open end."""
        start = 0 if first is None else int(np.searchsorted(self.last_steps, first, side="left"))
        end = len(self.steps) if last is None else int(np.searchsorted(self.steps, last, side="right"))
        chosen = slice(start, max(start, end))
        return Samples(self.steps[chosen], self.values[chosen], None if self.bins is None else self.bins[chosen])

    def columns(self, most: int) -> Array:
        """Where each of at most so many columns begins, if all are equally many steps wide.

        A sample belongs to the column in which the middle of its steps lies, and columns without any are left out: one
        that stands for more steps than a column keeps its own.

        Returns:
            Places of samples, rising, the first one 0; shape ``(columns,)``.
        """
        if len(self) <= most:
            return np.arange(len(self))
        begin, end = float(self.steps[0]), float(self.last_steps[-1]) + 1
        middles = (self.steps.astype(np.float64) + self.last_steps + 1) / 2
        numbers = np.floor((middles - begin) / (end - begin) * most)
        return np.flatnonzero(np.diff(numbers, prepend=-1.0))

    def merged(self, starts: Array, statistic: Statistic = "high") -> Array:
        """Values of neighbours as one; NaN is larger than anything.

        Args:
            starts: Where each column begins, as by ``columns``.
            statistic: What is to stand for several steps; where each sample is a single one, always the largest.
        """
        if not len(self):
            return np.asarray(self.values)
        if self.bins is None or statistic == "high":
            return np.asarray(np.maximum.reduceat(self.values, starts))
        # column by column: all of them at once would take several times the memory of the samples
        edges, origin = [*starts.tolist(), len(self)], np.zeros(1, np.int64)
        parts = [getattr(self.bins[start:end].merged(origin), statistic) for start, end in pairwise(edges)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Shared:
    """Samples whose layers share rows.

    Attributes:
        samples: The samples, with the largest value of each row; of several steps it is so for low, mean and high.
        extent: The smallest positive and the largest finite value of all layers; empty if there is none.
        num_bytes: Size in memory, of what is here only.
    """

    samples: Samples
    extent: tuple[float, ...]
    num_bytes: int


def latest_course(steps: Array) -> Array:
    """Which samples, in the order in which they were written, none with the same or an earlier step comes after.

    Returns:
        Shape ``(samples,)``, bool; the steps of these rise.
    """
    later = np.minimum.accumulate(steps[::-1])[::-1]
    return np.append(steps[:-1] < later[1:], True)
