"""What clips in the comparison: GradWatch's policies, a sweep of fixed norms, and one that rescales every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from lightning_gradwatch.core.clip import AGC, AdaGC, Band, Clipper, ClipPolicy, MaxNorm, Percentile, ZScore
from lightning_gradwatch.core.norms import norms
from lightning_gradwatch.core.shards import Shards

NONE = "no clipping"
SWEEP = tuple(f"fixed {limit}" for limit in (0.25, 0.5, 1.0, 4.0))
HABIT = "fixed 1.0"
POLICIES: dict[str, ClipPolicy] = {
    "band (the default)": Band(),
    "percentile (AutoClip)": Percentile(),
    "zscore (ZClip)": ZScore(),
    "adagc": AdaGC(),
    "agc": AGC(exclude="head"),
    **{name: MaxNorm(float(name.split()[1])) for name in SWEEP},
}
STABILIZER = "running mean of the norm"


class Clipping:
    """Clips the gradients of each network that it meets, and counts.

    Attributes:
        is_clipped: Whether each step was clipped, over all networks.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._known: dict[int, Callable[[], bool]] = {}
        self.is_clipped: list[bool] = []

    def __call__(self, net: nn.Module) -> None:
        """Clip."""
        if id(net) not in self._known:
            self._known[id(net)] = _clipper(self._method, net)
        self.is_clipped.append(self._known[id(net)]())


def _clipper(method: str, net: nn.Module) -> Callable[[], bool]:
    if method == NONE:
        return lambda: False
    if method == STABILIZER:
        return _stabilizer(list(net.parameters()))
    policy = POLICIES[method]
    chosen = [p for name, p in net.named_parameters() if name.split(".")[0] not in policy.exclude]
    clipper = Clipper(policy, chosen, Shards(chosen))

    def clip() -> bool:
        clipping = clipper.clip_(torch.stack(norms([p.grad for p in chosen if p.grad is not None])))
        return bool((clipping.coefficients < 1).any())

    return clip


def _stabilizer(parameters: list[nn.Parameter]) -> Callable[[], bool]:
    """Every gradient gets the running mean of the norms, as GradientStabilizer does it (without its bias terms)."""
    mean, weight = 0.0, 0.0

    def rescale() -> bool:
        nonlocal mean, weight
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not 0 < norm < math.inf:
            return False
        mean, weight = 0.97 * mean + 0.03 * norm, 0.97 * weight + 0.03
        torch._foreach_mul_(gradients, mean / weight / norm)
        return mean / weight < norm

    return rescale
