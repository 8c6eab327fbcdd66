"""The tensors in what a layer is given or makes, found without running anything of the user's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lightning_gradwatch.core.batch import members_of
from lightning_gradwatch.core.modes import FakeTensor, is_wrapped

MAX_NESTING = 6
MAX_PARTS = 512
"""Parts of what a layer is given or makes that are looked at."""
_END = object()


def is_plain(candidate: Any) -> TypeGuard[Tensor]:
    """Whether it is a strided tensor that holds numbers, and none of ``torch.func``'s own."""
    return (
        issubclass(type(candidate), Tensor)  # isinstance would ask the candidate itself for its class
        and candidate.layout is torch.strided
        and not candidate.is_nested
        and not candidate.is_meta
        and not isinstance(candidate, FakeTensor)
        and not is_wrapped(candidate)
    )


def tensors_in(container: object) -> Iterator[Tensor]:
    """The plain tensors in a tensor, tuple, list, dict, mapping or dataclass, depth first, each once.

    Nothing of the container's own runs: they are read where they are stored.
    """
    above: list[Iterator[object]] = [iter((container,))]
    seen: set[int] = set()
    room = MAX_PARTS
    while above and room:
        part: Any = next(above[-1], _END)
        if part is _END:
            above.pop()
            continue
        room -= 1
        if issubclass(type(part), Tensor):
            if is_plain(part) and id(part) not in seen:
                seen.add(id(part))
                yield part
        elif len(above) <= MAX_NESTING and id(part) not in seen and _is_container(type(part)):
            seen.add(id(part))
            above.append(members_of(part) or iter(()))


def _is_container(kind: type) -> bool:
    return issubclass(kind, (tuple, list, Mapping)) or dataclasses.is_dataclass(kind)
