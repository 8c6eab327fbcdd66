"""The norms of every step of one optimizer, until they are written in bins. It knows no files."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lightning_gradwatch.core.records import Observation
from lightning_gradwatch.core.sampling import YOUNG_STEPS
from lightning_gradwatch.reading.bins import Bins, reduce_steps
from lightning_gradwatch.reading.schema import Array

BLOCK_STEPS = 170
"""Steps that are written together once a run is no longer young; with those that are still on the device (15) or on
their way to the host (15) a process that is killed takes along at most 200. Of a young run that is at most 30."""
YOUNG_STEPS_TOGETHER, YOUNG_SECONDS = 10, 1.0
"""Of a young run steps are written together, too, but no longer than this after the last ones: as many as lie on the
device between two samples."""
WIDTHS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, BLOCK_STEPS)
"""Steps that a bin may have."""
LAYERS_PER_STEP = 120
"""Layers for which a bin has one step more."""
AROUND_STEPS, MAX_WINDOWS, MAX_WINDOW_NORMS = 200, 20, 5_000_000
"""Steps before an alert that are written one by one, how often that is done, and for how many norms at most."""
_CLIP_LINES = ("clip_threshold", "clip_coefficient")


class Steps(NamedTuple):
    """Some steps.

    Attributes:
        steps: Shape ``(steps,)``, int64.
        norms: Shape ``(steps, layers)``, float32.
        lines: Numbers of the run beside them, NaN where one is not known, shape ``(steps, lines)``, float32.
    """

    steps: Array
    norms: Array
    lines: Array


class StepLog:
    """Collects the steps of one optimizer while its list of layers stays as it is.

    Args:
        num_layers: Layers of the model.
        saved: Bins of steps that were waiting when the run was interrupted; None for none.
        clock: Seconds that never run backwards.
    """

    def __init__(self, num_layers: int, saved: Bins | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_layers = num_layers
        self._clock = clock
        self._num_waiting = self._num_recent = 0
        self._written_at: float | None = None
        self._saved = saved
        self._waiting: list[Steps] = []
        self._recent: deque[Steps] = deque()
        self._last_single = -1
        self._num_windows = 0

    def add(self, steps: Steps, is_alarming: bool = False) -> Bins | None:
        """Take in steps, in their order; the bins that are to be written now, if any.

        Of a young run they are written soon after they have come: what a killed process leaves is all there is of it.
        """
        num_steps = len(steps.steps)
        if not num_steps:
            return None
        self._waiting.append(steps)
        self._recent.append(steps)
        self._num_waiting += num_steps
        self._num_recent += num_steps
        # of the last steps no more than are written before an alert
        while self._num_recent - len(self._recent[0].steps) >= AROUND_STEPS:
            self._num_recent -= len(self._recent.popleft().steps)
        if steps.steps[-1] >= YOUNG_STEPS:
            return self.take() if self._num_waiting >= BLOCK_STEPS else None
        is_late = self._written_at is None or self._clock() - self._written_at >= YOUNG_SECONDS
        return self.take() if is_alarming or is_late or self._num_waiting >= YOUNG_STEPS_TOGETHER else None

    def take(self) -> Bins | None:
        """Whatever waits, which is to be written then; None for nothing."""
        bins = self.waiting()
        self._saved, self._waiting, self._num_waiting = None, [], 0
        self._written_at = self._clock()
        if bins is not None and (bins.first == bins.last).all():
            self._last_single = int(bins.last[-1])
        return bins

    def waiting(self) -> Bins | None:
        """Whatever waits, in bins as long as the run's age wants them; None for nothing."""
        found = [] if self._saved is None else [self._saved]
        if self._waiting and self._num_layers:
            steps = _joined(self._waiting)
            width = bin_width(int(steps.steps[0]), self._num_layers)
            bins = reduce_steps(*steps, width=width)
            found.append(bins.merged(bins.starts()))
        return Bins.joined(found) if found else None

    def before_alert(self) -> Bins | None:
        """The last steps one by one; None where they are written like this already, or where that was done enough."""
        room = min(MAX_WINDOWS, 1 + MAX_WINDOW_NORMS // (AROUND_STEPS * max(self._num_layers, 1)))
        if not self._recent or not self._num_layers or self._num_windows >= room:
            return None
        recent = _joined(self._recent)
        is_new = recent.steps > self._last_single
        if not is_new.any():
            return None
        self._num_windows += 1
        self._last_single = int(recent.steps[-1])
        bins = Bins.of_steps(*(part[is_new] for part in recent))
        return bins.merged(bins.starts())


def bin_width(step: int, num_layers: int) -> int:
    """Steps that a bin has at this age of a run: it grows with the age, and with the size of the model.

    Args:
        step: The step.
        num_layers: Layers of the model.
    """
    wanted = 1 if step < YOUNG_STEPS else max(step // YOUNG_STEPS, num_layers // LAYERS_PER_STEP)
    return next((width for width in WIDTHS if width >= wanted), BLOCK_STEPS)


def lines_of(observation: Observation) -> tuple[str, ...]:
    """Names of the numbers of the run that an observation has of every step."""
    num_policies = 0 if observation.clips is None else observation.clips.shape[1] // 3
    suffixes = ["" if place == 0 else f"-{place + 1}" for place in range(num_policies)]
    return ("total_norm", "loss", *(f"{name}{suffix}" for suffix in suffixes for name in _CLIP_LINES))


def steps_of(observation: Observation) -> Steps:
    """The steps of an observation, but for those that a loss scaler has skipped: their gradient is no gradient."""
    norms = observation.norms.numpy()
    losses = [np.nan if loss is None else loss for loss in observation.losses]
    lines = [norms[:, :1], np.array(losses, np.float32).reshape(-1, 1)]
    if observation.clips is not None:  # threshold, coefficient and norm after clipping of each policy
        clips = observation.clips.numpy().reshape(len(norms), -1, 3)
        lines.append(clips[..., :2].reshape(len(norms), -1))
    found = Steps(np.array(observation.steps, np.int64), norms[:, 1:], np.concatenate(lines, axis=1))
    if not observation.is_scaled:
        return found
    is_taken = np.isfinite(norms[:, 0])
    return Steps(*(part[is_taken] for part in found))


def _joined(parts: Sequence[Steps] | deque[Steps]) -> Steps:
    return Steps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
