"""Small tensors of one shape are measured together: a kernel for each would cost more than all the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from operator import itemgetter

import torch
from torch import Tensor

from lightning_gradwatch.core.norms import nonzero_counts

_BITS = {2: (torch.int16, 0x7FFF), 4: (torch.int32, 0x7FFFFFFF)}
_MAX_STACKED = 2**12
"""Elements of a tensor up to which a CPU copies it faster than it starts a kernel for it alone."""
_MIN_ALIKE = 4
"""Such tensors of one shape from which on it is worth starting three other kernels instead."""
_MAX_TOGETHER = 2**17
"""Elements that are copied side by side: 512 kB."""
_LARGE = 2**20
"""Elements from which on a norm is taken row by row: in one piece, float32 loses three digits on the way."""
_ROWS = (4096, 2048, 1024, 512, 256)
Kind = tuple[torch.Size, Hashable]


def alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Places of small tensors of one shape and dtype on a CPU, in bounded bunches that are worth being stacked."""
    return bunches([(t.shape, t.dtype) if t.device.type == "cpu" else None for t in tensors])


def bunches(kinds: Sequence[Kind | None]) -> list[list[int]]:
    """The same, given the shape of each and what else must be equal; None for what is not to be stacked."""
    found: dict[Kind, list[int]] = {}
    for i, kind in enumerate(kinds):
        if kind is not None and 0 < kind[0].numel() <= _MAX_STACKED:
            found.setdefault(kind, []).append(i)
    sizes = {kind: _MAX_TOGETHER // kind[0].numel() for kind in found}
    return [
        places[start : start + sizes[kind]]
        for kind, places in found.items()
        if len(places) >= _MIN_ALIKE
        for start in range(0, len(places), sizes[kind])
    ]


@lru_cache(maxsize=1024)
def distance(num_elements: int, limit: int) -> int:
    """From one element to the next so that at most ``limit`` are met; it divides no dimension, so all rows are met."""
    step = max(math.ceil(num_elements / limit), 1)
    while step > 1 and math.gcd(step, num_elements) > 1:
        step += 1
    return step


def stack(tensors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Those at the places as rows, shape ``(places, elements)``; a copy."""
    return torch.stack([tensors[i] for i in places]).reshape(len(places), -1)


class Groups:
    """Tensors in a fixed order, of which the small ones of one shape are measured together on a CPU.

    A kernel for each bias and each normalisation weight would cost more than all the arithmetic.

    Args:
        tensors: On one device; what is measured later has their shapes.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        together = alike(tensors)
        stacked = [i for places in together for i in places]
        self._others = sorted(set(range(len(tensors))) - set(stacked))
        self._bunches = [(len(places), itemgetter(*places)) for places in together]
        self._order = torch.tensor([*stacked, *self._others]).argsort() if stacked else None
        self._rows = [_row(t) for t in tensors]
        self._orders: dict[int, Tensor] = {}

    def norms(self, tensors: Sequence[Tensor], *further: Tensor, out: Tensor | None = None) -> Tensor:
        """L2 norms, accumulated in float32, shape ``(len(tensors),)``; of real, strided tensors up to float32.

        Args:
            tensors: To be measured.
            further: Float32 numbers of shape ``()`` to put behind them.
            out: Where to put all of that.

        Raises:
            RuntimeError: For tensors of other kinds; NotImplementedError, which is one, for sparse ones.
        """
        others: Sequence[Tensor] = ()
        if self._others:
            single = [_in_rows(tensors[i], row) if (row := self._rows[i]) else tensors[i] for i in self._others]
            others = torch._foreach_norm(single, 2, torch.float32)
        if self._order is None:
            return torch.stack((*others, *further), out=out)
        parts = []
        for num, bunch in self._bunches:  # ordinary steps are counted in calls
            rows = torch.stack(bunch(tensors)).reshape(num, -1)
            parts.append(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32))
        if others or further:
            parts.append(torch.stack((*others, *further)))
        return self._in_order(parts, len(further), out)

    def nonzeros(self, tensors: Sequence[Tensor]) -> Tensor:
        """Number of elements of each that are not exactly zero, shape ``(len(tensors),)``, float32."""
        parts = [_count_rows(s) for s in self._stacks(tensors)]
        if self._others:
            parts.append(torch.stack(nonzero_counts([tensors[i] for i in self._others])).float())
        return self._in_order(parts)

    def _stacks(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack(bunch(tensors)).reshape(num, -1) for num, bunch in self._bunches]

    def _in_order(self, parts: list[Tensor], num_further: int = 0, out: Tensor | None = None) -> Tensor:
        together = torch.cat(parts)
        if self._order is None:
            return together
        if num_further not in self._orders:
            ends = torch.arange(len(self._order), len(self._order) + num_further)
            self._orders[num_further] = torch.cat([self._order, ends])
        return torch.index_select(together, 0, self._orders[num_further], out=out)


def _row(tensor: Tensor) -> int:
    """Elements of a row of a large float32 tensor on a CPU; 0 for what is measured in one piece."""
    is_large = tensor.device.type == "cpu" and tensor.dtype is torch.float32 and tensor.numel() >= _LARGE
    return next((row for row in _ROWS if tensor.numel() % row == 0), _ROWS[0]) if is_large else 0


def _in_rows(tensor: Tensor, row: int) -> Tensor:
    """Norms of its elements row by row as they lie, and what is left of them: the norm of that is the tensor's."""
    if tensor.dtype is not torch.float32:
        return tensor
    rest, left = None, tensor.numel() % row
    if torch.ops.aten.is_non_overlapping_and_dense(tensor):
        whole = tensor.numel() - left
        rest = tensor.as_strided((left,), (1,), tensor.storage_offset() + whole) if left else None
        tensor = tensor.as_strided((whole // row, row), (row, 1))
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=-1)
    return norms if rest is None else torch.cat([norms.flatten(), rest])


def _count_rows(rows: Tensor) -> Tensor:
    """Elements in each row that are not exactly zero, NaN among them; by their bits in a third of the time."""
    integers, magnitude = _BITS[rows.dtype.itemsize]
    return rows.view(integers).bitwise_and(magnitude).clamp_(max=1).sum(1, dtype=torch.int32).float()
