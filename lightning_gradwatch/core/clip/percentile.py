"""AutoClip: the total norm is clipped at a percentile of its own recent history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gradwatch.core._check import require
from lightning_gradwatch.core.clip.policy import SelectivePolicy, require_number
from lightning_gradwatch.core.clip.transform import TotalNormTransform, clip_coefficient, is_informative, numbers, zero
from lightning_gradwatch.core.shards import Shards


@dataclass(frozen=True)
class Percentile(SelectivePolicy):
    """Clips the total norm at a percentile of its own recent history (AutoClip).

    Any loss, any scale: there is no number to be found by trial. Two differences from the paper. It remembers all steps
    since the first; this remembers the last ``window``, so that the memory is bounded and the threshold follows the
    training. And it takes percentiles from the first step on; these follow the first leaps of a training that is about
    to diverge, so this holds the threshold at the smallest norm for ``first_steps``. A total norm of exactly zero is
    not remembered. What it cannot cure is a learning rate at which steps of a usual length are too long: the norms grow
    for good, and the threshold follows.

    Attributes:
        percentile: Position in the sorted history, in percent, ``0 < percentile <= 100``: about ``100 - percentile``
            percent of the steps are clipped.
        window: Number of steps remembered, the present one included; 2 or more.
        first_steps: Number of first steps at which the threshold is the smallest norm so far; 0 for the paper's start.
        include: Globs over the names of the layers to clip; none for all.
        exclude: Globs over the names of layers to leave alone.
        optimizer: Name of the only optimizer whose gradients are meant; None for all.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation Networks", MLSP 2020.
    """

    name: ClassVar[str] = "percentile"

    percentile: float = 10.0
    window: int = 1000
    first_steps: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("percentile", self.percentile, "in (0, 100]", "10 clips nine steps of ten", most=100)
        require("window", self.window, minimum=2, cure="use 1000 unless memory is scarce")
        require("first_steps", self.first_steps, minimum=0, cure="use 0 for percentiles from the start")

    def _transform(self, parameters: Sequence[Tensor], shards: Shards) -> _Transform:
        return _Transform(self, parameters)


class _Transform(TotalNormTransform):
    """The history is a ring of total norms; a step that says nothing leaves no gap in it."""

    def __init__(self, policy: Percentile, parameters: Sequence[Tensor]) -> None:
        history = numbers(parameters, torch.nan, policy.window)
        super().__init__(parameters, history=history, count=zero(parameters, torch.int64))
        self._policy = policy

    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        history, count = self.memory["history"], self.memory["count"]

        # This step's own norm enters first, in the place of the oldest; one that says nothing leaves that as it is.
        place = (count % self._policy.window).view(1)
        counts = is_informative(total)
        history.scatter_(0, place, torch.where(counts, total, history.gather(0, place)))
        count += counts

        # The threshold: the smallest norm for the first steps, the percentile ever after.
        smallest, is_first = history.nan_to_num(torch.inf).amin(), count <= self._policy.first_steps
        threshold = torch.where(is_first, smallest, percentile_threshold(history, self._policy.percentile))
        return threshold, clip_coefficient(total, threshold)


def percentile_threshold(norm_history: Tensor, percentile: float) -> Tensor:
    """Clip threshold at a percentile of recent total gradient norms (AutoClip).

    Args:
        norm_history: Total L2 norms of the last ``n`` optimizer steps, before clipping and after AMP unscaling.
            Shape ``(n,)``, ``n >= 1``, any order. Unit: loss per unit of parameter. NaN marks a skipped step and is
            ignored.
        percentile: Position in the sorted history, in percent: ``0 < percentile <= 100``. Between two entries it is
            interpolated linearly, as numpy does.

    Returns:
        The threshold, shape ``()``, same unit, dtype and device. ``inf`` (never clips) if every entry is NaN.

    Raises:
        ValueError: If ``percentile`` is outside ``(0, 100]`` or the history is empty or not one-dimensional.

    Source:
        Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation Networks", MLSP 2020.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"`percentile` must be in (0, 100], but {percentile!r} came.")
    if norm_history.ndim != 1 or len(norm_history) == 0:
        raise ValueError(f"`norm_history` must be of shape (n,), n >= 1, but {tuple(norm_history.shape)} came.")
    # NaN comes last, so the known norms are the first of the sorted ones, and ``last`` is the place of the largest.
    ordered = norm_history.sort().values
    last = (ordered < torch.inf).sum() - 1
    # The percentile lies between two neighbours; with no norm known both are the first place, and its NaN is replaced.
    place = last * (percentile / 100)
    low, high = ordered.gather(0, torch.stack([place.floor(), place.ceil()]).long().clamp(min=0))
    return torch.lerp(low, high, place.frac().to(low.dtype)).masked_fill(last < 0, torch.inf)
