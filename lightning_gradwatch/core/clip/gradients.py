"""Gradients are changed in place, whatever they are made of, by numbers that stay on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.core.clip.policies import AGC
from lightning_gradwatch.core.clip.thresholds import unitwise_coefficients, unitwise_norms
from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.shards import local


def _values(gradient: Tensor) -> Tensor:
    """What this rank holds of a gradient: a strided tensor that shares its memory, the values of a sparse one."""
    gradient = local(gradient)
    if gradient.layout is torch.strided:
        return gradient
    return gradient._values() if gradient.layout is torch.sparse_coo else gradient.values()


def _reals(gradient: Tensor) -> Tensor:
    """The same as real numbers: complex ones as pairs, whose imaginary parts may be negated."""
    if type(gradient) is Tensor and gradient.layout is torch.strided and not gradient.is_complex():
        return gradient
    values = _values(gradient)
    if not values.is_complex():
        return values
    return torch.view_as_real(values.conj() if values.is_conj() else values)


def multiply_all_(gradients: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply all gradients by one number.

    Args:
        gradients: Any dtypes, containers and devices; sparse ones need not be coalesced.
        coefficient: Float32, shape ``()``. Where it is 1, every bit of a number stays as it is.
    """
    values = [_reals(gradient) for gradient in gradients]
    for (device, dtype), places in _groups(values).items():
        group, here = [values[i] for i in places], coefficient.to(device, non_blocking=need_not_wait(device))
        if _rounds_coefficients(device, dtype):
            multiply_half_(group, here)
        else:
            torch._foreach_mul_(group, here)


def multiply_each_(gradients: Sequence[Tensor], coefficients: Sequence[Tensor]) -> None:
    """Multiply each gradient by its own number.

    Args:
        gradients: As in :func:`multiply_all_`.
        coefficients: One for each, float32, shape ``()``.
    """
    values = [_reals(gradient) for gradient in gradients]
    for (device, dtype), places in _groups(values).items():
        at_once = need_not_wait(device)
        group, here = [values[i] for i in places], [coefficients[i].to(device, non_blocking=at_once) for i in places]
        if _rounds_coefficients(device, dtype):
            for value, coefficient in zip(group, here, strict=True):
                multiply_half_([value], coefficient)
        else:
            torch._foreach_mul_(group, here)


def _groups(tensors: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    """The places of the tensors of each device and dtype."""
    kinds = {(tensor.device, tensor.dtype) for tensor in tensors}
    if len(kinds) == 1:
        return {kinds.pop(): list(range(len(tensors)))}
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault((tensor.device, tensor.dtype), []).append(i)
    return places


def _rounds_coefficients(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``mul_`` would round a coefficient to half precision first: 0.998 is 1 in bfloat16."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def multiply_half_(tensors: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply tensors of half precision by one float32 number, rounding once and in few kernels.

    Args:
        tensors: Real, strided, of one dtype, on the coefficient's device.
        coefficient: Float32, shape ``()``.
    """
    torch._amp_foreach_non_finite_check_and_unscale_(list(tensors), torch.zeros_like(coefficient), coefficient)


def settle_(parameter: Tensor) -> Tensor | None:
    """A parameter's gradient, with the parts of a sparse one added up, so that its elements can be judged.

    The settled gradient takes the place of the other in ``parameter.grad``. It is dense unless it is sparse by rows.
    """
    gradient = parameter.grad
    if gradient is None or gradient.layout is torch.strided:
        return gradient
    is_by_rows = gradient.layout is torch.sparse_coo and gradient.sparse_dim() == 1 < gradient.ndim
    parameter.grad = gradient.coalesce() if is_by_rows else gradient.to_dense()
    return parameter.grad


def clamp_(gradient: Tensor, limit: Tensor) -> None:
    """Bound every element of a gradient.

    Args:
        gradient: Settled, of any dtype. Real and imaginary parts are bounded each by itself.
        limit: Largest absolute value, float32, shape ``()``. Where it is ``inf``, nothing is changed.
    """
    values = _reals(gradient)
    here = limit.to(values.device, non_blocking=need_not_wait(values.device))
    values.clamp_max_(here).clamp_min_(-here)  # on a CPU ten times as fast as both at once


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
    values = [_values(gradient) for gradient in gradients]
    norms = [unitwise_norms(v) for v in values]
    before = _join(norms, is_active.device) / loss_scale
    limits = _join([unitwise_norms(_rows(w, g)) for w, g in zip(weights, gradients, strict=True)], is_active.device)
    coefficients = unitwise_coefficients(before, limits, policy.clip_factor, policy.min_weight_norm)
    coefficients = coefficients.masked_fill(~is_active, 1.0)
    sizes = [n.numel() for n in norms]
    for value, norm, part in zip(values, norms, coefficients.split(sizes), strict=True):
        value.mul_(part.to(value.device, non_blocking=need_not_wait(value.device)).view_as(norm))
    totals, clipped = (torch.stack(torch._foreach_norm(n.split(sizes))) for n in (before, before * coefficients))
    return list((clipped / totals).clamp(max=1).masked_fill(~is_active | (totals == 0), 1.0).unbind())


def _rows(weight: Tensor, gradient: Tensor) -> Tensor:
    """The part of a weight that a gradient is for."""
    return weight if gradient.layout is torch.strided else weight.index_select(0, gradient._indices()[0])


def _join(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    at_once = need_not_wait(device)
    return torch.cat([n.flatten().to(device, non_blocking=at_once) for n in norms])
