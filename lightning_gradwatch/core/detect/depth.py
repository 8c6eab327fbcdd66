"""Gradients that vanish or explode with depth, at layer outputs; and with time, in recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from typing import Any

from lightning_gradwatch.core.detect.incident import Incident
from lightning_gradwatch.core.detect.profile import Profile, decades_lost, largest_jump, outer_ends, positive, slope
from lightning_gradwatch.core.records import SMALL_SHARE, AlertLevel, Finding
from lightning_gradwatch.core.saved import Saved, count

FULL_SCORE_DECADES = 4.0
"""Decades lost between the loss end and the input end at which the vanishing score reaches 1."""
FALLBACK_FULL_SCORE_DECADES = 5.0
"""The same where only parameter gradients are known: they separate sick from healthy less sharply."""
EARLY_FACTOR = 1.25
EARLY_SAMPLES = 20
"""Until then a borderline loss waits: many a network starts with one and sheds it in its first steps."""
SEAM_FACTOR = 1.5
SEAM_LAYERS = 20
"""Two towers may meet at a jump, such as an encoder that is reached through attention: nothing is lost with depth."""
WARM_UP_SAMPLES = 5
MEDIAN_SAMPLES = 5
EXPLODING_DECADES = 3.0
TIME_DECADES = 3.0
GRAVE_TIME_DECADES = 2 * TIME_DECADES
HORIZON_SHARE = 0.01


class DepthRule:
    """Vanishing gradients: the median of the last five values of :func:`decades_lost`, after five warm-up samples.

    It depends on neither the loss scale nor the learning rate nor the optimizer. Opens at the threshold on the score
    ``decades / 4``, in the first twenty samples at five quarters of it, and ends below three quarters of it.

    Args:
        threshold: Score in (0, 1] at which the alert opens; 0.5 is a loss of two decades.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._num_samples = 0
        self._recent: list[float] = []
        self._growth: list[float] = []
        self._full_score = FULL_SCORE_DECADES
        self._is_at_outputs = True
        self._num_strange = 0
        self.incident = Incident("vanishing", threshold * FULL_SCORE_DECADES)

    @property
    def is_ready(self) -> bool:
        """Whether there are enough samples to judge."""
        return self._num_samples >= WARM_UP_SAMPLES + MEDIAN_SAMPLES and len(self._recent) == MEDIAN_SAMPLES

    @property
    def decades(self) -> float:
        """Decades lost, 0 until there are enough samples."""
        return median(self._recent) if self.is_ready else 0.0

    @property
    def score(self) -> float:
        """Decades lost as a score in [0, 1]."""
        return min(max(self.decades / self._full_score, 0.0), 1.0)

    @property
    def growth(self) -> float:
        """Decades that the gradient grows towards the input, by thirds and by slope alike; 0 until ready."""
        return max(median(self._growth), 0.0) if self.is_ready else 0.0

    @property
    def is_suspicious(self) -> bool:
        """Whether the latest sample alone would open an alert that is not open."""
        if self.incident.finding is not None or not self._recent or not self.is_ready:
            return False
        threshold = self._threshold * self._full_score
        is_vanishing = self._recent[-1] >= threshold > self.decades
        return is_vanishing or self._growth[-1] >= EXPLODING_DECADES > self.growth

    def update(self, step: int, profile: Profile, patience: Callable[[], float] = lambda: 1.0) -> list[Finding]:
        """Take in a sample; the finding if it opened or ended just now.

        Args:
            step: The step of the sample.
            profile: The gradient along the depth.
            patience: Tells below which multiple of the threshold an alert can wait, because the loss is falling.
        """
        decades = decades_lost(profile.norms)
        if decades is None or not self._fits(profile):
            return []
        self._num_samples += 1
        self._recent = [*self._recent, decades][-MEDIAN_SAMPLES:]
        growth = -decades if decades >= 0 else min(-decades, -slope(profile.norms) * (len(profile.norms) - 1))
        self._growth = [*self._growth, growth][-MEDIAN_SAMPLES:]
        self._full_score = FULL_SCORE_DECADES if profile.at_outputs else FALLBACK_FULL_SCORE_DECADES
        threshold = self._threshold * self._full_score
        is_open, present = self.incident.finding is not None, self.decades
        can_wait = not is_open and (
            present < threshold or present < threshold * self._factor(profile, decades, patience())
        )
        if can_wait:
            return []
        found = self.incident.judge(step, present, outer_ends(profile), threshold=threshold)
        return [] if found is None else [found]

    def _factor(self, profile: Profile, decades: float, patience: float) -> float:
        """Below which multiple of the threshold an alert that is not open can wait."""
        is_seam = _is_seam(profile.norms, decades, self._threshold * self._full_score)
        is_early = self._num_samples < EARLY_SAMPLES
        return max(patience, SEAM_FACTOR if is_seam else 1.0, EARLY_FACTOR if is_early else 1.0)

    def _fits(self, profile: Profile) -> bool:
        """Whether a profile is of the kind seen so far; after five of the other kind that one is the rule."""
        self._num_strange = 0 if profile.at_outputs == self._is_at_outputs else self._num_strange + 1
        if self._num_strange and self._recent and self._num_strange < MEDIAN_SAMPLES:
            return False
        if self._num_strange:
            self._is_at_outputs, self._num_strange = profile.at_outputs, 0
            self._recent, self._growth = [], []
        return True

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        return {
            "num_samples": self._num_samples,
            "recent": list(self._recent),
            "growth": list(self._growth),
            "full_score": self._full_score,
            "is_at_outputs": self._is_at_outputs,
            "num_strange": self._num_strange,
            "incident": self.incident.state_dict(),
        }

    def load_state_dict(self, state: Saved | Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        saved = Saved.of(state)
        self._num_samples = saved.take("num_samples", int, self._num_samples, count)
        recent, growth = (saved.take(name, list[float], [], _are_recent) for name in ("recent", "growth"))
        if len(recent) == len(growth):  # of the same samples
            self._recent, self._growth = recent, growth
        self._full_score = saved.take("full_score", float, self._full_score, lambda decades: decades > 0)
        self._is_at_outputs = saved.take("is_at_outputs", bool, self._is_at_outputs)
        self._num_strange = saved.take("num_strange", int, self._num_strange, count)
        self.incident.load_state_dict(saved.part("incident"))


def _are_recent(decades: Sequence[float]) -> bool:
    return len(decades) <= MEDIAN_SAMPLES and all(map(math.isfinite, decades))


def _is_seam(norms: Sequence[float], decades: float, threshold: float) -> bool:
    """Whether a deep profile is level but for one jump that makes up most of what is lost."""
    if len(norms) < SEAM_LAYERS:
        return False
    jump = largest_jump(norms)
    return jump >= decades / 2 and decades - jump < threshold


class TimeRule:
    """Gradients that vanish through time: the same decades along the time steps of recurrent layers.

    Losing them is no illness as such: a task may need the last few steps only. So three decades are an alert only while
    the loss is flat, a notice before that if it has not begun to fall, and otherwise nothing.

    A falling loss speaks only for layers that make it fall. One that has less than 1 % of the squared gradient and
    loses six decades, in five samples running, is an alert as soon as a loss could be called flat, whatever it does:
    so an encoder that forgets behind a decoder that learns without it.
    """

    def __init__(self) -> None:
        self._recent: dict[str, list[float]] = {}
        self._shares: dict[str, list[float]] = {}
        self.horizons: dict[str, tuple[int, int, float]] = {}
        self.incident = Incident("vanishing_through_time", TIME_DECADES)

    @property
    def worst(self) -> tuple[str, float]:
        """The layer that loses most and its decades; ``("", 0)`` until there are five samples."""
        ready = {name: median(d) for name, d in self._recent.items() if len(d) == MEDIAN_SAMPLES}
        name = max(ready, key=ready.__getitem__, default="")
        return name, ready.get(name, 0.0)

    @property
    def _overlooked(self) -> str:
        """The layer that loses most of those whose losses the others' learning hides; ``""`` without one."""
        ready = {name: min(d) for name, d in self._recent.items() if len(d) == MEDIAN_SAMPLES}
        small = {name for name in ready if max(self._shares.get(name, [1.0])) < SMALL_SHARE}
        return max((name for name in small if ready[name] >= GRAVE_TIME_DECADES), key=ready.__getitem__, default="")

    @property
    def growth(self) -> tuple[str, float]:
        """The layer whose gradient grows most into the past, and by how many decades; ``("", 0)`` until ready."""
        ready = {name: -median(d) for name, d in self._recent.items() if len(d) == MEDIAN_SAMPLES}
        name = max(ready, key=ready.__getitem__, default="")
        return name, max(ready.get(name, 0.0), 0.0)

    def update(
        self,
        step: int,
        sequences: Mapping[str, Sequence[float]],
        level: AlertLevel | None,
        shares: Mapping[str, float] | None = None,
        level_regardless: AlertLevel | None = None,
    ) -> list[Finding]:
        """Take in a sample; the finding if it opened or ended just now.

        Args:
            step: The step of the sample.
            sequences: Gradient norms over time steps by layer, the earliest first.
            level: What the loss makes of a layer that forgets.
            shares: Each layer's share of the squared gradient norm.
            level_regardless: The same as ``level`` for layers that the loss says nothing of.
        """
        for name, norms in sequences.items():
            if shares is not None and name in shares:
                self._shares[name] = [*self._shares.get(name, []), shares[name]][-MEDIAN_SAMPLES:]
            decades = decades_lost(positive(norms))
            if decades is not None:
                self._recent[name] = [*self._recent.get(name, []), decades][-MEDIAN_SAMPLES:]
            before = self.horizons.get(name, (0, 0, 0.0))[2]
            self.horizons[name] = memory_horizon(norms), len(norms), before if decades is None else decades
        if not self._recent:
            return []
        layer, decades = self.worst
        if level != "alert" and level_regardless is not None and self._overlooked:
            layer, level = self._overlooked, level_regardless
            decades = median(self._recent[layer])
        if self.incident.finding is None and level is None:
            return []
        found = self.incident.judge(step, decades, (layer,), level or "notice")
        return [] if found is None else [found]

    def keep(self, layers: Collection[str]) -> None:
        """Forget every layer but these: the others are no more."""
        self._recent = {name: decades for name, decades in self._recent.items() if name in layers}
        self._shares = {name: shares for name, shares in self._shares.items() if name in layers}
        self.horizons = {name: horizon for name, horizon in self.horizons.items() if name in layers}

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        return {
            "recent": {name: list(d) for name, d in self._recent.items()},
            "shares": {name: list(s) for name, s in self._shares.items()},
            "horizons": {name: list(h) for name, h in self.horizons.items()},
            "incident": self.incident.state_dict(),
        }

    def load_state_dict(self, state: Saved | Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        saved = Saved.of(state)
        self._recent = saved.take("recent", dict[str, list[float]], {}, lambda d: all(map(_are_recent, d.values())))
        self._shares = saved.take("shares", dict[str, list[float]], {}, lambda s: all(s.values()))
        self.horizons = saved.take("horizons", dict[str, tuple[int, int, float]], {})
        self.incident.load_state_dict(saved.part("incident"))


def memory_horizon(norms: Sequence[float]) -> int:
    """How many time steps back the gradient reaches: to the first whose norm is at least 1 % of the largest."""
    least = HORIZON_SHARE * max(filter(math.isfinite, norms), default=0.0)
    reached = (place for place, norm in enumerate(norms) if math.isfinite(norm) and norm >= least > 0)
    return len(norms) - next(reached, len(norms))
