"""When a sample is due: a pure function of the step, so it is the same on every rank and after a resume."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lightning_gradwatch.core._check import require

_MASK = (1 << 64) - 1


@lru_cache(maxsize=64)
def _scramble(value: int) -> int:
    """A well-mixed 64-bit number for ``value`` (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@dataclass(frozen=True)
class Schedule:
    """Samples on a dense start, then one in each stretch of ``every_n_steps``, at a jittered place in it.

    The jitter keeps the samples from locking in step with anything periodic in the training, such as a GAN that updates
    its networks in turns.

    Attributes:
        dense_steps: Number of steps at the start of which each one is sampled; 0 or more.
        every_n_steps: Length of the stretches after that; 1 samples every step.

    Raises:
        ValueError: If a number is not an integer in its range.
    """

    dense_steps: int = 20
    every_n_steps: int = 10

    def __post_init__(self) -> None:
        require("dense_steps", self.dense_steps, minimum=0, cure="use 0 for no dense start")
        require("sample_every_n_steps", self.every_n_steps, minimum=1, cure="use 1 to sample every step")

    def is_due(self, step: int, thinning: int = 1) -> bool:
        """Whether ``step`` (counted from 0, per optimizer) takes a sample.

        Args:
            step: The step.
            thinning: By how much the stretches are longer than asked for, 1 or more.
        """
        return self.next_due(step, thinning) == step

    def next_due(self, step: int, thinning: int = 1) -> int:
        """The first step from ``step`` on that takes one."""
        if step < self.dense_steps:
            return step
        length = self.every_n_steps * thinning
        stretch, due = (step - self.dense_steps) // length, -1
        while due < step:  # twice at most: the place in this stretch may be past
            due = self.dense_steps + stretch * length + _scramble(stretch) % (length // 2 + 1)
            stretch += 1
        return due
