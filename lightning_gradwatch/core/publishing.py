"""What every step since the last publication adds to the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_gradwatch.core.clip.clippers import ClipWindow
from lightning_gradwatch.core.records import Observation, Publication
from lightning_gradwatch.core.saved import Saved, State, count
from lightning_gradwatch.core.window import PublicationWindow


class Publisher:
    """Gathers the numbers of one optimizer's steps until they are published.

    Args:
        optimizer: Name of the optimizer; ``""`` if there is only one.

    Attributes:
        num_publications: Publications asked for so far.
    """

    def __init__(self, optimizer: str) -> None:
        self._optimizer = optimizer
        self._norms = PublicationWindow()
        self._clips = ClipWindow()
        self.num_publications = 0

    def add(self, observation: Observation, skips: bool) -> None:
        """Take in steps; of those that are skipped because of their gradient, the norms do not count."""
        norms = observation.norms
        self._norms.add(norms[norms[:, 0].isfinite()] if skips else norms)
        if observation.clips is not None:
            self._clips.add(observation.clips)

    def clipped_share(self, counts: Tensor) -> Tensor | None:
        """Share of the steps so far in which a gradient of each layer was clipped; None if there were none."""
        steps = max((clip.num_steps for clip in self._clips.summary()), default=0)
        return torch.where(counts < 0, counts, counts / steps) if steps else None

    def publish(self, observation: Observation, scores: Mapping[str, float]) -> tuple[Publication, ...]:
        """What there is to publish, once; nothing if no step has come since the last time."""
        window = self._norms.summary()
        if window is None:
            return ()
        self._norms.clear()
        clips = self._clips.summary()
        self._clips.clear()
        return (
            Publication(
                step=observation.step,
                optimizer=self._optimizer,
                layers=observation.layers,
                window=window,
                scores=dict(scores),
                clips=clips,
            ),
        )

    def rearrange(self, names: Sequence[str], before: Sequence[str]) -> None:
        """Keep what was gathered of layers in another order, or of other layers, which have no past."""
        self._norms.rearrange([0, *(1 + before.index(name) if name in before else None for name in names)])

    def state_dict(self) -> State:
        """Tensors and primitives that ``load_state_dict`` takes back."""
        return {
            "num_publications": self.num_publications,
            "clip_window": self._clips.state_dict(),
            "window": self._norms.state_dict(),
        }

    def load_state_dict(self, saved: Saved, layers: Sequence[str] | None) -> None:
        """Go on where ``state_dict`` was taken; without norms if it is not known of which layers they are."""
        self.num_publications = saved.take("num_publications", int, self.num_publications, count)
        self._clips.load_state_dict(saved.part("clip_window"))
        if layers is not None:
            self._norms.load_state_dict(saved.part("window"), 1 + len(layers))
