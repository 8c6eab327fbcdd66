"""Measures on a copy how far the learning rate is from the edge."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_gradwatch.core.clip import make_policies
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.headroom.critical import critical_multiple
from lightning_gradwatch.headroom.records import Headroom
from lightning_gradwatch.trials import optimizers
from lightning_gradwatch.trials.copying import copy_of, unwrapped
from lightning_gradwatch.trials.loss import device_of, in_precision, loss_of, on_device
from lightning_gradwatch.trials.memory import computed_within, room_beside, size
from lightning_gradwatch.trials.state import random_states, set_random_states, undisturbed

NUM_BATCHES = 5
"""Batches of a loader that are measured, one after the other."""


def lr_headroom(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    optimizer: Optimizer,
    precision: torch.dtype | None = None,
    clip: Any = None,
    max_memory: float | None = None,
) -> Headroom:
    """Measure by which multiple of the present update the loss on the batch stops falling (critical sharpness).

    The update is what the optimizer does on a copy of the model, with its momentum, weight decay, learning rates and
    clipping as they are now. Each measurement costs six forward passes at most, a backward pass and a step. All of
    them draw the same random numbers, so that dropout drops the same elements; batch normalisation uses the statistics
    of the batch, as in training. Model, optimizer and random numbers are afterwards as they were, bit for bit.

    On a quadratic and with plain gradient descent it is ``2 g.g / (rate * g.Hg)``.

    Args:
        model: A module or a LightningModule with whole weights.
        batch: A batch, or a ``DataLoader``, of which five batches are measured: single ones scatter.
        loss_fn: As for :func:`~lightning_gradwatch.prescribe`.
        optimizer: The run's own.
        precision: Dtype of mixed precision; None for that of the model.
        clip: What the training clips by, as for ``auto_clip``; None for no clipping.
        max_memory: Bytes that it may take; None for nine tenths of what is free on the model's device.

    Returns:
        The multiples.

    Raises:
        ValueError: If the model cannot be copied whole, or an argument is wrong.
        RuntimeError: If there is too little memory, or the copy fails.

    Source: Critical sharpness, arXiv:2601.16979.

    Example:
        >>> print(lr_headroom(model, loader, nn.CrossEntropyLoss(), optimizer=optimizer))
        Headroom of the learning rate 2.5 (1.8 to 4.1 on 5 batches): at 2.5 times the rate ...
    """
    model, optimizer = unwrapped(model), optimizers.check(optimizer)
    given = list(itertools.islice(batch, NUM_BATCHES)) if isinstance(batch, DataLoader) else [batch]
    rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
    with undisturbed(model):
        multiples = [_measured(model, part, loss_fn, optimizer, precision, clip, max_memory) for part in given]
    return Headroom(tuple(multiples), rates)


def _measured(
    model: nn.Module,
    batch: Any,
    loss_fn: Any,
    optimizer: Optimizer,
    precision: torch.dtype | None,
    clip: Any,
    max_memory: float | None,
) -> float:
    """The multiple for one batch."""
    device = device_of(model)
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
    # a copy, its gradients, the weights before the step, and the update
    need = 4 * size(model.parameters()) + 2 * size(model.buffers()) + size(state)
    room = room_beside(need, device, max_memory, "a copy of the model in training")
    copied, of_copy, loss_fn, batch = copy_of(model, optimizer, loss_fn, batch)
    line = _Line(copied, of_copy, loss_fn, on_device(batch, device), precision, clip, room)
    return critical_multiple(line.loss_at, torch.finfo(line.dtype).eps)


class _Line:
    """A copy that can be put anywhere along its update.

    Args:
        model: The copy.
        optimizer: Of the copy; it makes the update.
        loss_fn: The copy's loss function.
        batch: The batch.
        precision: Of autocast; None for none.
        clip: What the gradient is clipped by before; None for nothing.
        room: Bytes that a forward pass with its graph may keep.

    Attributes:
        dtype: What the loss is computed in, which limits its precision.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Any,
        batch: Any,
        precision: torch.dtype | None,
        clip: Any,
        room: float,
    ) -> None:
        self._model, self._loss_fn, self._batch, self._precision = model, loss_fn, batch, precision
        self._device = device_of(model)
        self._random = random_states(self._device)
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in self._parameters:
            parameter.grad = None
        # the gradient, clipped as the run clips it
        settings = Settings(policies=make_policies(clip))
        watcher = Watcher(model, optimizer, settings, tell=lambda _: None) if settings.policies else None
        loss = computed_within(room, self._parameters, self._loss)
        loss.backward()
        if watcher is not None:
            watcher.observe(loss=loss)
            watcher.close()
        # the update
        self._starts = [p.detach().clone() for p in self._parameters]
        optimizer.step()
        self._updates = [p.detach() - start for p, start in zip(self._parameters, self._starts, strict=True)]
        self._loss_at_start = float(loss.detach())
        # a half has no room for sums of squares; the loss is as precise as its own dtype or that of the weights
        dtypes = (loss.dtype, *{p.dtype for p in self._parameters})
        self.dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def loss_at(self, multiple: float) -> float:
        """The loss at a multiple of the update, with the same random numbers and buffers each time."""
        if not multiple:
            return self._loss_at_start
        with torch.no_grad():
            for parameter, start, update in zip(self._parameters, self._starts, self._updates, strict=True):
                parameter.copy_(start + multiple * update)
            for buffer, before in self._buffers:
                buffer.copy_(before)
        return float(self._loss().detach())

    def _loss(self) -> Tensor:
        set_random_states(self._random)
        with in_precision(self._device, self._precision):
            return loss_of(self._model, self._batch, self._loss_fn)
