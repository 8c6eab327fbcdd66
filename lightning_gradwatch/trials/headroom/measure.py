"""Measures on a copy how far the learning rate is from the edge."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_gradwatch.trials import optimizers
from lightning_gradwatch.trials.copying import copy_of, unwrapped
from lightning_gradwatch.trials.headroom.line import Line
from lightning_gradwatch.trials.headroom.records import Headroom
from lightning_gradwatch.trials.loss import device_of, loss_of, on_device
from lightning_gradwatch.trials.memory import room_beside, size
from lightning_gradwatch.trials.state import undisturbed

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
        loss_fn: As for [`prescribe`][lightning_gradwatch.prescribe].
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

    Examples:
        >>> print(lr_headroom(model, loader, nn.CrossEntropyLoss(), optimizer=optimizer))
        Headroom of the learning rate 2.5 (1.8 to 4.1 on 5 batches): at 2.5 times the rate ...
    """
    model, optimizer = unwrapped(model), optimizers.check(optimizer)
    optimizers.require_fit(model, optimizer, loss_fn)
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
    part = on_device(batch, device)
    line = Line(
        copied, of_copy, lambda: loss_of(copied, part, loss_fn), precision=precision, clip=clip, room=room
    )  # fmt: skip
    return line.multiple
