"""What every rank sees alike: the gradients of the weights, once the ranks have added them up (DDP)."""

from __future__ import annotations

from lightning_gradwatch.core.history.depth import FALLBACK_FULL_SCORE_DECADES
from lightning_gradwatch.core.history.profile import decades_lost, depth_profile
from lightning_gradwatch.core.records import Observation


class ResignedError(RuntimeError):
    """The watch has failed on one of the ranks that have to measure together, so it ends on all of them."""

    def __init__(self) -> None:
        super().__init__("GradWatch failed on another rank, of which each holds a part of the gradients")


class SharedDoubts:
    """Whether something begins to look wrong, by numbers of which no rank has others than its neighbour.

    What a rank sees at its layers' outputs is of its own batch. If that decided when to look closer, one rank would
    take a sample while the others wait. New are more layers with a gradient of exactly zero than ever before, and a
    loss along the depth where there was none at the last look.

    Args:
        decades: Loss along the depth, in the gradients of the weights, at which an alert may be near.
    """

    def __init__(self, decades: float = FALLBACK_FULL_SCORE_DECADES / 2) -> None:
        self._decades = decades
        self._most_silent = 0
        self._was_losing = False

    def are_new(self, observation: Observation) -> bool:
        """Whether the last step of an observation gives a reason to look closer that those before it did not."""
        layers, norms = observation.layers, observation.last_norms
        silent = sum(layer.owns_matrix and norm == 0 for layer, norm in zip(layers, norms, strict=True))
        lost = decades_lost(depth_profile(layers, [-1.0] * len(layers), norms).norms) or 0.0
        is_losing = lost >= self._decades
        is_new = silent > self._most_silent or (is_losing and not self._was_losing)
        self._most_silent, self._was_losing = max(silent, self._most_silent), is_losing
        return is_new
