"""The default: total norms that leave the band of the usual ones are brought back to a usual one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gradwatch.core._check import require
from lightning_gradwatch.core.clip.policy import SelectivePolicy, require_number
from lightning_gradwatch.core.clip.transform import TotalNormTransform, is_informative, numbers, zero
from lightning_gradwatch.core.shards import Shards

START = 1.5
"""The heat in which a training begins: as hot as can be for 27 steps."""
LOW, MIDDLE, HIGH = 0.1, 0.5, 0.9
"""The percentiles by which the band is known, as fractions."""
WARMING = 0.5
"""By which part a norm above the band moves the heat towards 1."""
COOLING = 0.015
"""By which part a norm within it moves the heat towards 0: it falls by half in 46 steps."""
TOLERATED = 0.5
"""The heat that changes nothing yet: one norm above the band does not lower the limit, two in some dozen steps do."""


@dataclass(frozen=True)
class Band(SelectivePolicy):
    """Brings total norms that leave the band of the usual ones back to a usual one, and leaves all others alone.

    A norm above the band of the last ``window`` ones (their median plus ``width`` times the way to their 90th
    percentile, at least twice the median, in logarithms) is brought down to the median. Where several come within some
    dozen steps, and in the first 27 of a training, the limit lies lower, down to the 10th percentile (AutoClip's).

    So a healthy training, whose norms scatter by a factor and drift slowly, is left alone after its first steps, and
    one that runs away is held by shorter steps until its norms are usual again. What is remembered is not clipped, so
    that the band follows a level that has changed for good; a total norm of exactly zero is not remembered. What it
    does not hold is a training for which steps of a usual length are too long at every step: see ``"percentile"``; and
    reinforcement learning with too high a rate of SGD may come out worse than unclipped: see
    [`MaxNorm`][lightning_gradwatch.MaxNorm].

    Attributes:
        width: Height of the band above the median by that of the 90th percentile, in logarithms; positive. 2.0 lets
            normally distributed logarithms up to 2.6 standard deviations pass.
        least_ratio: Ratio to the median up to which a norm is usual in any case; more than 1.
        window: Number of steps remembered; 2 or more.
        include: As in [`Percentile`][lightning_gradwatch.Percentile].
        exclude: As in [`Percentile`][lightning_gradwatch.Percentile].
        optimizer: As in [`Percentile`][lightning_gradwatch.Percentile].

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Ours; ``benchmarks/clipping`` compares it with the published ones.
    """

    name: ClassVar[str] = "band"

    width: float = 2.0
    least_ratio: float = 2.0
    window: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("width", self.width, "positive and finite", "2.0 leaves healthy trainings alone")
        require_number("least_ratio", self.least_ratio, "above 1 and finite", "2.0 is the default", above=1.0)
        require("window", self.window, minimum=2, cure="128 is the default")

    def _transform(self, parameters: Sequence[Tensor], shards: Shards) -> _Transform:
        return _Transform(self, parameters)


class _Transform(TotalNormTransform):
    """Remembers logarithms of the last norms in a ring, and the heat."""

    def __init__(self, policy: Band, parameters: Sequence[Tensor]) -> None:
        history = numbers(parameters, torch.nan, policy.window)
        super().__init__(
            parameters, history=history, count=zero(parameters, torch.int64), heat=numbers(parameters, START)
        )
        self._policy = policy
        self._fractions = torch.tensor([LOW, MIDDLE, HIGH], dtype=torch.float32, device=parameters[0].device)

    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        history, count, heat = self.memory["history"], self.memory["count"], self.memory["heat"]
        now, counts = total.log(), is_informative(total)

        # the band of the steps before this one; the first norm of all is a band of its own
        low, middle, high = torch.where(count == 0, now, quantiles(history, self._fractions)).unbind()
        top = middle + (self._policy.width * (high - middle)).clamp(min=math.log(self._policy.least_ratio))
        is_above = now > top

        # the hotter, the lower the limit; what is above the band is brought down to the median at least
        warmer = torch.where(is_above, torch.lerp(heat, heat.clamp(min=1), WARMING), (1 - COOLING) * heat)
        limit = torch.lerp(top, low, ((warmer - TOLERATED) / (1 - TOLERATED)).clamp(0, 1))
        target = torch.where(is_above, torch.minimum(limit, middle), limit)
        factor = (target - now).exp().masked_fill(~(counts & (now > limit)), 1.0)

        place = (count % self._policy.window).view(1)
        history.scatter_(0, place, torch.where(counts, now, history.gather(0, place)))
        self.remember(counts, heat=warmer)
        count += counts
        return limit.exp(), factor


def quantiles(history: Tensor, fractions: Tensor) -> Tensor:
    """Numbers below which given fractions of a history lie.

    Args:
        history: Shape ``(n,)``; NaN marks what is not known yet.
        fractions: Positions in the sorted history, in [0, 1], shape ``(k,)``.

    Returns:
        Shape ``(k,)``, interpolated linearly as numpy does; NaN if nothing is known.
    """
    ordered = history.sort().values  # NaN comes last
    last = (~history.isnan()).sum() - 1
    # each lies between two neighbours; with no number known both are the first place, and NaN
    place = (last * fractions).clamp(min=0)
    low, high = ordered.gather(0, torch.cat([place.floor(), place.ceil()]).long()).chunk(2)
    return torch.lerp(low, high, place.frac())
