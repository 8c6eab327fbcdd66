"""Gradients are changed in place, whatever they are made of, by numbers that stay on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.core.clip.policies import AGC
from lightning_gradwatch.core.clip.thresholds import total_norm, unitwise_coefficients, unitwise_norms
from lightning_gradwatch.core.shards import local

_HALF = (torch.float16, torch.bfloat16)


def _values(gradient: Tensor) -> Tensor:
    """What this rank holds of a gradient: a strided tensor that shares its memory, the values of a sparse one."""
    gradient = local(gradient)
    if gradient.layout is torch.strided:
        return gradient
    return gradient._values() if gradient.layout is torch.sparse_coo else gradient.values()


def _reals(gradient: Tensor) -> Tensor:
    """The same as real numbers: complex ones as pairs, whose imaginary parts may be negated."""
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
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in map(_reals, gradients):
        groups.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    for (device, dtype), group in groups.items():
        here = coefficient.to(device, non_blocking=True)
        if device.type == "cuda" and dtype in _HALF:
            multiply_half_(group, here)
        else:
            torch._foreach_mul_(group, here)


def multiply_half_(tensors: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply tensors of half precision by one float32 number, rounding once and in few kernels.

    On a GPU ``mul_`` would round the coefficient to half precision first: 0.998 is 1 in bfloat16.
    """
    unused = coefficient.new_zeros(())
    torch._amp_foreach_non_finite_check_and_unscale_(list(tensors), unused, coefficient)


def multiply_each_(gradients: Sequence[Tensor], coefficients: Sequence[Tensor]) -> None:
    """Multiply each gradient by its own number.

    Args:
        gradients: As in :func:`multiply_all_`.
        coefficients: One for each, float32, shape ``()``.
    """
    for gradient, coefficient in zip(gradients, coefficients, strict=True):
        multiply_all_([gradient], coefficient)


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
    here = limit.to(values.device, non_blocking=True)
    values.clamp_(min=-here, max=here)


def clip_units_(gradient: Tensor, weight: Tensor, policy: AGC, loss_scale: Tensor, is_active: Tensor) -> Tensor:
    """Clip each unit of a gradient at a share of its weight norm (AGC).

    Args:
        gradient: Settled, of any dtype.
        weight: Its weight, on the same device.
        policy: The share, and the floor of the weight norm.
        loss_scale: Factor to divide the gradient by before it is judged, shape ``()``.
        is_active: Whether to do anything, shape ``()``, bool.

    Returns:
        The gradient's norm afterwards by the norm before, shape ``()``, float32; 1 for a gradient of zero.
    """
    values = _values(gradient)
    if gradient.layout is torch.sparse_coo:
        weight = weight.index_select(0, gradient._indices()[0])
    scale, is_active = (number.to(values.device, non_blocking=True) for number in (loss_scale, is_active))
    norms = unitwise_norms(values) / scale
    coefficients = unitwise_coefficients(norms, unitwise_norms(weight), policy.clip_factor, policy.min_weight_norm)
    coefficients = coefficients.masked_fill(~is_active, 1.0)
    values.mul_(coefficients)
    before, after = total_norm(norms), total_norm(norms * coefficients)
    return (after / before).clamp(max=1).masked_fill(~is_active | (before == 0), 1.0)
