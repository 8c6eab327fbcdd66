"""Parameters with gradients for the tests of clipping, and every policy as an example that acts within few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.core.clip import POLICIES, Clipper, Clipping, ClipPolicy
from lightning_gradwatch.core.clip.transform import TotalNormTransform
from lightning_gradwatch.core.shards import Shards

SOON: dict[str, dict[str, Any]] = {
    "band": {"width": 0.5, "least_ratio": 1.1, "window": 8},
    "percentile": {"percentile": 25, "window": 8, "first_steps": 2},
    "zscore": {"z_threshold": 1.0, "warmup_steps": 3},
    "adagc": {"warmup_steps": 3},
    "norm": {"max_norm": 0.5},
    "value": {"max_value": 0.1},
}
"""Arguments with which a policy acts within few steps, where its defaults do not."""
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


def name_of(policy: object) -> str:
    return type(policy).__name__ if isinstance(policy, ClipPolicy) else str(policy)


def dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def norms_of(parameters: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """What the clipper is given, computed in double precision."""
    wide = [
        p.grad if p.grad is None else dense(p.grad).to(torch.promote_types(p.dtype, torch.double)) for p in parameters
    ]
    return torch.tensor([-1.0 if g is None else float(torch.linalg.vector_norm(g)) / scale for g in wide])


def one_rounding(dtype: torch.dtype) -> dict[str, Any]:
    """Tolerances for one rounding to a dtype, of numbers computed in single precision."""
    limits = torch.finfo(dtype)
    return {"rtol": max(limits.eps, 2e-6), "atol": limits.smallest_normal * limits.eps}


def clip(clipper: Clipper, parameters: Sequence[Tensor], scale: float | None = None) -> Clipping:
    norms = norms_of(parameters, scale or 1.0)
    return clipper.clip_(norms, None if scale is None else torch.tensor(scale))


def make_clipper(policy: ClipPolicy, parameters: Sequence[Tensor]) -> Clipper:
    return Clipper(policy, parameters, Shards(parameters))


EXAMPLES: list[ClipPolicy] = [policy(**SOON.get(policy.name, {})) for policy in POLICIES]
OF_THE_TOTAL: list[ClipPolicy] = [
    policy for policy in EXAMPLES if isinstance(make_clipper(policy, [torch.ones(1)])._transform, TotalNormTransform)
]
"""Those that multiply all gradients by one number."""


class Training:
    """Parameters whose gradients are drawn anew at each step, of sizes that wander and sometimes leap."""

    def __init__(self, policy: ClipPolicy, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.parameters = [nn.Parameter(torch.randn(s, generator=self.random)) for s in ((4, 3), (5,), (2, 3, 2), ())]
        self.clipper = make_clipper(policy, self.parameters)

    def draw(self) -> list[Tensor]:
        size = float(torch.rand((), generator=self.random)) + (20 if torch.rand((), generator=self.random) < 0.1 else 1)
        for p in self.parameters:
            p.grad = size * torch.randn(p.shape, generator=self.random)
        return [p.grad.clone() for p in self.parameters if p.grad is not None]

    def step(self) -> tuple[list[Tensor], Clipping]:
        """The gradients before clipping, and what was done to them."""
        before = self.draw()
        return before, clip(self.clipper, self.parameters)

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]
