"""Every policy at work on one optimizer, and what came of it since the last publication."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.clip.clipper import Clipper, ClipperState
from lightning_gradwatch.core.clip.policy import ClipPolicy
from lightning_gradwatch.core.layers import select
from lightning_gradwatch.core.records import Clip
from lightning_gradwatch.core.saved import Saved, State
from lightning_gradwatch.core.shards import Cut, Shards

NUM_FACTS = 3
"""Numbers per policy and step: threshold, coefficient, norm after clipping."""


class ClippersState(TypedDict, total=False):
    """What a checkpoint holds of ``Clippers``."""

    clippers: list[ClipperState]
    clipped: Tensor


class Clippers:
    """Applies each policy to the gradients that it is for; a gradient belongs to the first policy that wants it.

    Args:
        policies: The policies, the first ones first.
        parameters: The optimizer's parameters.
        owners: Name of each parameter's layer.
        cuts: How each parameter is cut into what the ranks hold; empty if the parameters themselves say so.

    Attributes:
        clipped: For each parameter the number of steps since ``forget`` in which its gradient was clipped, shape
            ``(parameters,)``, float32, on the device.
    """

    def __init__(
        self,
        policies: Sequence[ClipPolicy],
        parameters: Sequence[Tensor],
        owners: Sequence[str],
        cuts: Sequence[Cut] = (),
    ) -> None:
        device = parameters[0].device
        self._chosen = [torch.tensor(places, device=device) for places in _choose(policies, owners)]
        self._clippers = []
        for policy, places in zip(policies, self._chosen, strict=True):
            own = [parameters[place] for place in places.tolist()]
            own_cuts = [cuts[place] for place in places.tolist()] if cuts else ()
            if own:
                self._clippers.append(Clipper(policy, own, Shards(own, own_cuts)))
        self._chosen = [places for places in self._chosen if len(places)]
        self.clipped = torch.zeros(len(parameters), dtype=torch.float32, device=device)

    def __len__(self) -> int:
        return len(self._clippers)

    def clip_(self, norms: Tensor, loss_scale: Tensor | None, out: Tensor | None = None) -> Tensor:
        """Clip. No host sync.

        Args:
            norms: As for ``Clipper.clip_``, of all the optimizer's parameters.
            loss_scale: Factor that is still in the gradients, shape ``()``; None for none.
            out: Where to put what is returned.

        Returns:
            Threshold, coefficient (norm after by norm before) and norm after, policy by policy; shape
            ``(len(self) * NUM_FACTS,)``.
        """
        facts: list[Tensor] = []
        for clipper, places in zip(self._clippers, self._chosen, strict=True):
            is_all = len(places) == len(norms)
            done = clipper.clip_(norms if is_all else norms[places], loss_scale)
            is_clipped = done.coefficients < 1
            if is_all:
                self.clipped += is_clipped
            else:
                self.clipped.index_add_(0, places, is_clipped.float())
            facts += [done.threshold, done.coefficient, done.clipped_norm]
        return torch.stack(facts, out=out)

    @contextmanager
    def without_memory(self) -> Iterator[None]:
        """Leave counts and what policies remember as they are, whatever is clipped meanwhile. No host sync."""
        kept = [self.clipped, *(value for clipper in self._clippers for value in clipper.memory.values())]
        before = [value.clone() for value in kept]
        try:
            yield
        finally:
            for value, was in zip(kept, before, strict=True):
                value.copy_(was)

    def forget(self) -> None:
        """Start to count anew."""
        self.clipped.zero_()

    def state_dict(self) -> ClippersState:
        """Tensors and primitives that ``load_state_dict`` takes back."""
        return {"clippers": [clipper.state_dict() for clipper in self._clippers], "clipped": self.clipped.cpu().clone()}

    def load_state_dict(self, state: ClippersState) -> None:
        """Go on where ``state_dict`` was taken; a policy that has changed starts afresh."""
        for clipper, saved in zip(self._clippers, state.get("clippers", ()), strict=False):
            clipper.load_state_dict(saved)
        clipped = state.get("clipped")
        if clipped is not None and clipped.shape == self.clipped.shape:
            self.clipped.copy_(clipped)


class ClipWindow:
    """What the policies did at every step since the last publication, on the host."""

    def __init__(self) -> None:
        self._last: list[list[float]] = []
        self._num_steps: list[int] = []
        self._num_clipped: list[int] = []

    def add(self, facts: Tensor) -> None:
        """Append steps; ``facts`` has the shape ``(steps, policies * NUM_FACTS)``."""
        steps = facts.view(len(facts), -1, NUM_FACTS)
        if not len(steps) or not steps.shape[1]:
            return
        if len(self._last) != steps.shape[1]:
            self._num_steps = self._num_clipped = [0] * steps.shape[1]
        self._last = steps[-1].tolist()
        self._num_steps = [n + len(steps) for n in self._num_steps]
        clipped = (steps[:, :, 1] < 1).sum(0).tolist()
        self._num_clipped = [n + more for n, more in zip(self._num_clipped, clipped, strict=True)]

    def summary(self) -> tuple[Clip, ...]:
        """One record per policy."""
        together = zip(self._last, self._num_steps, self._num_clipped, strict=True)
        return tuple(Clip(last[0], last[1], last[2], steps, clipped) for last, steps, clipped in together)

    def clear(self) -> None:
        """Start a new window."""
        self._last, self._num_steps, self._num_clipped = [], [], []

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {name: list(values) for name, values in self.__dict__.items()}

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        saved = Saved.of(state)
        last = saved.take("_last", list[list[float]], [], lambda rows: all(len(row) == NUM_FACTS for row in rows))
        counts = [saved.take(name, list[int], []) for name in ("_num_steps", "_num_clipped")]
        if [len(each) for each in counts] == [len(last)] * 2:
            self._last, (self._num_steps, self._num_clipped) = last, counts


def require_optimizer(policy: ClipPolicy, names: Sequence[str]) -> None:
    """Refuse a policy for an optimizer that is not there.

    Raises:
        ValueError: If its ``optimizer`` is none of ``names``.
    """
    if policy.optimizer is not None and policy.optimizer not in names:
        raise refuse("optimizer", "the name of an optimizer", policy.optimizer, f"they are called {', '.join(names)}")


def _choose(policies: Sequence[ClipPolicy], owners: Sequence[str]) -> list[list[int]]:
    free = list(range(len(owners)))
    chosen = []
    for policy in policies:
        wanted = set(select(set(owners), tuple(policy.include), tuple(policy.exclude)))
        chosen.append([place for place in free if owners[place] in wanted])
        free = [place for place in free if owners[place] not in wanted]
    return chosen
