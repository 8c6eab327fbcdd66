"""The gradient along each branch of a network that has several: towers, encoders, heads of their own depth."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from lightning_gradwatch.core.history.depth import DepthHistory
from lightning_gradwatch.core.history.profile import Profile
from lightning_gradwatch.core.saved import Saved, State

MIN_LAYERS = 6
"""Two layers in each third, so that no single one decides."""
MAX_BRANCHES = 20
MOST = 2 / 3
"""Part of all layers from which on the branches are the network, and the order in which layers run says nothing."""
Part: TypeAlias = tuple[DepthHistory, Profile]
"""What the samples have shown of a network, or of a branch of it, and its latest profile."""


class Branches:
    """What is lost along each branch, between the place where it meets the others and its input end.

    The order in which layers run lays towers behind one another: what one of them loses is then taken for the other's.

    Attributes:
        depths: What the samples have shown of each branch, by the layer at its input end.
        profiles: The latest profile of each.
    """

    def __init__(self) -> None:
        self.depths: dict[str, DepthHistory] = {}
        self.profiles: dict[str, Profile] = {}
        self._layers: dict[str, tuple[str, ...]] = {}

    def known(self) -> list[Part]:
        """The branches of which there are enough samples to judge."""
        return [(self.depths[name], profile) for name, profile in self.profiles.items() if self.depths[name].is_ready]

    def beside(self, depth: DepthHistory, profile: Profile) -> list[Part]:
        """The whole network and its branches; these alone if they are most of it, and there are several."""
        known = self.known()
        sizes = [len(layers) for layers in self._layers.values()]
        is_whole = known and len(sizes) > 1 and sum(sizes) >= MOST * len(profile.layers)
        return known if is_whole else [(depth, profile), *known]

    def follow(self, branches: Sequence[tuple[str, ...]], num_layers: int) -> None:
        """Take in how the network branches, as measured; a branch that is nearly all of it is judged with the whole.

        Args:
            branches: Names of the layers of each, the input end first.
            num_layers: How many layers have a gradient at their output.
        """
        long = [layers for layers in branches if MIN_LAYERS <= len(layers) < num_layers - MIN_LAYERS // 2]
        self._layers = {layers[0]: layers for layers in sorted(long, key=len, reverse=True)[:MAX_BRANCHES]}
        self.depths = {name: self.depths.get(name, DepthHistory()) for name in self._layers}
        self.profiles = {name: profile for name, profile in self.profiles.items() if name in self._layers}

    def add(self, profile: Profile) -> None:
        """Take in the profile of a sample."""
        if not profile.at_outputs:
            return
        norms = dict(zip(profile.layers, profile.norms, strict=True))
        for name, layers in self._layers.items():
            seen = tuple(layer for layer in layers if layer in norms)
            if len(seen) >= MIN_LAYERS:
                self.profiles[name] = Profile(seen, tuple(norms[layer] for layer in seen), at_outputs=True)
                self.depths[name].add(self.profiles[name])

    def keep(self, layers: Collection[str]) -> None:
        """Forget every branch that has lost a layer."""
        self.follow([branch for branch in self._layers.values() if {*branch} <= {*layers}], len(layers))

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {
            "layers": [list(layers) for layers in self._layers.values()],
            "depths": {name: depth.state_dict() for name, depth in self.depths.items()},
        }

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        saved = Saved.of(state)
        branches = saved.take("layers", list[list[str]], [], lambda found: all(map(len, found)))
        self._layers = {layers[0]: tuple(layers) for layers in branches}
        self.depths, depths = {name: DepthHistory() for name in self._layers}, saved.part("depths")
        for name, depth in self.depths.items():
            depth.load_state_dict(depths.part(name))
