"""How far the optimizer moves the weights, from a bounded sample of elements: no copy of the weights is held."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.core.measure import dense, per_layer

MAX_ELEMENTS = 256
"""Elements per parameter."""
UNKNOWN = -1.0


def thin(tensor: Tensor) -> Tensor:
    """At most 256 elements at even distances, in float32 (float64 for doubles); a view where that is possible."""
    tensor = dense(tensor.detach())
    step = _stride(tensor.numel())
    flat = tensor.reshape(-1) if tensor.is_contiguous() or tensor.numel() == 0 else _flat_storage(tensor)
    return flat[::step].to(torch.promote_types(tensor.dtype, torch.float32))


def _stride(num_elements: int) -> int:
    """A distance that leaves at most 256 elements and divides no dimension, so that every row and column is met."""
    step = math.ceil(num_elements / MAX_ELEMENTS)
    while math.gcd(step, num_elements) > 1 and step > 1:
        step += 1
    return step


def _pushed_by(parameter: Tensor) -> Tensor:
    """The gradient where it lies element by element beside the weights, and otherwise nothing."""
    gradient = parameter.grad
    return torch.zeros_like(parameter) if gradient is None or gradient.layout is not torch.strided else gradient


def _flat_storage(tensor: Tensor) -> Tensor:
    """The elements in the order of their storage, so that channels-last weights need no copy."""
    is_dense = torch.ops.aten.is_non_overlapping_and_dense(tensor)
    return tensor.as_strided((tensor.numel(),), (1,)) if is_dense else tensor.reshape(-1)


class UpdateMeter:
    """Compares a thinned-out copy of the weights before a step with the weights after it.

    Args:
        parameters: The watched parameters.
        layer_index: Layer of each parameter; ``num_layers`` for "not reported".
        num_layers: Number of layers.
        optimizer: Whose moments are read, if it has any.
    """

    def __init__(
        self, parameters: Sequence[Tensor], layer_index: Sequence[int], num_layers: int, optimizer: Optimizer
    ) -> None:
        device = parameters[0].device
        kept = [i for i, p in enumerate(parameters) if p.device == device]
        self._parameters = [parameters[i] for i in kept]
        self._num_layers = num_layers
        self._optimizer = optimizer
        sizes = [p.numel() * (2 if p.is_complex() else 1) for p in self._parameters]
        counts = [math.ceil(size / _stride(size)) for size in sizes]
        owner = [layer_index[i] for i in kept]
        self._layer = torch.tensor([o for o, n in zip(owner, counts, strict=True) for _ in range(n)], device=device)
        shares = [size / n for size, n in zip(sizes, counts, strict=True)]
        self._share = torch.tensor([s for s, n in zip(shares, counts, strict=True) for _ in range(n)], device=device)
        self._before: Tensor | None = None
        self._has_gradient: Tensor | None = None
        self._unknown = torch.full((num_layers,), UNKNOWN, device=device)
        self.ratio = self._unknown
        self.unchanged = self._unknown

    def remember(self) -> None:
        """Call before a step: take the thinned-out weights, and where there is a gradient."""
        self._before = self._gather(self._parameters)
        self._has_gradient = self._gather([_pushed_by(p) for p in self._parameters]) != 0

    def compare(self) -> None:
        """Call at the step after :meth:`remember`: sets :attr:`ratio` and :attr:`unchanged`, per layer."""
        if self._before is None or self._has_gradient is None:
            return
        change = self._gather(self._parameters) - self._before
        moved = self._sum(self._share * change.square())
        size = self._sum(self._share * self._before.square())
        self.ratio = torch.where(size > 0, (moved / size).sqrt(), self._unknown)
        pushed = self._sum(self._has_gradient.float())
        stuck = self._sum((self._has_gradient & (change == 0)).float())
        self.unchanged = torch.where(pushed > 0, stuck / pushed, self._unknown)
        self._before = self._has_gradient = None

    def moments(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """What Adam and its kin know about the gradients.

        Args:
            num_steps: Steps taken so far, for the bias correction.

        Returns:
            Per layer, shape ``(layers,)``, ``-1`` if the optimizer has no such moments: the share of elements whose
            root mean square gradient lies below ``eps``, and the mean of squared first over second moment, which is 1
            for a constant gradient and about ``(1 - beta1) / (1 + beta1)`` for pure noise.
        """
        state = self._optimizer.state
        if num_steps == 0 or not any("exp_avg_sq" in state.get(p, {}) for p in self._parameters):
            return self._unknown, self._unknown
        group = self._optimizer.param_groups[0]
        beta1, beta2 = (float(b) for b in group["betas"])
        moments = [state.get(p, {}) for p in self._parameters]
        none = [p if moment else torch.zeros_like(p) for p, moment in zip(self._parameters, moments, strict=True)]
        second = self._gather([m.get("exp_avg_sq", zero) for m, zero in zip(moments, none, strict=True)])
        first = self._gather([m.get("exp_avg", zero) for m, zero in zip(moments, none, strict=True)])
        second, first = second / (1 - beta2**num_steps), first / (1 - beta1**num_steps)
        alive = second > 0
        count = self._sum(alive.float())
        below = self._sum((alive & (second.sqrt() < float(group["eps"]))).float())
        signal = self._sum(torch.where(alive, first.square() / second, 0))
        return (
            torch.where(count > 0, below / count, self._unknown),
            torch.where(count > 0, signal / count, self._unknown),
        )

    def _gather(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([thin(t) for t in tensors]).float()

    def _sum(self, values: Tensor) -> Tensor:
        return per_layer(values[None], self._layer, self._num_layers)[0]
