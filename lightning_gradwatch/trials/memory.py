"""How much memory a trial needs, and how much there is: refused before it runs out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

SHARE = 0.9
"""Of the memory that is free, what a trial may take."""


class TooLargeError(MemoryError):
    """A trial would need more memory than it may take."""


def free_bytes(device: torch.device) -> float:
    """What is free on a device; infinite where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return min(_of_the_machine(), _of_the_container()) if device.type == "cpu" else math.inf


def _of_the_machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable")), math.inf)


def _of_the_container() -> float:
    """What control groups leave, in their second or first version; cached files give way."""
    return min(
        _of_a_group("/sys/fs/cgroup/memory.", "max", "current", "inactive_file"),
        _of_a_group("/sys/fs/cgroup/memory/memory.", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
    )


def _of_a_group(prefix: str, limit: str, usage: str, cached: str) -> float:
    try:
        total, used, facts = (Path(prefix + name).read_text().split() for name in (limit, usage, "stat"))
    except OSError:
        return math.inf
    known = dict(zip(facts[::2], facts[1::2], strict=False))
    return math.inf if total[0] == "max" else float(total[0]) - float(used[0]) + float(known.get(cached, 0))


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


@contextmanager
def limited(limit: float, parameters: Iterable[Tensor]) -> Iterator[None]:
    """Refuse to go on in a forward pass as soon as what it keeps for the backward pass exceeds a limit, in bytes.

    Raises:
        TooLargeError: Then.
    """
    seen = {p.data_ptr() for p in parameters if p.layout is torch.strided}
    used = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal used
        if tensor.layout is torch.strided and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            used += tensor.numel() * tensor.element_size()
            if used > limit:
                raise TooLargeError(f"it needs more memory than the {limit / 2**20:.0f} MiB left for activations")
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        yield


def computed_within(limit: float, parameters: Iterable[Tensor], compute: Callable[[], Tensor]) -> Tensor:
    """A loss whose forward pass may keep so many bytes; inside ``torch.func`` nothing can be counted.

    Raises:
        TooLargeError: If it keeps more.
    """
    if math.isinf(limit):
        return compute()
    try:
        with limited(limit, parameters):
            return compute()
    except RuntimeError as failure:
        if "saved tensor hooks" not in str(failure):
            raise
    return compute()


def room_beside(need: float, device: torch.device, max_memory: float | None, what: str) -> float:
    """Bytes that are left for activations beside what is needed anyway.

    Args:
        need: Bytes of that.
        device: Where.
        max_memory: Bytes that everything may take; None for nine tenths of what is free.
        what: What needs them, in words.

    Raises:
        RuntimeError: If nothing is left.
    """
    total = SHARE * free_bytes(device) if max_memory is None else float(max_memory)
    if need >= total:
        raise RuntimeError(
            f"GradWatch: {what} needs {need / 2**20:.0f} MiB, and may take {total / 2**20:.0f} MiB. To cure it: free "
            "memory, or give another `max_memory`."
        )
    return total - need
