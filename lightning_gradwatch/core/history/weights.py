"""How the matrices of the layers began, and what has become of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy

from lightning_gradwatch.core.saved import Saved, State

_KEPT: dict[str, type[object]] = {
    **dict.fromkeys(("first_gain", "gain", "shrinkage", "_first_weight"), dict[str, float]),
    "zeroed": tuple[str, ...],
}


class WeightFacts:
    """Gains and norms of the matrices that layers own, now and when first seen.

    Attributes:
        first_gain: Gain of the matrices when first seen, by layer.
        gain: The same at the latest thorough sample.
        shrinkage: Weight norms now relative to when they were first seen, by layer.
        zeroed: Layers whose first matrix is exactly zero.
    """

    def __init__(self) -> None:
        self.first_gain: dict[str, float] = {}
        self.gain: dict[str, float] = {}
        self.shrinkage: dict[str, float] = {}
        self.zeroed: tuple[str, ...] = ()
        self._first_weight: dict[str, float] = {}

    def add(self, owning: Sequence[tuple[int, str]], norms: Sequence[float]) -> None:
        """Take in the weight norms of a sample.

        Args:
            owning: Place and name of each layer that owns a matrix.
            norms: One for each layer, at its place; negative for "unknown".
        """
        for i, name in owning:
            first = self._first_weight.setdefault(name, norms[i]) if norms[i] >= 0 else 0.0
            if first > 0 and math.isfinite(norms[i]):
                self.shrinkage[name] = norms[i] / first

    def add_gains(self, owning: Sequence[tuple[int, str]], gains: Sequence[float]) -> None:
        """Take in the gains of a thorough sample; the arguments are those of ``add``."""
        self.gain = {name: gains[i] for i, name in owning if gains[i] > 0 and math.isfinite(gains[i])}
        self.first_gain = {**self.gain, **self.first_gain}
        self.zeroed = tuple(name for i, name in owning if gains[i] == 0)

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {name: copy(getattr(self, name)) for name in _KEPT}

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        saved = Saved.of(state)
        for name, kind in _KEPT.items():
            setattr(self, name, saved.take(name, kind, getattr(self, name)))
