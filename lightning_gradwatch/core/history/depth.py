"""The gradient along the depth of the network, sample by sample: what the last five of them say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from lightning_gradwatch.core.history.profile import Profile, decades_lost, slope
from lightning_gradwatch.core.saved import Saved, State, count

FULL_SCORE_DECADES = 4.0
"""Decades lost between the loss end and the input end at which the vanishing score reaches 1."""
FALLBACK_FULL_SCORE_DECADES = 5.0
"""The same where only parameter gradients are known: they separate sick from healthy less sharply."""
WARM_UP_SAMPLES = 5
MEDIAN_SAMPLES = 5


class DepthHistory:
    """The median of the last five values of ``decades_lost``, after five warm-up samples.

    It depends on neither the loss scale nor the learning rate nor the optimizer.

    Attributes:
        num_samples: Samples whose profile was long enough to tell anything.
        latest: Decades lost in the latest sample; None if that told nothing.
        full_score: Decades at which the score reaches 1.
    """

    def __init__(self) -> None:
        self.num_samples = 0
        self.latest: float | None = None
        self.full_score = FULL_SCORE_DECADES
        self._recent: list[float] = []
        self._growth: list[float] = []
        self._is_at_outputs = True
        self._num_strange = 0

    @property
    def is_ready(self) -> bool:
        """Whether there are enough samples to judge."""
        return self.num_samples >= WARM_UP_SAMPLES + MEDIAN_SAMPLES and len(self._recent) == MEDIAN_SAMPLES

    @property
    def decades(self) -> float:
        """Decades lost, 0 until there are enough samples."""
        return median(self._recent) if self.is_ready else 0.0

    @property
    def score(self) -> float:
        """Decades lost as a score in [0, 1]."""
        return min(max(self.decades / self.full_score, 0.0), 1.0)

    @property
    def growth(self) -> float:
        """Decades that the gradient grows towards the input, by thirds and by slope alike; 0 until ready."""
        return max(median(self._growth), 0.0) if self.is_ready else 0.0

    def is_alone(self, threshold: float, growth: float) -> bool:
        """Whether the latest sample alone loses ``threshold`` decades or grows by ``growth``, and the median does not.

        Then a few more samples at once would settle something. False until there are enough to judge.
        """
        if not self.is_ready:
            return False
        return self._recent[-1] >= threshold > self.decades or self._growth[-1] >= growth > self.growth

    def add(self, profile: Profile) -> None:
        """Take in the profile of a sample."""
        self.latest = decades = decades_lost(profile.norms)
        if decades is None:
            return
        if not self._fits(profile):
            self.latest = None
            return
        self.num_samples += 1
        self._recent = [*self._recent, decades][-MEDIAN_SAMPLES:]
        growth = -decades if decades >= 0 else min(-decades, -slope(profile.norms) * (len(profile.norms) - 1))
        self._growth = [*self._growth, growth][-MEDIAN_SAMPLES:]
        self.full_score = FULL_SCORE_DECADES if profile.at_outputs else FALLBACK_FULL_SCORE_DECADES

    def _fits(self, profile: Profile) -> bool:
        """Whether a profile is of the kind seen so far; after five of the other kind that one is the rule."""
        self._num_strange = 0 if profile.at_outputs == self._is_at_outputs else self._num_strange + 1
        if self._num_strange and self._recent and self._num_strange < MEDIAN_SAMPLES:
            return False
        if self._num_strange:
            self._is_at_outputs, self._num_strange = profile.at_outputs, 0
            self._recent, self._growth = [], []
        return True

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {
            "num_samples": self.num_samples,
            "recent": list(self._recent),
            "growth": list(self._growth),
            "full_score": self.full_score,
            "is_at_outputs": self._is_at_outputs,
            "num_strange": self._num_strange,
        }

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        saved = Saved.of(state)
        self.num_samples = saved.take("num_samples", int, self.num_samples, count)
        recent, growth = (saved.take(name, list[float], [], are_recent) for name in ("recent", "growth"))
        if len(recent) == len(growth):  # of the same samples
            self._recent, self._growth = recent, growth
        self.full_score = saved.take("full_score", float, self.full_score, lambda decades: decades > 0)
        self._is_at_outputs = saved.take("is_at_outputs", bool, self._is_at_outputs)
        self._num_strange = saved.take("num_strange", int, self._num_strange, count)


def are_recent(decades: Sequence[float]) -> bool:
    """Whether these can be the decades of the last samples, as a check for ``Saved.take``."""
    return len(decades) <= MEDIAN_SAMPLES and all(map(math.isfinite, decades))
