"""The gradient along the time steps of recurrent layers, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import median

from lightning_gradwatch.core.history.depth import MEDIAN_SAMPLES, are_recent
from lightning_gradwatch.core.history.profile import decades_lost, lost_in_the_middle, positive
from lightning_gradwatch.core.saved import Saved, State

HORIZON_SHARE = 0.01


class TimeHistory:
    """What recurrent and repeatedly called layers lose along time, in the last five samples of each.

    Attributes:
        horizons: Memory horizon, number of time steps and decades lost on the way through them, by layer.
        recent: Decades lost in the last five samples, by layer.
        shares: Each layer's share of the squared gradient norm in them, by layer; 1 where it was not known.
        two_sided: Layers that were last seen to lose it on the way from both ends to the middle.
    """

    def __init__(self) -> None:
        self.horizons: dict[str, tuple[int, int, float]] = {}
        self.recent: dict[str, list[float]] = {}
        self.shares: dict[str, list[float]] = {}
        self.two_sided: set[str] = set()

    @property
    def worst(self) -> tuple[str, float]:
        """The layer that loses most and its decades; ``("", 0)`` until there are five samples."""
        ready = {name: median(d) for name, d in self.recent.items() if len(d) == MEDIAN_SAMPLES}
        name = max(ready, key=ready.__getitem__, default="")
        return name, ready.get(name, 0.0)

    @property
    def growth(self) -> tuple[str, float]:
        """The layer whose gradient grows most into the past, and by how many decades; ``("", 0)`` until ready."""
        ready = {name: -median(d) for name, d in self.recent.items() if len(d) == MEDIAN_SAMPLES}
        name = max(ready, key=ready.__getitem__, default="")
        return name, max(ready.get(name, 0.0), 0.0)

    def is_alone(self, decades: float) -> bool:
        """Whether a layer has lost so many decades in its latest sample, and not in the median of the last five."""
        ready = [lost for lost in self.recent.values() if len(lost) == MEDIAN_SAMPLES]
        return any(lost[-1] >= decades > median(lost) for lost in ready)

    def hidden(self, decades: float, share: float) -> str:
        """The layer that loses most of those that the loss says nothing of; ``""`` without one.

        Args:
            decades: What it must have lost in each of the last five samples.
            share: Part of the squared gradient norm that it must have stayed below in them.
        """
        ready = {name: min(d) for name, d in self.recent.items() if len(d) == MEDIAN_SAMPLES}
        small = {name for name in ready if max(self.shares.get(name, [1.0])) < share}
        return max((name for name in small if ready[name] >= decades), key=ready.__getitem__, default="")

    def add(self, sequences: Mapping[str, Sequence[float]], shares: Mapping[str, float] | None = None) -> None:
        """Take in a sample.

        Args:
            sequences: Gradient norms over time steps by layer, the earliest first.
            shares: Each layer's share of the squared gradient norm.
        """
        for name, norms in sequences.items():
            if shares is not None and name in shares:
                self.shares[name] = [*self.shares.get(name, []), shares[name]][-MEDIAN_SAMPLES:]
            decades, inside = decades_lost(positive(norms)), lost_in_the_middle(positive(norms))
            if decades is not None:
                (self.two_sided.add if inside > max(decades, 0.0) else self.two_sided.discard)(name)
                decades = inside if name in self.two_sided else decades
                self.recent[name] = [*self.recent.get(name, []), decades][-MEDIAN_SAMPLES:]
            before = self.horizons.get(name, (0, 0, 0.0))[2]
            self.horizons[name] = memory_horizon(norms), len(norms), before if decades is None else decades

    def keep(self, layers: Collection[str]) -> None:
        """Forget every layer but these: the others are no more."""
        self.recent = {name: decades for name, decades in self.recent.items() if name in layers}
        self.shares = {name: shares for name, shares in self.shares.items() if name in layers}
        self.horizons = {name: horizon for name, horizon in self.horizons.items() if name in layers}

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {
            "recent": {name: list(d) for name, d in self.recent.items()},
            "shares": {name: list(s) for name, s in self.shares.items()},
            "horizons": {name: list(h) for name, h in self.horizons.items()},
        }

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        saved = Saved.of(state)
        self.recent = saved.take("recent", dict[str, list[float]], {}, lambda d: all(map(are_recent, d.values())))
        self.shares = saved.take("shares", dict[str, list[float]], {}, lambda s: all(s.values()))
        self.horizons = saved.take("horizons", dict[str, tuple[int, int, float]], {})


def memory_horizon(norms: Sequence[float]) -> int:
    """How many time steps back the gradient reaches: to the first whose norm is at least 1 % of the largest."""
    least = HORIZON_SHARE * max(filter(math.isfinite, norms), default=0.0)
    reached = (place for place, norm in enumerate(norms) if math.isfinite(norm) and norm >= least > 0)
    return len(norms) - next(reached, len(norms))
