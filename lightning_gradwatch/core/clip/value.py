"""Every element of a gradient is clipped at a fixed number, as torch does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.clip.gradients import reals_of, settle_
from lightning_gradwatch.core.clip.policy import SelectivePolicy, require_number
from lightning_gradwatch.core.clip.transform import Outcome, Step, Transform
from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.norms import fill_missing, norms
from lightning_gradwatch.core.safe_norms import SMALLEST_NORM
from lightning_gradwatch.core.shards import Shards, is_spread


@dataclass(frozen=True)
class MaxValue(SelectivePolicy):
    """Clips every element to ``[-max_value, max_value]``, as ``torch.nn.utils.clip_grad_value_`` does.

    The only policy that turns the gradient even within a unit. Real and imaginary parts are clipped each by itself.

    Attributes:
        max_value: Largest absolute value of an element; positive.
        include: As in [`Percentile`][lightning_gradwatch.Percentile].
        exclude: As in [`Percentile`][lightning_gradwatch.Percentile].
        optimizer: As in [`Percentile`][lightning_gradwatch.Percentile].

    Raises:
        ValueError: If an argument is out of its range.
    """

    name: ClassVar[str] = "value"

    max_value: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("max_value", self.max_value, "positive and finite", "1.0 is a usual choice")

    def _transform(self, parameters: Sequence[Tensor], shards: Shards) -> _Transform:
        if any(map(_is_replicated, parameters)):
            cure = "clip by the norm instead, or leave the layers out that are not sharded"
            rule = "a policy that works on partial sums, where DTensors are replicated"
            raise refuse("auto_clip", rule, self, cure)
        return _Transform(self, parameters, shards)


class _Transform(Transform):
    """Remembers nothing; norms after clipping do not follow from those before, and are measured again."""

    def __init__(self, policy: MaxValue, parameters: Sequence[Tensor], shards: Shards) -> None:
        super().__init__(parameters)
        self._max_value, self._shards = policy.max_value, shards
        self._is_spread = shards.is_spread

    def clip_(self, step: Step) -> Outcome:
        # The limit is in the gradients' own unit, loss scale included; none where a gradient is not finite.
        threshold = torch.full_like(step.total, self._max_value)
        limit = (threshold * step.loss_scale).masked_fill(~(step.total < torch.inf), torch.inf)
        gradients = [settle_(p) for p in self.parameters]
        clamped = [
            g if g is not None and may_exceed and (clamp_(g, limit) or self._is_spread) else None
            for g, may_exceed in zip(gradients, self._may_exceed(step.norms), strict=True)
        ]

        # Only what was clamped is measured again (and what is spread, whose other parts may have been). What is missing
        # is filled with minus the loss scale, which the division makes the -1 that `reduce` expects.
        present = [g for g in clamped if g is not None]
        owners = [p for p, g in zip(self.parameters, clamped, strict=True) if g is not None]
        found = fill_missing(norms(self._shards.local_parts(present, owners)), clamped, -step.loss_scale)
        after = self._shards.reduce({"after": torch.stack(found) / step.loss_scale}, {"after": "norm"})["after"]
        is_changed = (step.total < torch.inf) & (step.norms > 0) & (after >= 0)
        return Outcome(threshold, (after / step.norms).clamp(max=1).masked_fill(~is_changed, 1.0))

    def _may_exceed(self, before: Tensor) -> list[bool]:
        """Whether an element of each gradient may be above the limit; True where a device must be asked."""
        if self._is_spread or not before.is_cpu or self._max_value < SMALLEST_NORM:
            return [True] * len(before)
        # No element is larger than the norm, which in float32 is right to some 1e-3.
        may_exceed: list[bool] = (before * 1.01 > self._max_value).tolist()
        return may_exceed


def clamp_(gradient: Tensor, limit: Tensor) -> bool:
    """Bound every element of a gradient.

    Args:
        gradient: Settled, of any dtype. Real and imaginary parts are bounded each by itself.
        limit: Largest absolute value, float32, shape ``()``. Where it is ``inf``, nothing is changed.

    Returns:
        Whether anything may have changed.
    """
    values = reals_of(gradient)
    if not (values.is_cpu and limit.is_cpu):
        here = limit.to(values.device, non_blocking=need_not_wait(values.device))
        values.clamp_(min=-here, max=here)
        return True
    # nothing is waited for where all is on the host, and a number is ten times as fast there as a tensor
    (most,) = limit.reshape(1).tolist()
    if values.numel() and most < math.inf:
        low, high = torch.stack(values.aminmax()).tolist()
        if not -most <= low <= high <= most:
            values.clamp_(-most, most)
            return True
    return False


def _is_replicated(parameter: Tensor) -> bool:
    """Whether a parameter is held whole by several ranks, so that its gradient may be a partial sum on each."""
    return is_spread(parameter) and any(
        place.is_replicate() and parameter.device_mesh.size(dim) > 1 for dim, place in enumerate(parameter.placements)
    )
