"""AGC: each unit's gradient norm is clipped at a share of that unit's weight norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.clip.gradients import settle_, values_of
from lightning_gradwatch.core.clip.policy import SelectivePolicy, require_number
from lightning_gradwatch.core.clip.transform import Outcome, Step, Transform
from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.norms import fill_missing
from lightning_gradwatch.core.shards import Shards


@dataclass(frozen=True)
class AGC(SelectivePolicy):
    """Clips each unit's gradient norm at a share of that unit's weight norm (adaptive gradient clipping of NFNets).

    A unit is what one output sees: a row of a weight, a filter of a convolution, a whole bias. The paper and timm leave
    out the last linear layer, which no rule finds by itself: name it in ``exclude``. Needs whole weights and is refused
    where these are sharded.

    Attributes:
        clip_factor: Largest allowed ratio of gradient norm to weight norm; positive.
        min_weight_norm: Floor of the weight norm, without which weights that start at zero would stay there; positive.
        include: As in [`Percentile`][lightning_gradwatch.Percentile].
        exclude: As in [`Percentile`][lightning_gradwatch.Percentile].
        optimizer: As in [`Percentile`][lightning_gradwatch.Percentile].

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021.
    """

    name: ClassVar[str] = "agc"

    clip_factor: float = 0.01
    min_weight_norm: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("clip_factor", self.clip_factor, "positive and finite", "the paper uses 0.01 for large batches")
        require_number("min_weight_norm", self.min_weight_norm, "positive and finite", "the paper uses 1e-3")

    def _transform(self, parameters: Sequence[Tensor], shards: Shards) -> _Transform:
        if not shards.are_whole:
            cure = "use AdaGC, which clips each tensor by norms that can be added up over ranks"
            raise refuse("auto_clip", "a policy that works on parts of weights, where these are sharded", self, cure)
        return _Transform(self, parameters)


class _Transform(Transform):
    """Remembers nothing: the weights are the measure."""

    def __init__(self, policy: AGC, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._policy = policy

    def clip_(self, step: Step) -> Outcome:
        gradients, is_finite = [settle_(p) for p in self.parameters], step.total < torch.inf
        present = [g for g in gradients if g is not None]
        weights = [p.detach() for g, p in zip(gradients, self.parameters, strict=True) if g is not None]
        found = clip_units_(present, weights, self._policy, step.loss_scale, is_finite) if present else []
        coefficients = torch.stack(fill_missing(found, gradients, torch.ones_like(step.total)))
        return Outcome(torch.full_like(step.total, torch.nan), coefficients)


def clip_units_(
    gradients: Sequence[Tensor], weights: Sequence[Tensor], policy: AGC, loss_scale: Tensor, is_active: Tensor
) -> list[Tensor]:
    """Clip each unit of each gradient at a share of its weight norm (AGC).

    Args:
        gradients: Settled, of any dtype; at least one.
        weights: Their weights.
        policy: The share, and the floor of the weight norm.
        loss_scale: Factor to divide the gradients by before they are judged, shape ``()``.
        is_active: Whether to do anything, shape ``()``, bool.

    Returns:
        Each gradient's norm afterwards by the norm before, shape ``()``, float32, on ``is_active``'s device; 1 for a
        gradient of zero.
    """
    # The units of all tensors stand in one row, so that they are judged together.
    values = [values_of(gradient) for gradient in gradients]
    norms = [unitwise_norms(v) for v in values]
    before = _join(norms, is_active.device) / loss_scale
    limits = _join([unitwise_norms(_rows(w, g)) for w, g in zip(weights, gradients, strict=True)], is_active.device)
    coefficients = unitwise_coefficients(before, limits, policy.clip_factor, policy.min_weight_norm)
    coefficients = coefficients.masked_fill(~is_active, 1.0)

    # Each tensor takes its part of the row back.
    sizes = [n.numel() for n in norms]
    parts = coefficients.split(sizes)
    for value, norm, part, may in zip(values, norms, parts, _suspects(coefficients, sizes), strict=True):
        if may:
            value.mul_(part.to(value.device, non_blocking=need_not_wait(value.device)).view_as(norm))

    # The norm of a tensor is the norm of its units' norms, before and after.
    totals, clipped = (torch.stack(torch._foreach_norm(n.split(sizes))) for n in (before, before * coefficients))
    return list((clipped / totals).clamp(max=1).masked_fill(~is_active | (totals == 0), 1.0).unbind())


def _suspects(coefficients: Tensor, sizes: list[int]) -> list[bool]:
    """Whether each tensor has a unit to be clipped; True where a device must be asked."""
    if not coefficients.is_cpu:
        return [True] * len(sizes)
    cut: list[bool] = (torch.stack(torch._foreach_norm((1 - coefficients).split(sizes))) != 0).tolist()  # also for NaN
    return cut


def unitwise_norms(tensor: Tensor) -> Tensor:
    """L2 norm of each unit of a weight or its gradient (AGC), accumulated in float32 whatever the dtype.

    Args:
        tensor: Strided, any dtype and shape. With two dimensions or more each entry of the first is a unit (an output
            of a linear layer, a filter of a convolution, a row of an embedding); with fewer the whole tensor is one.

    Returns:
        Float32, of as many dimensions as ``tensor``: ``(units, 1, ...)``, ``(1,)`` or ``()``.

    Source:
        Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021.
    """
    dims = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True, dtype=wide)
    return norms.float()


def unitwise_coefficients(
    gradient_norms: Tensor, weight_norms: Tensor, clip_factor: float, min_weight_norm: float
) -> Tensor:
    """What brings each unit's gradient norm down to a share of its weight norm (AGC).

    Args:
        gradient_norms: ``unitwise_norms`` of the gradient, any shape.
        weight_norms: The same of the weight, same shape.
        clip_factor: Largest allowed ratio.
        min_weight_norm: Floor of the weight norm, so that weights of zero can leave it.

    Returns:
        ``min(1, clip_factor * max(weight_norms, min_weight_norm) / gradient_norms)``, same shape; 1 for a unit without
        gradient.

    Source:
        Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021.
    """
    largest = clip_factor * weight_norms.clamp(min=min_weight_norm)
    return (largest / gradient_norms).masked_fill(~(gradient_norms > largest), 1.0)


def _rows(weight: Tensor, gradient: Tensor) -> Tensor:
    """The part of a weight that a gradient is for."""
    return weight if gradient.layout is torch.strided else weight.index_select(0, gradient._indices()[0])


def _join(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    at_once = need_not_wait(device)
    return torch.cat([n.flatten().to(device, non_blocking=at_once) for n in norms])
