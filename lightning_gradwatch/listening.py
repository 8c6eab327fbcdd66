"""Whether any gradient reaches us at all: a watch that sees nothing must not look like one that finds nothing."""

from __future__ import annotations

import enum

from torch import Tensor, nn

from lightning_gradwatch.core.alerts.kind import named
from lightning_gradwatch.core.layers import is_measurable
from lightning_gradwatch.core.modules import named_parameters, parameters
from lightning_gradwatch.core.norms import norms
from lightning_gradwatch.core.shards import local
from lightning_gradwatch.host import Host

BATCHES = 20
"""Batches after which it is asked whether the weights have moved, or as many steps were taken."""


class Hearing(enum.Enum):
    """How far the listening has come."""

    LISTENING = "no gradient has come yet"
    HEARD = "one has come"
    GIVEN_UP = "it was said that none comes"


class Listener:
    """Counts batches until a gradient comes; says so, once, if none does and the weights move all the same.

    Args:
        host: The training loop.

    Attributes:
        hearing: How far it has come.
        num_announced: Optimizer steps that were announced, with or without gradients.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.hearing = Hearing.LISTENING
        self.num_announced = 0
        self._num_batches = 0
        self._first_weights: list[Tensor] = []

    def after_batch(self, model: nn.Module, num_observed: int) -> str | None:
        """Call after each batch while it is listening.

        The host waits for the device in one batch of twenty, and only as long as nothing comes.

        Args:
            model: The model.
            num_observed: Steps whose gradients have come.

        Returns:
            What is to be said now: mostly nothing.
        """
        if num_observed:
            self.hearing = Hearing.HEARD
            return None
        self._num_batches += 1
        if self._num_batches == 1:
            self._first_weights = _weights(model)
        if self._num_batches % BATCHES:
            return None
        if self.num_announced < BATCHES and not self._has_moved(model):
            return None
        self.hearing = Hearing.GIVEN_UP
        stray = self._stray(model)
        if stray:
            return (
                f"No gradient has reached any parameter that an optimizer holds in {self._num_batches} batches, so the "
                f"network does not learn. {named(stray)} get gradients, and no optimizer holds them. Try: give these "
                "parameters to an optimizer; it may have got those of another network, or of a copy."
            )
        return (
            f"No gradient has reached GradWatch in {self._num_batches} batches, so it can say nothing about this run. "
            f"{self._host.ways_past_us()}"
        )

    def _stray(self, model: nn.Module) -> list[str]:
        """The parameters that get gradients and belong to no optimizer."""
        held = {id(p) for one in self._host.optimizers() for group in one.param_groups for p in group["params"]}
        return [name for name, p in named_parameters(model) if p.grad is not None and id(p) not in held]

    def _has_moved(self, model: nn.Module) -> bool:
        return [norm.item() for norm in _weights(model)] != [norm.item() for norm in self._first_weights]


def _weights(model: nn.Module) -> list[Tensor]:
    """Numbers that change when the trained weights do, without a host sync."""
    return norms([local(p.detach()) for p in parameters(model) if p.requires_grad and is_measurable(p)])
