"""ZClip: total norms that are outliers of their running mean and deviation are clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gradwatch.core._check import require
from lightning_gradwatch.core.clip.policy import SelectivePolicy, require_number
from lightning_gradwatch.core.clip.transform import TotalNormTransform, clip_coefficient, is_informative, zero
from lightning_gradwatch.core.shards import Shards

_RELATIVE_EPS = 1e-6


@dataclass(frozen=True)
class ZScore(SelectivePolicy):
    """Clips total norms that are outliers of their running mean and deviation (ZClip).

    Its mean and deviation follow the clipped norms, and see no norm that is zero or not finite. Two differences from
    the authors' code: there is no ``max_grad_norm=1.0`` that is always on behind the adaptive threshold, and the
    epsilon beside the deviation is relative to the mean, so that the scale of the loss does not matter. Nothing is
    clipped during the warm-up.

    Attributes:
        z_threshold: Distance from the mean, in standard deviations, from which a norm is an outlier; positive.
        alpha: How slowly the statistics follow, ``0 < alpha < 1``.
        warmup_steps: Number of steps from which the first statistics are taken; 2 or more.
        include: As in [`Percentile`][lightning_gradwatch.Percentile].
        exclude: As in [`Percentile`][lightning_gradwatch.Percentile].
        optimizer: As in [`Percentile`][lightning_gradwatch.Percentile].

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv:2504.02507, 2025.
    """

    name: ClassVar[str] = "zscore"

    z_threshold: float = 2.5
    alpha: float = 0.97
    warmup_steps: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("z_threshold", self.z_threshold, "positive and finite", "the paper uses 2.5")
        require_number("alpha", self.alpha, "in (0, 1)", "the paper uses 0.97", below=1)
        require("warmup_steps", self.warmup_steps, minimum=2, cure="the paper uses 25")

    def _transform(self, parameters: Sequence[Tensor], shards: Shards) -> _Transform:
        return _Transform(self, parameters)


class _Transform(TotalNormTransform):
    """Plain mean and variance during the warm-up (Welford's update), exponential ones after it."""

    def __init__(self, policy: ZScore, parameters: Sequence[Tensor]) -> None:
        mean, variance, count = (zero(parameters, dtype) for dtype in (torch.float32, torch.float32, torch.int64))
        super().__init__(parameters, mean=mean, variance=variance, count=count)
        self._policy = policy

    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance, count = self.memory["mean"], self.memory["variance"], self.memory["count"]
        std, limit = variance.sqrt(), self._policy.z_threshold
        is_warm = count >= self._policy.warmup_steps

        # Only an outlier has a target; to any other norm, and during the warm-up, the target is no limit.
        threshold = zscore_threshold(mean, std, limit).masked_fill(~is_warm, torch.inf)
        target = zscore_target(total, mean, std, limit)
        factor = clip_coefficient(total, target.masked_fill(~(total > threshold), torch.inf))

        # The statistics take in the norm as clipped. Warming up, each of the n norms so far has the weight 1 / n; and
        # Welford's square is of the distances from the old and the new mean, the exponential one of the new alone.
        entering = factor * total
        weight = (1 / (count + 1)).masked_fill(is_warm, 1 - self._policy.alpha)
        new_mean = mean + weight * (entering - mean)
        square = (entering - new_mean) * torch.where(is_warm, entering - new_mean, entering - mean)
        new_variance = variance + weight * (square - variance)
        self.remember(is_informative(total), mean=new_mean, variance=new_variance, count=count + 1)
        return threshold, factor


def zscore_threshold(mean: Tensor, std: Tensor, z_threshold: float) -> Tensor:
    """Total norm from which on ZClip calls a step an outlier.

    Args:
        mean: Running mean of the total norms of earlier steps, as clipped; shape ``()``. Unit: loss per unit of
            parameter.
        std: Their standard deviation, same shape and unit.
        z_threshold: Distance from the mean in standard deviations.

    Returns:
        ``mean + z_threshold * (std + 1e-6 mean)``, same shape and unit. The paper's epsilon is absolute.

    Source:
        Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv:2504.02507, 2025.
    """
    return mean + z_threshold * (std + _RELATIVE_EPS * mean)


def zscore_target(total: Tensor, mean: Tensor, std: Tensor, z_threshold: float) -> Tensor:
    """Total norm to which ZClip clips an outlier: the farther out, the closer to the mean.

    Args:
        total: Total norm of this step, shape ``()``; above ``zscore_threshold``.
        mean: As there.
        std: As there.
        z_threshold: As there.

    Returns:
        ``mean + z_threshold**2 * std / z`` with the step's own ``z = (total - mean) / (std + 1e-6 mean)``, same shape
        and unit.

    Source:
        Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv:2504.02507, 2025.
    """
    z = (total - mean) / (std + _RELATIVE_EPS * mean)
    return mean + z_threshold**2 * std / z
