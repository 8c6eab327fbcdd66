"""A model that can be put anywhere along its next update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.core.clip import make_policies
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.trials.headroom.critical import critical_multiple
from lightning_gradwatch.trials.loss import device_of, in_precision
from lightning_gradwatch.trials.memory import computed_within
from lightning_gradwatch.trials.state import random_states, set_random_states

_SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4)
"""What a float16 loss is multiplied by, the first whose gradients are finite, as a loss scaler finds it."""


class Line:
    """A copy whose next update is made, and can be taken by any multiple.

    Args:
        model: The copy.
        optimizer: Of the copy; it makes the update.
        compute: The loss of the copy.
        precision: Of autocast; None for none.
        clip: What the gradient is clipped by before; None for nothing.
        room: Bytes that a forward pass with its graph may keep.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        compute: Callable[[], Tensor],
        *,
        precision: torch.dtype | None,
        clip: Any,
        room: float,
    ) -> None:
        self._compute, self._precision, self._device = compute, precision, device_of(model)
        self._random = random_states(self._device)
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # the gradient, clipped as the run clips it
        settings = Settings(policies=make_policies(clip))
        watcher = Watcher(model, optimizer, settings, tell=lambda _: None) if settings.policies else None
        loss = self._differentiated(room)
        if watcher is not None:
            watcher.observe(loss=loss)
            watcher.close()
        # the update
        self._starts = [p.detach().clone() for p in self._parameters]
        optimizer.step()
        self._updates = [p.detach() - start for p, start in zip(self._parameters, self._starts, strict=True)]
        self._slope = sum(_product(p.grad, update) for p, update in zip(self._parameters, self._updates, strict=True))
        self._loss_at_start = float(loss)
        # a half has no room for sums of squares; the loss is as precise as its own dtype or that of the weights
        self._resolution = max(torch.finfo(dtype).eps for dtype in (loss.dtype, *{p.dtype for p in self._parameters}))

    @property
    def multiple(self) -> float:
        """By which the update may be multiplied until the loss is back where it began."""
        return critical_multiple(self._loss_at, self._slope, self._resolution)

    def _differentiated(self, room: float) -> Tensor:
        """The loss, whose gradients are in place."""
        scales: Sequence[float] = (*_SCALES, 1.0) if self._precision is torch.float16 else (1.0,)
        for scale in scales:
            for parameter in self._parameters:
                parameter.grad = None
            loss = computed_within(room, self._parameters, self._loss)
            (loss * scale).backward()
            grads = [p.grad for p in self._parameters if p.grad is not None]
            if scale == 1 or all(_is_finite(grad) for grad in grads):
                break
        for grad in grads if scale != 1 else ():
            grad.div_(scale)
        return loss.detach()

    def _loss_at(self, multiple: float) -> float:
        """The loss at a multiple of the update, with the same random numbers and buffers each time."""
        if not multiple:
            return self._loss_at_start
        self._go_to(multiple)
        return float(self._loss().detach())

    def _go_to(self, multiple: float) -> None:
        with torch.no_grad():
            for parameter, start, update in zip(self._parameters, self._starts, self._updates, strict=True):
                parameter.copy_(start + multiple * update)
            for buffer, before in self._buffers:
                buffer.copy_(before)

    def _loss(self) -> Tensor:
        set_random_states(self._random)
        with in_precision(self._device, self._precision):
            return self._compute()


def _product(grad: Tensor | None, update: Tensor) -> float:
    if grad is None:
        return 0.0
    dense = grad.to_dense() if grad.layout is torch.sparse_coo else grad
    return float((dense.double() * update.double()).sum())


def _is_finite(grad: Tensor) -> bool:
    values = grad.coalesce().values() if grad.layout is torch.sparse_coo else grad
    return bool(values.isfinite().all())
