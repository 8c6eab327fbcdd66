"""Gradient norms of layers made comparable: each is divided by a number of its layer. Pure."""

from __future__ import annotations

import numpy as np

from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.reading.norms import RELATIVE, RMS, Norm
from lightning_gradwatch.reading.samples import Samples
from lightning_gradwatch.reading.schema import Array, Description

_GLANCES = 256
"""Samples, spread over the run, from which a layer's median is taken."""
_TINY, _HUGE = (float(end) for end in (np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max))


def divisors(norm: Norm, description: Description, samples: Samples) -> Array | None:
    """What the norms of each layer are divided by, shape ``(layers,)``, float32, NaN for unknown; None for nothing."""
    if norm is RMS:
        return np.sqrt(np.maximum(np.array(description.elements, np.float64), 1)).astype(np.float32)
    return _medians(samples) if norm is RELATIVE else None


def _medians(samples: Samples) -> Array:
    """The median norm of each layer, of those that are positive and finite."""
    values = samples.values if samples.bins is None else samples.bins.mean
    some = values[np.unique(np.linspace(0, len(values) - 1, _GLANCES).astype(int))]
    some = np.sort(np.where((some > 0) & (some < np.inf), some, np.nan), axis=0)  # NaN comes last
    num_known = np.count_nonzero(~np.isnan(some), axis=0)
    middle = np.maximum(num_known - 1, 0) // 2
    return np.asarray(np.take_along_axis(some, middle[None], axis=0)[0], np.float32)


def divided(values: Array, by: Array) -> Array:
    """Norms by the divisors of their layers; shape ``(..., layers)``, as the values have.

    Zero, NaN, infinity and -1 keep their meaning, and what is positive stays so.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        found = np.minimum(np.maximum(values / by, _TINY), _HUGE)
        is_known = (values > 0) & (values < np.inf)
    return np.where(is_known, np.where(np.isnan(found), MISSING, found), values).astype(np.float32)
