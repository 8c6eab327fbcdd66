"""Norms of gradients that may be far too small, or too large, for their squares; without a host sync."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gradwatch.core.devices import need_not_wait

MAX_CONVERTED = 2**16
"""Elements that are converted to float64 for their norm; more would cost memory and time."""
SMALLEST_NORM = 1e-13
"""Norms of up to 1e8 elements are right to 1e-4 in float32 above this; below, squares underflow."""


def _wide(tensor: Tensor) -> torch.dtype:
    """A dtype in which the squares of the gradients of a starving layer do not underflow."""
    if tensor.is_complex():
        return torch.complex128
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def norm_of(tensor: Tensor, is_strong: bool = False) -> Tensor:
    """L2 norm without a host sync, shape ``()``, float64 where the device has it and it may be needed."""
    if tensor.requires_grad:  # under create_graph=True
        tensor = tensor.detach()
    if is_strong and not tensor.is_complex():
        strong: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        return strong
    if tensor.numel() > MAX_CONVERTED and _wide(tensor) is torch.float64:
        return _large_norm(tensor)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=_wide(tensor))
    return norm


def _large_norm(tensor: Tensor) -> Tensor:
    """L2 norm at the speed of the memory, where float64 would first make a copy of twice the size.

    Below what squares in float32 can hold, it is extrapolated from elements at even distances.
    """
    norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)).double()
    few = _some(tensor)
    estimate = torch.linalg.vector_norm(few, dtype=torch.float64) * (tensor.numel() / few.numel()) ** 0.5
    return torch.where(norm < SMALLEST_NORM, estimate, norm)


def _some(tensor: Tensor) -> Tensor:
    """At most 65,536 elements at even distances; a view."""
    for dim in range(tensor.ndim):
        step = math.ceil(tensor.numel() / MAX_CONVERTED)
        if step > 1:
            tensor = tensor[(slice(None),) * dim + (slice(None, None, step),)]
    return tensor


def root_of_squares(norms: list[Tensor]) -> Tensor:
    """L2 norm of norms."""
    if len(norms) == 1:
        return norms[0]
    device = norms[0].device
    here = [norm if norm.device == device else norm.to(device, non_blocking=need_not_wait(device)) for norm in norms]
    root: Tensor = torch.linalg.vector_norm(torch.stack(here))
    return root


def norms_over_time(gradient: Tensor, time: int, sizes: list[int] | None) -> Tensor:
    """Norm of a sequence's gradient at each time step.

    Args:
        gradient: Shape ``(time, ...)`` or ``(batch, time, ...)``; packed sequences ``(sum of sizes, ...)``.
        time: The dimension of time.
        sizes: Batch sizes of the time steps of a packed sequence; None otherwise.

    Returns:
        Shape ``(time steps,)``, float32, the first step first.
    """
    if sizes is not None:
        return torch.stack([norm_of(part) for part in gradient.split(sizes)]).float()
    rows = gradient.movedim(time, 0).flatten(1) if gradient.ndim > 1 else gradient[:, None]
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=_wide(rows))
    return norms.float()
