"""What the loss has done so far, free of its offset and scale."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from lightning_gradwatch.core.records import AlertLevel
from lightning_gradwatch.core.saved import Saved, State, count

WINDOW = 30
FALLING_SHARE = 0.9
NOTICE_STEPS = 20
STILL_STEPS = 40
STILL_SHARE = 0.75
LEARNED_SHARE = 0.25
DONE_SHARE = 1e-4
STILL_FALL = 1e-3
LONG = 200
"""Steps after which a loss that has moved by less than a thousandth, though it falls at each of them, is still."""
LOWER_SHARE = 0.6
"""In a flat stretch less than this share of (earlier, later) pairs of steps has the later loss lower."""


class LossHistory:
    """The first 30 and the last 60 losses."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._first: list[float] = []
        self._recent: list[float] = []

    def add(self, losses: Sequence[float | None]) -> None:
        """Append steps; unknown and non-finite losses are left out."""
        known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
        self.num_steps += len(known)
        self._first += known[: WINDOW - len(self._first)]
        self._recent = [*self._recent, *known][-2 * WINDOW :]

    @property
    def is_flat(self) -> bool:
        """Whether the last 30 steps are no lower than the 30 before them; False until there are 60."""
        return len(self._recent) == 2 * WINDOW and _lower_share(*_halves(self._recent)) < LOWER_SHARE

    @property
    def roughness(self) -> float | None:
        """Middle change of the loss from step to step over the last 30 steps, relative to its size; None early."""
        last = self._recent[-WINDOW:]
        if len(last) < WINDOW or not self.now:
            return None
        return median(abs(b - a) for a, b in pairwise(last)) / abs(self.now)

    @property
    def is_falling(self) -> bool:
        """Whether the last ten losses (in the first twenty steps: the later half) are clearly below the first ones."""
        later = self._recent[-min(10, self.num_steps // 2) :] if self.num_steps > 1 else []
        earlier = self._first[: len(later)]
        return bool(later) and _lower_share(earlier, later) >= FALLING_SHARE

    @property
    def lower_share(self) -> float | None:
        """Share of pairs, one of the first 30 and one of the last 30 steps, with the late loss lower; None early."""
        if self.num_steps < 2 * WINDOW:
            return None
        return _lower_share(self._first, self._recent[-WINDOW:])

    @property
    def has_not_improved(self) -> bool:
        """Whether the last 30 steps are no lower than the first 30; False until there are 60."""
        share = self.lower_share
        return share is not None and share < LOWER_SHARE

    @property
    def has_learned(self) -> bool:
        """Whether less than a quarter of the loss at the start is left: then it may well be flat."""
        return self.start > 0 and abs(self.now) < LEARNED_SHARE * self.start

    @property
    def is_done(self) -> bool:
        """Whether next to nothing is left of the loss: then zero gradients, and no updates, are as they should be."""
        return self.now == 0 or (self.start > 0 and abs(self.now) <= DONE_SHARE * self.start)

    @property
    def is_still(self) -> bool:
        """Whether 200 steps and more have not moved the loss by a thousandth of what it was, however steadily."""
        return self.num_steps >= LONG and abs(self.start - self.now) < STILL_FALL * abs(self.start)

    @property
    def patience(self) -> float:
        """How much more a borderline alert must show while the loss falls, as a factor; 1 if it does not.

        Below 40 steps all that can be said is that it has begun to fall; later it must be falling still.
        """
        if len(self._recent) >= STILL_STEPS and _lower_share(self._recent[-40:-30], self._recent[-10:]) >= STILL_SHARE:
            return 1.5
        return 1.25 if self.is_falling else 1.0

    @property
    def concern(self) -> AlertLevel | None:
        """What the loss makes of a doubtful finding: an alert if it is flat, a notice if it has not begun to fall."""
        if self.has_learned:
            return None
        if self.is_flat:
            return "alert"
        return "notice" if self.num_steps >= NOTICE_STEPS and self.patience == 1.0 else None

    @property
    def concern_regardless(self) -> AlertLevel | None:
        """The same where other layers make the loss fall: as soon as it could have been told to be flat."""
        if self.num_steps >= 2 * WINDOW:
            return "alert"
        return "notice" if self.num_steps >= NOTICE_STEPS else None

    def last(self, number: int) -> list[float]:
        """The last losses, at most 60 of them."""
        return self._recent[-number:]

    @property
    def first(self) -> float:
        """The very first loss; NaN without any."""
        return self._first[0] if self._first else math.nan

    @property
    def start(self) -> float:
        """Median of the first ten losses; NaN without any."""
        return median(self._first[:10]) if self._first else math.nan

    @property
    def now(self) -> float:
        """Median of the last ten losses; NaN without any."""
        return median(self._recent[-10:]) if self._recent else math.nan

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {"num_steps": self.num_steps, "first": list(self._first), "recent": list(self._recent)}

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        saved = Saved.of(state)
        first = saved.take("first", list[float], [], lambda losses: len(losses) <= WINDOW)
        recent = saved.take("recent", list[float], [], lambda losses: len(losses) <= 2 * WINDOW)
        num_steps = saved.take("num_steps", int, 0, count)
        # only together do they say how the loss has gone
        if len(first) == min(num_steps, WINDOW) and len(recent) == min(num_steps, 2 * WINDOW):
            self.num_steps, self._first, self._recent = num_steps, first, recent


def _halves(losses: list[float]) -> tuple[list[float], list[float]]:
    return losses[:WINDOW], losses[WINDOW:]


def _lower_share(earlier: Sequence[float], later: Sequence[float]) -> float:
    ordered = sorted(earlier)
    return sum(len(ordered) - bisect_right(ordered, b) for b in later) / (len(earlier) * len(later))
