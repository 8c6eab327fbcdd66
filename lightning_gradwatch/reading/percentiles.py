"""How large the elements of a gradient are, from the histogram of their logarithm. Pure."""

from __future__ import annotations

import numpy as np

from lightning_gradwatch.core.records import BINS_PER_DECADE, LOWEST
from lightning_gradwatch.reading.schema import Array, decode_histogram

PERCENTS = (5, 50, 95)


def percentiles(packed: Array) -> dict[str, float] | None:
    """The sizes below which 5, 50 and 95 % of a layer's non-zero, finite elements lie.

    They are as exact as the bins, a quarter of a decade; what lies beyond the 64 bins counts with the outermost.

    Args:
        packed: The histogram as ``encode_histogram`` packs it, shape ``(66,)``.

    Returns:
        ``p5``, ``p50`` and ``p95``; None where there are no such elements.
    """
    first, roots = decode_histogram(packed)
    shares = (roots / 255.0) ** 2
    if not shares.any():
        return None
    reached = np.append(0.0, np.cumsum(shares)) / shares.sum()
    edges = LOWEST + (int(first) + np.arange(len(reached))) / BINS_PER_DECADE
    return {f"p{percent}": float(10 ** np.interp(percent / 100, reached, edges)) for percent in PERCENTS}
