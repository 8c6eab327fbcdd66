"""The multiple of an update at which the loss is back where it began, from a few losses along it.

The rise of the loss over the multiple, ``(loss(m) - loss(0)) / m``, is a straight line in ``m`` on a quadratic, and
begins at the slope: the product of gradient and update. Its root is the critical multiple (critical sharpness,
arXiv:2601.16979), so that one loss beside the first one tells it exactly; what is no quadratic is bracketed by the
further ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MAX_FORWARDS = 6
"""Losses of one measurement, that at the start among them."""
MAX_MULTIPLE = 16.0
_STRIDE, _MAX_FALL = 4.0, 16.0
"""Looking farther, and nearer, by these factors at most: what is far from quadratic misleads a parabola."""
_VISIBLE = 4.0
"""Times the precision of the loss, what could not be overlooked."""
_CLOSE = 0.01
"""A slope that small, relative to that at the start, is that of a root."""


def critical_multiple(loss_at: Callable[[float], float], slope: float, resolution: float) -> float:
    """Find it.

    Args:
        loss_at: The loss at a multiple of the update, 0 for the weights as they are. It is called six times at most.
        slope: Of the loss along the update at the start, for a multiple of one.
        resolution: Relative precision of the loss, such as ``torch.finfo(dtype).eps``.

    Returns:
        The multiple; infinity beyond 16, 0 where the loss falls nowhere along the update, and NaN where it cannot be
        told: the loss is not finite, or moves less than its own precision.
    """
    start = loss_at(0.0)
    if not (math.isfinite(start) and math.isfinite(slope)):
        return math.nan
    if slope >= 0:
        return 0.0 if slope else math.nan
    noise = 8 * resolution * max(abs(start), 1e-30)
    low: tuple[float, float] = (0.0, slope)
    high: tuple[float, float] | None = None
    multiple = 1.0
    for _ in range(MAX_FORWARDS - 1):
        rise = loss_at(multiple) - start
        over = math.inf if math.isnan(rise) else rise / multiple
        # back where it began; or nothing to see yet, so look farther
        if abs(rise) <= noise:
            if -slope * multiple > _VISIBLE * noise:
                return multiple
            if high is not None or multiple >= MAX_MULTIPLE:
                return math.nan
            multiple = min(multiple * _STRIDE, MAX_MULTIPLE)
            continue
        # the loss falls, or it rises
        low, high = ((multiple, over), high) if over < 0 else (low, (multiple, over))
        if low[0] >= MAX_MULTIPLE:
            return math.inf
        if abs(over) <= _CLOSE * -slope:
            return multiple
        multiple = _next(slope, low, high)
    return multiple if low[0] else 0.0


def _next(slope: float, low: tuple[float, float], high: tuple[float, float] | None) -> float:
    """Where to look next: where a parabola has its root, within the bracket."""
    if high is None:
        return min(low[0] * _STRIDE, MAX_MULTIPLE)
    if not low[0]:
        root = high[0] * slope / (slope - high[1]) if math.isfinite(high[1]) else 0.0
        if high[0] < 1:  # a parabola has misled before
            root = min(root, high[0] / _STRIDE)
        return max(root, high[0] / _MAX_FALL)
    if not math.isfinite(high[1]):
        return math.sqrt(low[0] * high[0])
    # the parabola through start and low, and that through low and high: of a quadratic they are the same
    outer = low[0] - low[1] * (high[0] - low[0]) / (high[1] - low[1])
    inner = low[0] * slope / (slope - low[1]) if low[1] > slope else outer
    return math.sqrt(outer * min(inner, high[0]))
