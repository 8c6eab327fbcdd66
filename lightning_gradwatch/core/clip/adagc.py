"""AdaGC: each tensor's norm is clipped at a multiple of the running mean of its own clipped norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gradwatch.core._check import require
from lightning_gradwatch.core.clip.gradients import multiply_each_
from lightning_gradwatch.core.clip.policy import SelectivePolicy, require_number
from lightning_gradwatch.core.clip.transform import (
    Outcome,
    Step,
    Transform,
    clip_coefficient,
    is_informative,
    numbers,
    zero,
)
from lightning_gradwatch.core.shards import Shards


@dataclass(frozen=True)
class AdaGC(SelectivePolicy):
    """Clips each tensor's gradient norm at a multiple of the running mean of its own clipped norms.

    During the warm-up the total norm is clipped at ``lambda_abs`` and each tensor remembers its smallest norm. One
    difference from the paper: a gradient of exactly zero is not remembered, since a tensor that started with one (the
    layers before a projection that is initialised to zero) would be held at zero for ever; a tensor whose first
    gradient comes late starts with that.

    Attributes:
        lambda_rel: Largest allowed ratio of a tensor's norm to its running mean; positive.
        beta: How slowly the running mean follows, ``0 < beta < 1``.
        lambda_abs: Largest total norm during the warm-up; positive. The only number with the loss's unit.
        warmup_steps: Number of steps of the warm-up; 1 or more.
        include: As in [`Percentile`][lightning_gradwatch.Percentile].
        exclude: As in [`Percentile`][lightning_gradwatch.Percentile].
        optimizer: As in [`Percentile`][lightning_gradwatch.Percentile].

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Wang et al., "AdaGC: Improving Training Stability for Large Language Model Pretraining", arXiv:2502.11034, 2025.
    """

    name: ClassVar[str] = "adagc"

    lambda_rel: float = 1.05
    beta: float = 0.98
    lambda_abs: float = 1.0
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("lambda_rel", self.lambda_rel, "positive and finite", "the paper uses 1.05")
        require_number("beta", self.beta, "in (0, 1)", "the paper uses 0.98", below=1)
        require_number("lambda_abs", self.lambda_abs, "positive and finite", "the paper uses 1.0")
        require("warmup_steps", self.warmup_steps, minimum=1, cure="the paper uses 100")

    def _transform(self, parameters: Sequence[Tensor], shards: Shards) -> _Transform:
        return _Transform(self, parameters)


class _Transform(Transform):
    """What is remembered of each tensor is ``inf`` until its first gradient that is not zero."""

    def __init__(self, policy: AdaGC, parameters: Sequence[Tensor]) -> None:
        running = numbers(parameters, torch.inf, len(parameters))
        super().__init__(parameters, running=running, count=zero(parameters, torch.int64))
        self._policy = policy

    def clip_(self, step: Step) -> Outcome:
        coefficients = self._judge(step.norms, step.total)
        present = [c for c, p in zip(coefficients.unbind(), self.parameters, strict=True) if p.grad is not None]
        multiply_each_(self.gradients(), present)
        return Outcome(torch.full_like(step.total, torch.nan), coefficients)

    def _judge(self, norms: Tensor, total: Tensor) -> Tensor:
        running, count = self.memory["running"], self.memory["count"]
        is_warm, beta = count >= self._policy.warmup_steps, self._policy.beta

        # All by one number during the warm-up, each by its own after it; a gradient of zero, or none, by nothing.
        together = clip_coefficient(total, torch.full_like(total, self._policy.lambda_abs))
        each = tensorwise_coefficients(norms, running, self._policy.lambda_rel)
        counts = (total < torch.inf) & (norms > 0)
        coefficients = torch.where(is_warm, each, together).masked_fill(~counts, 1.0)

        # The smallest clipped norm is remembered during the warm-up, the mean of clipped norms after it. A tensor
        # whose first gradient comes later has no mean yet: it too begins with its smallest, which is that gradient's.
        entering = coefficients * norms
        mean, smallest = beta * running + (1 - beta) * entering, torch.minimum(running, entering)
        self.remember(counts, running=torch.where(is_warm & running.isfinite(), mean, smallest))
        self.remember(is_informative(total), count=count + 1)
        return coefficients


def tensorwise_coefficients(norms: Tensor, running: Tensor, lambda_rel: float) -> Tensor:
    """What brings each tensor's norm down to a multiple of its own running mean (AdaGC after its warm-up).

    Args:
        norms: L2 norm of each gradient, shape ``(n,)``; negative for "no gradient".
        running: Running mean of each tensor's clipped norms, same shape and unit; ``inf`` where there was none yet.
        lambda_rel: Largest allowed ratio.

    Returns:
        ``min(1, lambda_rel * running / norms)``, shape ``(n,)``; 1 where there is no gradient or it is zero.

    Source:
        Wang et al., "AdaGC: Improving Training Stability for Large Language Model Pretraining", arXiv:2502.11034, 2025.
    """
    return (lambda_rel * running / norms).clamp(max=1).masked_fill(norms <= 0, 1.0)
