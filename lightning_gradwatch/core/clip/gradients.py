"""Gradients are changed in place, whatever they are made of, by numbers that stay on the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.shards import local

_KIND = attrgetter("device", "dtype", "layout", "__class__")


def values_of(gradient: Tensor) -> Tensor:
    """What this rank holds of a gradient: a strided tensor that shares its memory, the values of a sparse one."""
    gradient = local(gradient)
    if gradient.layout is torch.strided:
        return gradient
    return gradient._values() if gradient.layout is torch.sparse_coo else gradient.values()


def reals_of(gradient: Tensor) -> Tensor:
    """The same as real numbers: complex ones as pairs, whose imaginary parts may be negated."""
    if type(gradient) is Tensor and gradient.layout is torch.strided and not gradient.is_complex():
        return gradient
    values = values_of(gradient)
    if not values.is_complex():
        return values
    return torch.view_as_real(values.conj() if values.is_conj() else values)


def multiply_all_(gradients: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply all gradients by one number. No host sync; a CPU, which is never waited for, does nothing where it is 1.

    Args:
        gradients: Any dtypes, containers and devices; sparse ones need not be coalesced.
        coefficient: Float32, shape ``()``. Where it is 1, every bit of a number stays as it is.
    """
    if coefficient.is_cpu and coefficient.item() == 1:
        return
    kinds = set(map(_KIND, gradients))  # most are of one kind, and a step is counted in calls
    if len(kinds) == 1 and _is_plain(*(kind := kinds.pop())):
        _multiply_(kind[0], kind[1], gradients, coefficient)
        return
    values = [reals_of(gradient) for gradient in gradients]
    for (device, dtype), places in _groups(values).items():
        _multiply_(device, dtype, [values[i] for i in places], coefficient)


def _is_plain(device: torch.device, dtype: torch.dtype, layout: torch.layout, kind: type) -> bool:
    return kind is Tensor and layout is torch.strided and not dtype.is_complex and device.type != "meta"


def _multiply_(device: torch.device, dtype: torch.dtype, values: Sequence[Tensor], coefficient: Tensor) -> None:
    here = coefficient.to(device, non_blocking=need_not_wait(device))
    if _rounds_coefficients(device, dtype):
        multiply_half_(values, here)
    else:
        torch._foreach_mul_(list(values), here)


def multiply_each_(gradients: Sequence[Tensor], coefficients: Sequence[Tensor]) -> None:
    """Multiply each gradient by its own number.

    Args:
        gradients: As in ``multiply_all_``.
        coefficients: One for each, float32, shape ``()``.
    """
    values = [reals_of(gradient) for gradient in gradients]
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
    places: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        places[tensor.device, tensor.dtype].append(i)
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
