"""Which steps take a full sample, and how thorough it is."""

from __future__ import annotations

from lightning_gradwatch.core.saved import Saved, count
from lightning_gradwatch.core.schedule import Schedule

THOROUGH_EVERY = 5
"""Every how many full samples one is thorough."""
BURST_STEPS = 5
"""Steps sampled in a row when something looks wrong, so that it is confirmed or dismissed at once."""
BURST_PAUSE = 20
"""Steps after a burst before the next one."""
STATE_EVERY = 10
"""Steps after which publications measure weights and zeros anew: what changes slowly."""


class Sampling:
    """Counts the steps of one optimizer and tells which are sampled.

    Args:
        schedule: When full samples are taken as long as nothing looks wrong.

    Attributes:
        num_steps: Steps observed so far.
        num_samples: Full samples taken so far.
        thinning: By how much full samples lie farther apart than the schedule has it.
        is_overdue: Whether a sample was due at a step at which nobody could look, and is to be taken at the next one.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.num_steps = 0
        self.num_samples = 0
        self.thinning = 1
        self.is_overdue = False
        self._schedule = schedule
        self._burst_until = 0
        self._state_step = -STATE_EVERY

    def falls_on(self, step: int) -> bool:
        """Whether a full sample falls on a step, counted from 0."""
        return self._schedule.is_due(step, self.thinning) or step < self._burst_until

    def is_due(self, steps_ahead: int = 0) -> bool:
        """Whether a full sample is due within the coming step and the ``steps_ahead`` steps after it.

        The very first step counts as one: it tells in which order the layers run.
        """
        step = self.num_steps
        if step == 0 or self.is_overdue or self.falls_on(step):
            return True
        return steps_ahead > 0 and any(self.falls_on(step + ahead) for ahead in range(1, steps_ahead + 1))

    @property
    def is_thorough(self) -> bool:
        """Whether the next full sample is a thorough one: the first, every fifth, and each one in a burst."""
        turn = self.num_samples % THOROUGH_EVERY
        return self.num_samples == 0 or turn == THOROUGH_EVERY - 1 or self.num_steps < self._burst_until

    def look_closer(self) -> None:
        """Sample a few steps in a row, unless that was done a moment ago."""
        if self.num_steps >= self._burst_until + BURST_PAUSE:
            self._burst_until = self.num_steps + BURST_STEPS

    @property
    def is_state_old(self) -> bool:
        """Whether weights and zeros were measured so long ago that a publication measures them anew."""
        return self.num_steps >= self._state_step + STATE_EVERY

    def note_state(self) -> None:
        """Weights and zeros are being measured."""
        self._state_step = self.num_steps

    def forget_state(self) -> None:
        """What was measured of weights and zeros belongs to other layers."""
        self._state_step = -STATE_EVERY

    def state_dict(self) -> dict[str, int]:
        """Primitives that :meth:`load_state_dict` takes back."""
        return {
            "num_steps": self.num_steps,
            "state_step": self._state_step,
            "num_samples": self.num_samples,
            "thinning": self.thinning,
            "burst_until": self._burst_until,
        }

    def load_state_dict(self, saved: Saved) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.num_steps = saved.take("num_steps", int, self.num_steps, count)
        self.num_samples = saved.take("num_samples", int, self.num_samples, count)
        self.thinning = saved.take("thinning", int, 1, lambda factor: factor >= 1)
        self._burst_until = saved.take("burst_until", int, self._burst_until, count)
        self._state_step = saved.take("state_step", int, self._state_step, is_step)


def is_step(number: int) -> bool:
    """Whether it can be a step, or that before the first one at which weights were never measured."""
    return -STATE_EVERY <= number < 2**53
