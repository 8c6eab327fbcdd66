"""Whether a batch holds NaN or infinite values: a bounded look at what it is made of, whatever that is, on the device.

Nothing of the batch's own runs: no property, no iterator, no ``__getattr__``, no ``__torch_function__``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from types import MemberDescriptorType
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.core.alone import alone
from lightning_gradwatch.core.records import BatchCheck, Coverage

MAX_PARTS = 512
"""Parts of a batch that are looked at, down to a single number in a list."""
MAX_TENSORS = 16
"""Tensors whose elements are looked at."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SINGLE = frozenset((torch.float32, torch.float16, torch.bfloat16))
_WHOLE = frozenset((torch.int64, torch.int32, torch.uint8, torch.bool))
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_WITHOUT_FLOATS = (int, str, bytes, type(None), type)
_PLAIN = frozenset((*_WITHOUT_FLOATS, bool))
_READ: dict[type, Callable[[Any], Iterable[object]]] = {
    dict: dict.values,
    list: list.__iter__,
    tuple: tuple.__iter__,
    set: set.__iter__,
    frozenset: frozenset.__iter__,
    deque: deque.__iter__,
}
_END = object()


class Inputs(list[object]):
    """What a model was called with, where the batch itself is not known: it may lack the targets."""


@alone
def check_batch(batch: object) -> BatchCheck:
    """Look at every floating-point number in a batch, within a bound. No host sync.

    Args:
        batch: Tensors and numbers, in containers and objects of any kind.

    Returns:
        Whether there was one that is not finite, and how much was looked at.
    """
    simple = _simple(batch)
    if simple is not None:
        return simple
    found = _Found()
    with torch._C.DisableTorchFunctionSubclass():
        _walk(batch, found)
        ends = _ends_of(found.tensors)
    if found.is_whole:
        return BatchCheck(ends, Coverage.ALL, found.is_bad)
    has_looked = ends is not None or found.has_floats
    return BatchCheck(ends, Coverage.PART if has_looked else Coverage.NOTHING, found.is_bad)


def _simple(batch: object) -> BatchCheck | None:
    """The same of what most batches are: a few plain tensors, one of them of floating-point numbers; None of others."""
    if type(batch) not in (list, tuple) or len(batch) > MAX_TENSORS:  # type: ignore[arg-type]
        return None
    floats = None
    for part in batch:  # type: ignore[attr-defined]
        if type(part) is not Tensor or part.layout is not torch.strided or part.is_nested:
            return None
        if part.dtype in _WHOLE or not part.numel():
            continue
        if floats is not None or part.dtype not in _SINGLE or part.is_meta:
            return None
        floats = part
    if floats is None:
        return None
    low, high = torch.aminmax(floats)
    return BatchCheck((low, high), Coverage.ALL, is_bad=False)


def join(first: BatchCheck, second: BatchCheck) -> BatchCheck:
    """What is known of two batches together, as of those of one optimizer step."""
    ends = _ends_of([torch.stack(check.ends) for check in (first, second) if check.ends is not None])
    both = {first.coverage, second.coverage}
    coverage = both.pop() if len(both) == 1 else Coverage.PART
    return BatchCheck(ends, coverage, first.is_bad or second.is_bad)


class _Found:
    """What a walk through a batch has come across."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.has_floats = self.is_bad = False
        self.is_whole = True

    def add(self, tensor: Tensor) -> None:
        """Take note of a floating-point or complex tensor."""
        floats = _floats_of(tensor)
        if floats is None:
            self.is_whole = False
        elif floats.numel():
            is_elsewhere = bool(self.tensors) and floats.device != self.tensors[0].device
            if is_elsewhere or len(self.tensors) == MAX_TENSORS:
                self.is_whole = False
            else:
                self.tensors.append(floats)


def _walk(batch: object, found: _Found) -> None:
    """Go through the parts, those of one level before those of the next."""
    parts: list[object] = [batch]
    seen: set[int] = set()
    room = MAX_PARTS
    for part in parts:  # which grow on the way
        if isinstance(part, Tensor):
            if part.is_floating_point() or part.is_complex():
                found.add(part)
        elif isinstance(part, float):
            found.has_floats = True
            found.is_bad |= not math.isfinite(part)
        elif not isinstance(part, _WITHOUT_FLOATS) and id(part) not in seen:
            seen.add(id(part))
            members = members_of(part)
            if members is None:
                found.is_whole = False
                continue
            taken = list(islice(members, room))
            room -= len(taken)
            found.is_whole &= next(members, _END) is _END
            if not _PLAIN.issuperset(map(type, taken)):  # else it is a list of words or whole numbers
                parts += taken


def members_of(part: object) -> Iterator[object] | None:
    """What an object holds, read where it is stored; None if that cannot be known."""
    kind = type(part)
    if kind in _READ:
        return chain(_READ[kind](part))
    held = [read(part) for base, read in _READ.items() if issubclass(kind, base)]
    if kind.__dictoffset__:
        held.append(object.__getattribute__(part, "__dict__").values())
    if kind.__module__ != "builtins":  # not the globals of a function
        slots = [each for base in kind.__mro__ for each in vars(base).values() if type(each) is MemberDescriptorType]
        held += [_stored(part, slots)] if slots else []
    return chain(*held) if held else None


def _stored(part: object, slots: list[MemberDescriptorType]) -> Iterator[object]:
    for slot in slots:
        try:
            yield slot.__get__(part)
        except AttributeError:  # it has never been set
            continue


def _floats_of(tensor: Tensor) -> Tensor | None:
    """The elements of a floating-point or complex tensor, as real numbers; None if they cannot be looked at."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        tensor = _values_of(tensor)
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # it computes in a way of its own
        return None
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    is_plain = tensor.dtype in _DTYPES and tensor.layout is torch.strided and not tensor.is_meta
    return tensor if is_plain else None


def _values_of(tensor: Tensor) -> Tensor:
    """What a sparse or nested tensor holds; tensors of other layouts as they are."""
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    return tensor.values() if tensor.is_nested or tensor.layout in _COMPRESSED else tensor


def _ends_of(tensors: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The least and the greatest element, which are finite if all are; of a sum that cannot be said."""
    if not tensors:
        return None
    ends = [end for tensor in tensors for end in torch.aminmax(tensor)]
    low, high = ends if len(ends) == 2 else torch.aminmax(torch.stack(ends))
    # what is finite in float64 may not be so in float32; NaN and infinity times 0 are NaN
    return (low * 0, high * 0) if low.dtype is torch.float64 else (low, high)
