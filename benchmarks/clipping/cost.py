"""What a call costs, beside torch's own clipping in the same run."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn

from lightning_gradwatch.core.clip import NAMES, Clipper, ClipPolicy, make_policy
from lightning_gradwatch.core.norms import norms
from lightning_gradwatch.core.shards import Shards


def gpt_shapes(width: int = 768, depth: int = 12, vocabulary: int = 20_000) -> list[tuple[int, ...]]:
    """The parameters of a GPT-2 of 100 million numbers: 146 tensors."""
    block: list[tuple[int, ...]] = [(3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(4 * width, width), (4 * width,), (width, 4 * width), (width,), *[(width,)] * 4]
    return [(vocabulary, width), *block * depth, (width,)]


def rivals(parameters: list[nn.Parameter]) -> dict[str, Callable[[], object]]:
    """The registry's packages, at their defaults but for the total norm where they have a choice."""
    found: dict[str, Callable[[], object]] = {}
    if find_spec("autoclip") is not None:
        clipper = import_module("autoclip.torch").QuantileClip(parameters, global_threshold=True)
        found["autoclip (registry)"] = clipper.step
    if find_spec("zclip") is not None:
        model = nn.ParameterList(parameters)
        zclip = import_module("zclip").ZClip()
        found["zclip (registry)"] = lambda: zclip.step(model)
    for name in sorted({"autoclip", "zclip"} - {name.split()[0] for name in found}):
        print(f"{name} is not installed: pip install {name}", file=sys.stderr)
    return found


def contestants(parameters: list[nn.Parameter]) -> dict[str, Callable[[], object]]:
    """What is timed: torch's own clipping first, then norms and each policy together."""

    def ours(policy: ClipPolicy) -> Callable[[], object]:
        clipper = Clipper(policy, parameters, Shards(parameters))
        return lambda: clipper.clip_(torch.stack(norms([p.grad for p in parameters if p.grad is not None])))

    return {
        "clip_grad_norm_": lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True),
        **{name: ours(make_policy(name)) for name in NAMES},
        **rivals(parameters),
    }


def time_all(shapes: Sequence[tuple[int, ...]], rounds: int, size: float) -> dict[str, list[float]]:
    """Milliseconds of each contestant on one thread, one call of each in turn, every time on the same gradients.

    Args:
        shapes: Those of the parameters, whose elements have a standard deviation of 0.02.
        rounds: Timed calls of each.
        size: Standard deviation of the gradients' elements.
    """
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(0.02 * torch.randn(shape, generator=random)) for shape in shapes]
    fresh = [size * torch.randn(shape, generator=random) for shape in shapes]
    for parameter, gradient in zip(parameters, fresh, strict=True):
        parameter.grad = gradient.clone()
    gradients = [p.grad for p in parameters if p.grad is not None]
    methods = contestants(parameters)
    milliseconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(rounds + 2):  # the first two warm up
        for name, call in methods.items():
            torch._foreach_copy_(gradients, fresh)
            start = time.perf_counter()
            call()
            if round_ > 1:
                milliseconds[name].append(1000 * (time.perf_counter() - start))
    return milliseconds


def cost_table(title: str, milliseconds: dict[str, list[float]]) -> str:
    """Medians, and their ratios to the first."""
    base = statistics.median(next(iter(milliseconds.values())))
    lines = [f"{title}", f"{'':22}{'median ms':>12}{'ratio':>8}"]
    for name, times in milliseconds.items():
        median = statistics.median(times)
        lines.append(f"{name:22}{median:>12.3f}{median / base:>8.2f}")
    return "\n".join(lines)
