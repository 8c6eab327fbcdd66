"""The total norm is clipped at a fixed number, as torch does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gradwatch.core.clip.policy import SelectivePolicy, require_number
from lightning_gradwatch.core.clip.transform import TotalNormTransform, numbers
from lightning_gradwatch.core.shards import Shards

_TORCH_EPS = 1e-6


@dataclass(frozen=True)
class MaxNorm(SelectivePolicy):
    """Clips the total norm at a fixed number, as ``torch.nn.utils.clip_grad_norm_`` does.

    Attributes:
        max_norm: Largest total norm; positive.
        include: As in [`Percentile`][lightning_gradwatch.Percentile].
        exclude: As in [`Percentile`][lightning_gradwatch.Percentile].
        optimizer: As in [`Percentile`][lightning_gradwatch.Percentile].

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013.
    """

    name: ClassVar[str] = "norm"

    max_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("max_norm", self.max_norm, "positive and finite", "1.0 is the commonest choice")

    def _transform(self, parameters: Sequence[Tensor], shards: Shards) -> _Transform:
        return _Transform(self, parameters)


class _Transform(TotalNormTransform):
    """Remembers nothing; the threshold is on the device once and for all."""

    def __init__(self, policy: MaxNorm, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._max_norm = policy.max_norm
        self._threshold = numbers(parameters, self._max_norm)

    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        return self._threshold, fixed_coefficient(total, self._max_norm)


def fixed_coefficient(total: Tensor, max_norm: float) -> Tensor:
    """What brings a total norm down to a fixed maximum.

    Args:
        total: Total norm before clipping, shape ``()``.
        max_norm: Largest total norm, same unit.

    Returns:
        ``min(1, max_norm / (total + 1e-6))``, exactly as torch computes it; exactly 1 if ``total`` is not finite.

    Source:
        ``torch.nn.utils.clip_grad_norm_``; Pascanu et al., "On the difficulty of training recurrent neural networks",
        ICML 2013.
    """
    return torch.where(total < torch.inf, (max_norm / (total + _TORCH_EPS)).clamp(max=1), 1.0)
