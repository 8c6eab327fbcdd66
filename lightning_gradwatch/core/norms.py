"""Numbers of single tensors on the device: norms in float32, and counts, without a host sync."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_gradwatch.core.devices import need_not_wait

_PLAIN = (torch.float32, torch.bfloat16, torch.float16)


def dense(gradient: Tensor) -> Tensor:
    """A real, strided tensor with the same L2 norm: sparse gradients coalesced, complex ones as pairs of reals."""
    if gradient.layout is not torch.strided:
        gradient = gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient.to_dense()
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """L2 norm of each tensor, accumulated in float32 whatever its dtype (float64 in float64).

    Args:
        tensors: Any shapes, dtypes and layouts, on any devices.

    Returns:
        One float32 scalar per tensor, shape ``()``, on the tensor's device. 0 for an empty tensor; below about 1e-19
        per element the squares underflow and the norm reads 0.
    """
    tensors = [t if t.layout is torch.strided and not t.is_complex() else dense(t) for t in tensors]
    if not any(t.dtype is torch.float64 for t in tensors):
        return list(torch._foreach_norm(tensors, 2, torch.float32)) if tensors else []
    return [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)).float() for t in tensors]


def require_memory(tensors: Sequence[Tensor]) -> None:
    """Refuse tensors whose memory has been freed, as by an engine that brings weights back when they are needed.

    Raises:
        ValueError: If there is one.
    """
    sizes = list(map(torch.UntypedStorage.nbytes, map(Tensor.untyped_storage, tensors)))
    if 0 in sizes and any(tensor.numel() for size, tensor in zip(sizes, tensors, strict=True) if size == 0):
        raise ValueError("the memory of a weight has been freed")


def nonzero_counts(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Number of elements of each gradient that are not exactly zero, shape ``()``, int64."""
    return [torch.count_nonzero(g if g.layout is torch.strided else dense(g)) for g in gradients]


def fill_missing(values: Iterable[Tensor], gradients: Sequence[Tensor | None], missing: Tensor) -> list[Tensor]:
    """One value per gradient, given the values of those that are not None; on the device of ``missing``."""
    following, device = iter(values), missing.device
    at_once = need_not_wait(device)
    return [missing if g is None else next(following).to(device, non_blocking=at_once) for g in gradients]


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether one multi-tensor kernel can take them all: strided, on one device, real, and not of double precision."""
    device = tensors[0].device
    return all(t.layout is torch.strided and t.dtype in _PLAIN and t.device == device for t in tensors)
