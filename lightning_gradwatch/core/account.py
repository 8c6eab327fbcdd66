"""The gradients that have come by at the layers' outputs since the last step, call by call."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightning_gradwatch.core.attribution.tracer import Tracer
from lightning_gradwatch.core.safe_norms import root_of_squares

MIN_SEQUENCE = 8
"""Time steps from which on there is something to say about how a gradient fares along them."""


class Call(Protocol):
    """One call of a layer, with the norms of the gradients at its outputs."""

    norms: list[Tensor]


class Account:
    """What has been seen of gradients, until an optimizer has read it.

    Attributes:
        page: Number of this account; what was noted under an earlier number is forgotten.
        is_read: Whether an optimizer has read it, so that the next gradient opens a new one.
        calls: The calls of each layer whose outputs had a gradient, the last one first.
        nonzeros: Share of elements that are not exactly zero, of float16 gradients, by layer.
        sequences: Gradient norms along the time steps that recurrent layers have read.
        tracer: Measures the backward pass operation by operation, on thorough samples.
    """

    def __init__(self) -> None:
        self.page = 0
        self.tracer = Tracer()
        self._is_backward: bool | None = None
        self.forget()

    def forget(self) -> None:
        """Open a new account."""
        self.page += 1
        self.is_read = False
        self.calls: dict[str, list[Call]] = {}
        self.nonzeros: dict[str, Tensor] = {}
        self.sequences: dict[str, Tensor] = {}

    def begin_backward(self, loss: Tensor | None = None) -> None:
        """Say that the loss is about to be differentiated.

        From the first such word on, only gradients between it and ``end_backward`` count: those of a
        ``torch.autograd.grad`` inside the training step (a gradient penalty, an adversarial example) are none of the
        loss. Where nobody says a word, all count but those of ``create_graph=True``.

        Args:
            loss: The loss, attached to its graph; None if it is not known.
        """
        if self._is_backward is None:
            was_read = self.is_read
            self.forget()
            self.is_read = was_read
        self._is_backward = True
        if loss is not None and self.tracer.is_awake:
            self.tracer.trace(loss)

    def end_backward(self) -> None:
        """Say that the gradients of the loss are complete."""
        self._is_backward = False

    @property
    def is_of_the_loss(self) -> bool:
        """Whether the gradients that come now are those of the loss."""
        return not torch.is_grad_enabled() if self._is_backward is None else self._is_backward

    def leave_out(self, layer: str) -> None:
        """Forget a layer: a part of a norm is none."""
        self.calls.pop(layer, None)
        self.nonzeros.pop(layer, None)

    def norm(self, layer: str) -> Tensor | None:
        """L2 norm of dLoss/d(output), summed in squares over calls and outputs, shape ``()``; None if unseen.

        Float64 where the device has it and it may be needed.
        """
        calls = self.calls.get(layer)
        if calls is None:
            return None
        return root_of_squares(calls[0].norms if len(calls) == 1 else [norm for call in calls for norm in call.norms])

    def nonzero_fraction(self, layer: str) -> Tensor | None:
        """Share of elements of dLoss/d(output) that are not exactly zero, at the last call; None if unseen.

        In [0, 1], shape ``()``, float32; for float16 alone.
        """
        return self.nonzeros.get(layer)

    def along_time(self) -> dict[str, Tensor]:
        """Gradient norms over time steps, the earliest first, for layers with at least 8 of them."""
        repeated = {
            name: torch.stack([root_of_squares(call.norms) for call in reversed(calls)]).float()
            for name, calls in self.calls.items()
            if len(calls) >= MIN_SEQUENCE
        }
        return {**repeated, **{name: s for name, s in self.sequences.items() if len(s) >= MIN_SEQUENCE}}
