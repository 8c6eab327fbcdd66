"""Which layers a gradient has reached."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_gradwatch.core.records import Observation
from lightning_gradwatch.core.samples import Sample
from lightning_gradwatch.core.saved import Saved, State


class Reach:
    """Remembers which layers ever had a gradient.

    Attributes:
        had_gradient: Layers that a gradient has reached in any sample.
        trained: Of the layers that own parameters, have a matrix and ran in the latest sample those that a gradient
            reaches, in the order in which they ran.
        silent: Of these the ones whose gradient was exactly zero.
        unreached: The others: no gradient has ever reached them.
        spare: Layers that something trained feeds and whose output nobody wants, when last looked at.
    """

    def __init__(self) -> None:
        self.had_gradient: set[str] = set()
        self.trained: list[str] = []
        self.silent: list[str] = []
        self.unreached: list[str] = []
        self.spare: frozenset[str] = frozenset()

    def add(self, observation: Observation, sample: Sample) -> None:
        """Take in a sample."""
        norms, outputs = observation.last_norms, sample.output_norms
        self.trained, self.silent, self.unreached, self.spare = [], [], [], sample.spare
        for i, layer in enumerate(observation.layers):
            if norms[i] > 0 or outputs[i] > 0 or not math.isfinite(norms[i]):
                self.had_gradient.add(layer.name)
            if not layer.has_matrix or not layer.parameters or layer.name not in sample.ran:
                continue  # of a layer whose parameters all belong to others, the output alone proves nothing
            if layer.name not in self.had_gradient and outputs[i] < 0:
                self.unreached.append(layer.name)
                continue
            self.trained.append(layer.name)
            if outputs[i] == 0 and norms[i] <= 0:  # a weight that other layers share may have a gradient from them
                self.silent.append(layer.name)

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back; what comes with every sample is left out."""
        return {"had_gradient": sorted(self.had_gradient)}

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.had_gradient = Saved.of(state).take("had_gradient", set[str], self.had_gradient)
