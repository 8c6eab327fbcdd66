"""Which steps take a sample, and how thorough it is."""

from __future__ import annotations

from lightning_gradwatch.core.saved import Saved, count
from lightning_gradwatch.core.schedule import Schedule

THOROUGH_EVERY = 5
"""Every how many samples one is thorough."""
SEEKING_EVERY = 5 * THOROUGH_EVERY
"""Every how many samples one seeks causes, too."""
BURST_STEPS = 5
"""Steps sampled in a row when something looks wrong, so that it is confirmed or dismissed at once."""
BURST_PAUSE = 20
"""Steps after a burst before the next one."""
YOUNG_STEPS = 1000
"""As long a run is young: the record keeps every single step of it."""
HOME_EVERY, HOME_EVERY_LATER = 10, 15
"""Steps after which norms are brought to the host at the latest, in a young run and later: what is still on the device
when a process is killed is lost."""
HISTOGRAM_GROWTH = 0.05
"""Histograms lie farther and farther apart: by this part of the steps so far."""
LAYERS_PER_STEP = 2
"""Layers per step between two histograms, once a run is no longer young: of large models there are fewer."""


class Sampling:
    """Counts the steps of one optimizer and tells which are sampled.

    Args:
        schedule: When samples are taken as long as nothing looks wrong.

    Attributes:
        num_steps: Steps observed so far.
        num_samples: Samples taken so far.
        num_histograms: Histograms taken so far.
        thinning: By how much samples lie farther apart than the schedule has it.
        is_overdue: Whether a sample was due at a step at which nobody could look, and is to be taken at the next one.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.num_steps = 0
        self.num_samples = 0
        self.thinning = 1
        self.is_overdue = False
        self._schedule = schedule
        self.num_histograms = 0
        self._burst_until = 0
        self._next_histogram = 0
        self._asked = (0, -1, 1)

    def falls_on(self, step: int) -> bool:
        """Whether a sample falls on a step, counted from 0."""
        since, due, thinning = self._asked  # the schedule is asked once from one sample to the next
        if not since <= step <= due or thinning != self.thinning:
            due = self._schedule.next_due(step, self.thinning)
            self._asked = (step, due, self.thinning)
        return step == due or step < self._burst_until

    def is_due(self, steps_ahead: int = 0) -> bool:
        """Whether a sample is due within the coming step and the ``steps_ahead`` steps after it.

        The very first step counts as one: it tells in which order the layers run.
        """
        step = self.num_steps
        if step == 0 or self.is_overdue or self.falls_on(step):
            return True
        return steps_ahead > 0 and any(self.falls_on(step + ahead) for ahead in range(1, steps_ahead + 1))

    @property
    def is_thorough(self) -> bool:
        """Whether the next sample is a thorough one: the first, every fifth, and each one in a burst."""
        turn = self.num_samples % THOROUGH_EVERY
        return self.num_samples == 0 or turn == THOROUGH_EVERY - 1 or self.num_steps < self._burst_until

    @property
    def seeks_causes(self) -> bool:
        """Whether the next sample takes what tells causes apart, too.

        Of the thorough ones the first two do, every fifth, and each one in a burst, as a suspicion asks for.
        """
        if not self.is_thorough:
            return False
        is_turn = self.num_samples < THOROUGH_EVERY or self.num_samples % SEEKING_EVERY == SEEKING_EVERY - 1
        return is_turn or self.num_steps < self._burst_until

    def look_closer(self) -> None:
        """Sample a few steps in a row, unless that was done a moment ago."""
        if self.num_steps >= self._burst_until + BURST_PAUSE:
            self._burst_until = self.num_steps + BURST_STEPS

    @property
    def steps_to_home(self) -> int:
        """Steps whose norms may lie on the device before they are brought to the host."""
        return HOME_EVERY if self.num_steps < YOUNG_STEPS else HOME_EVERY_LATER

    def takes_histogram(self, every: int, num_layers: int) -> bool:
        """Whether a thorough sample at this step takes a histogram, which is counted then.

        Args:
            every: Steps that lie between two of them at least; 0 for never.
            num_layers: Layers of the model.
        """
        step = self.num_steps
        if not every or step < self._next_histogram:
            return False
        size = 0 if step < YOUNG_STEPS else num_layers // LAYERS_PER_STEP
        self._next_histogram = step + max(every, int(step * HISTOGRAM_GROWTH), size)
        self.num_histograms += 1
        return True

    def state_dict(self) -> dict[str, int]:
        """Primitives that ``load_state_dict`` takes back."""
        return {
            "num_steps": self.num_steps,
            "num_samples": self.num_samples,
            "thinning": self.thinning,
            "num_histograms": self.num_histograms,
            "next_histogram": self._next_histogram,
            "burst_until": self._burst_until,
        }

    def load_state_dict(self, saved: Saved) -> None:
        """Go on where ``state_dict`` was taken."""
        self.num_steps = saved.take("num_steps", int, self.num_steps, count)
        self.num_samples = saved.take("num_samples", int, self.num_samples, count)
        self.thinning = saved.take("thinning", int, 1, lambda factor: factor >= 1)
        self._burst_until = saved.take("burst_until", int, self._burst_until, count)
        self.num_histograms = saved.take("num_histograms", int, self.num_histograms, count)
        self._next_histogram = saved.take("next_histogram", int, self._next_histogram, count)
