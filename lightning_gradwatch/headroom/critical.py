"""The multiple of an update at which the loss is back where it began, from a few losses along it.

The rise of the loss over the multiple, ``(loss(m) - loss(0)) / m``, is a straight line in ``m`` on a quadratic. Its
root is the critical multiple (critical sharpness, arXiv:2601.16979), so that two losses beside the first one tell it
exactly; what is no quadratic is bracketed by the further ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MAX_FORWARDS = 6
"""Losses of one measurement, that at the start among them."""
MAX_MULTIPLE = 16.0
MIN_MULTIPLE = 1 / 16
_STRIDE = 4.0
_VISIBLE = 4.0
"""Times the precision of the loss, what could not be overlooked."""
_CLOSE = 0.01
"""A slope that small, relative to the steepest, is that of a root."""


def critical_multiple(loss_at: Callable[[float], float], resolution: float) -> float:
    """Find it.

    Args:
        loss_at: The loss at a multiple of the update, 0 for the weights as they are. It is called six times at most.
        resolution: Relative precision of the loss, such as ``torch.finfo(dtype).eps``.

    Returns:
        The multiple; infinity beyond 16, 0 where the loss does not fall even at a sixteenth of the update, and NaN
        where it cannot be told: the loss is not finite, or moves less than its own precision.
    """
    start = loss_at(0.0)
    if not math.isfinite(start):
        return math.nan
    noise = 8 * resolution * max(abs(start), 1e-30)
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    multiple = 1.0
    for _ in range(MAX_FORWARDS - 1):
        rise = loss_at(multiple) - start
        slope = math.inf if math.isnan(rise) else rise / multiple
        # back where it began; or nothing to see yet, so look farther
        if abs(rise) <= noise:
            if low is not None or (high is not None and high[1] * multiple > _VISIBLE * noise):
                return multiple
            if high is not None or multiple >= MAX_MULTIPLE:
                return math.nan
            multiple = min(multiple * _STRIDE, MAX_MULTIPLE)
            continue
        # the loss falls, or it rises
        low, high = ((multiple, slope), high) if slope < 0 else (low, (multiple, slope))
        if low is not None and low[0] >= MAX_MULTIPLE:
            return math.inf
        if high is not None and high[0] <= MIN_MULTIPLE and low is None:
            return 0.0
        if low is not None and high is not None and abs(slope) <= _CLOSE * max(abs(low[1]), min(abs(high[1]), 1e300)):
            return multiple
        multiple = _next(low, high)
    return _next(low, high)


def _next(low: tuple[float, float] | None, high: tuple[float, float] | None) -> float:
    """Where to look next: where a parabola has its root, within the bracket."""
    if high is None:
        return MAX_MULTIPLE if low is None else min(low[0] * _STRIDE, MAX_MULTIPLE)
    if low is None:
        return max(high[0] / _STRIDE, MIN_MULTIPLE)
    if not math.isfinite(high[1]):
        return math.sqrt(low[0] * high[0])
    return low[0] - low[1] * (high[0] - low[0]) / (high[1] - low[1])
