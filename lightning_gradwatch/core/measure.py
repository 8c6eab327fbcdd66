"""Gradients become numbers on the device: float32, multi-tensor, without a host sync."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.records import MISSING, BatchCheck, Coverage
from lightning_gradwatch.core.shards import Shards, is_spread, local

_NUM_FACTS = 3
"""Numbers of a row beside the norms: the loss, and the least and the greatest element of the batch."""
_WINDOW_FLOATS = 2**16
_MAX_ROWS = 1024
_PLAIN = (torch.float32, torch.bfloat16, torch.float16)
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


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether one multi-tensor kernel can take them all: strided, on one device, real, and not of double precision."""
    device = tensors[0].device
    return all(t.layout is torch.strided and t.dtype in _PLAIN and t.device == device for t in tensors)


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
        self._alike = alike(tensors)
        stacked = [i for places in self._alike for i in places]
        self._others = sorted(set(range(len(tensors))) - set(stacked))
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
        single = [_in_rows(tensors[i], row) if (row := self._rows[i]) else tensors[i] for i in self._others]
        others = torch._foreach_norm(single, 2, torch.float32) if single else ()
        if self._order is None:
            return torch.stack((*others, *further), out=out)
        parts = [torch.linalg.vector_norm(s, dim=1, dtype=torch.float32) for s in self._stacks(tensors)]
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
        return [stack(tensors, places) for places in self._alike]

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


class NormWindow:
    """Gradient norms, loss and inputs of the steps since the last copy, one row per step, in 256 kB on the device.

    Args:
        parameters: The watched parameters; their gradients are read at each :meth:`push`.
        shards: How they are spread over the ranks; the rows hold the norms of this rank's parts.
        num_extra: Numbers that each row holds besides, see :meth:`note`.

    Attributes:
        known: Whether the loss of the last row was there, one real number on the parameters' device; and how much of
            the batch was looked at.
        is_blank: Whether the last row stands for a gradient that could not be measured.
    """

    def __init__(self, parameters: Sequence[Tensor], shards: Shards | None = None, num_extra: int = 0) -> None:
        self._parameters = parameters
        self._shards = shards or Shards(())
        self._device = parameters[0].device
        self._groups = Groups([local(p) for p in parameters]) if _are_plain(parameters) else None
        width = len(parameters) + _NUM_FACTS + num_extra
        rows = max(2, min(_MAX_ROWS, _WINDOW_FLOATS // width))
        self._rows = torch.empty(rows, width, dtype=torch.float32, device=self._device)
        self._missing = torch.full((), MISSING, dtype=torch.float32, device=self._device)
        self._unknown = torch.full((), torch.nan, dtype=torch.float32, device=self._device)
        self._length = 0
        self._nothing = (self._unknown, self._unknown)
        self._sound = (torch.zeros_like(self._unknown),) * 2
        self.known = (False, Coverage.NOTHING)
        self.is_blank = False

    def __len__(self) -> int:
        return self._length

    def is_due(self, num_rows: int) -> bool:
        """Whether there are so many rows, or as many as fit: copy and clear first."""
        return self._length >= num_rows or self._length == self._rows.shape[0]

    def push(
        self, loss: Tensor | None, loss_scale: Tensor | None, gradients_scaled: bool, inputs: BatchCheck | None = None
    ) -> bool:
        """Append the norms of the present gradients. No host sync.

        Args:
            loss: The loss that was differentiated, one element; None if it is not known.
            loss_scale: Factor of the AMP loss scaler that is still in ``loss``, shape ``()``; None without a scaler.
            gradients_scaled: Whether that factor is still in the gradients, too.
            inputs: What was seen of the batch; None if nothing was.

        Returns:
            Whether there was a gradient at all, on this rank or another; without one nothing is appended.
        """
        present: Sequence[Tensor] = [gradient for p in self._parameters if (gradient := p.grad) is not None]
        if not present and not self._shards.have_gradients():
            return False
        loss = self._entry(loss)
        ends, coverage = self._looked(inputs)
        self.known = (loss is not None, coverage)
        self.is_blank = False
        facts = (self._unknown if loss is None else loss, *ends)
        num_norms = len(self._parameters)
        row = self._rows[self._length]
        row = row if row.shape[0] == num_norms + _NUM_FACTS else row[: num_norms + _NUM_FACTS]
        if self._shards.is_spread:
            present = self._shards.local_parts(present, [p for p in self._parameters if p.grad is not None])
        self._write(row, present, facts)
        if loss_scale is not None:
            (row[: num_norms + 1] if gradients_scaled else row[num_norms : num_norms + 1]).div_(loss_scale)
        self._length += 1
        return True

    def push_blank(self) -> None:
        """Append a row without numbers, for a gradient that could not be measured."""
        self._rows[self._length] = MISSING
        self._length += 1
        self.known, self.is_blank = (False, Coverage.NOTHING), True

    def _write(self, row: Tensor, gradients: Sequence[Tensor], facts: Sequence[Tensor]) -> None:
        if self._groups is not None and len(gradients) == len(self._parameters):
            try:
                self._groups.norms(gradients, *facts, out=row)
                return
            except RuntimeError:  # sparse gradients, or parameters that are no longer what they were when grouped
                self._groups = None
        everywhere = [p.grad for p in self._parameters]
        torch.stack([*fill_missing(norms(gradients), everywhere, self._missing), *facts], out=row)

    @property
    def norms(self) -> Tensor:
        """Norms of every row, shape ``(len(self), parameters)``; a view."""
        return self._rows[: self._length, : len(self._parameters)]

    @property
    def facts(self) -> Tensor:
        """Loss of every row, and two numbers that are finite if its batch is, shape ``(len(self), 3)``; a view."""
        return self._rows[: self._length, len(self._parameters) :][:, :_NUM_FACTS]

    @property
    def extra(self) -> Tensor:
        """What was noted besides, shape ``(len(self), num_extra)``; a view."""
        return self._rows[: self._length, len(self._parameters) + _NUM_FACTS :]

    def note(self, extra: Tensor) -> None:
        """Add numbers, shape ``(num_extra,)``, to the last row."""
        self._rows[self._length - 1, len(self._parameters) + _NUM_FACTS :] = extra

    def _looked(self, inputs: BatchCheck | None) -> tuple[tuple[Tensor, Tensor], Coverage]:
        """Two numbers of which one is not finite if the batch is not, and how much of the batch they stand for."""
        if inputs is None or inputs.is_bad:
            return self._nothing, Coverage.NOTHING if inputs is None else Coverage.PART
        if inputs.ends is None:
            return self._sound, inputs.coverage
        low, high = inputs.ends
        if low.device != self._device:
            return self._nothing, Coverage.NOTHING
        return (low, high) if low.dtype is torch.float32 else (low.float(), high.float()), inputs.coverage

    def _entry(self, number: Tensor | None) -> Tensor | None:
        """A single real number of the parameters' device as an entry of a row; None for anything else."""
        if number is None or (type(number) is not Tensor and is_spread(number)):
            return None
        if number.numel() != 1 or number.device != self._device or number.is_complex():
            return None
        number = number.detach() if number.requires_grad else number
        return (number.reshape(()) if number.ndim else number).float()

    def rows(self) -> Tensor:
        """The rows since the last :meth:`clear`: a norm per parameter, the facts, and what was noted besides."""
        return self._rows[: self._length]

    def restore(self, rows: Tensor | None) -> bool:
        """Put back the rows of a checkpoint, unless the number of parameters has changed; whether they are back."""
        if rows is None or rows.shape[1:] != self._rows.shape[1:] or len(rows) >= len(self._rows):
            return False
        self._rows[: len(rows)].copy_(rows)
        self._length = len(rows)
        return True

    def drop_last(self) -> None:
        """Forget the last row."""
        self._length -= 1

    def shorten(self, num_rows: int) -> None:
        """Forget what has come after so many rows."""
        self._length = min(self._length, num_rows)

    def clear(self) -> None:
        """Forget the rows; memory is kept."""
        self._length = 0


class ParameterMeter:
    """Numbers per parameter beside the gradient norms: weight norms and counts of exact zeros.

    Args:
        parameters: The watched parameters.
        shards: How they are spread over the ranks.
    """

    def __init__(self, parameters: Sequence[Tensor], shards: Shards) -> None:
        self._parameters = parameters
        self._shards = shards
        self.missing = torch.full((), MISSING, dtype=torch.float32, device=parameters[0].device)
        self._groups = Groups([local(p) for p in parameters]) if _are_plain(parameters) else None

    def stack(self, values: Sequence[Tensor | None]) -> Tensor:
        """Scalars to one vector on the parameters' device, ``-1`` for None; shape ``(len(values),)``."""
        missing, device = self.missing, self.missing.device
        present = [missing if v is None else v for v in values]
        present = [v if v.device == device else v.to(device, non_blocking=need_not_wait(device)) for v in present]
        return torch.stack(present) if present else missing.new_empty(0)

    def weight_norms(self) -> Tensor:
        """L2 norm of each parameter (of this rank's part), shape ``(parameters,)``, float32.

        Raises:
            ValueError: If somebody has freed the memory of one.
        """
        with torch.no_grad():
            parts = self._shards.local_parts(self._parameters, self._parameters)
            require_memory(parts)
            if self._groups is not None:
                try:
                    return self._groups.norms(parts)
                except RuntimeError:  # they are no longer what they were when grouped
                    self._groups = None
            return self.stack(norms(parts))

    def nonzeros(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Number of elements of each gradient (of this rank's part) that are not exactly zero; ``-1`` for no gradient.

        Shape ``(parameters,)``, float32.
        """
        present = [g for g in gradients if g is not None]
        if self._groups is not None and len(present) == len(gradients) and _are_plain(present):
            return self._groups.nonzeros(present)
        counts = iter([count.float() for count in nonzero_counts(present)])
        return self.stack([None if g is None else next(counts) for g in gradients])
