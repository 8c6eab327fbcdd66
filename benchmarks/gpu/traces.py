"""What a call makes the GPU do, counted in a trace of the profiler, which is read as JSON: large ones in a second."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def profile(call: Callable[[], object]) -> Counter[str]:
    """``count`` of what a call does; the wait at its end is part of it.

    Raises:
        RuntimeError: If the profiler sees no kernel, so that nothing can be said.
    """
    _wake()
    counts = count(_events(call))
    if not counts["kernels"]:
        raise RuntimeError("the profiler sees no kernels here")
    return counts


@lru_cache(maxsize=1)
def _wake() -> None:
    """The first trace of a process takes seconds, and may lack its first events."""
    _events(lambda: torch.ones(8, device="cuda").sum())


def _events(call: Callable[[], object]) -> list[dict[str, Any]]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        profiler.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def count(events: Iterable[dict[str, Any]]) -> Counter[str]:
    """Kernels, copies by their kind, and calls that wait for the device, in a trace."""
    found: Counter[str] = Counter()
    for event in events:
        kind, name = str(event.get("cat", "")).lower(), str(event.get("name", ""))
        found["kernels"] += kind == "kernel"
        found["waits"] += name in _WAITS
        if kind == "gpu_memcpy":
            found["to the host"] += "DtoH" in name
            found["to the host, pageable"] += "DtoH" in name and "Pageable" in name
            found["from the host"] += "HtoD" in name
    return found
