"""Histograms of log10|g|, from a bounded number of elements per layer, on the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import ceil, gcd

import torch
from torch import Tensor

from lightning_gradwatch.core.measure import dense
from lightning_gradwatch.core.records import BINS_PER_DECADE, LOWEST, NUM_BINS

_WIDTH = NUM_BINS + 2
EDGES = tuple(LOWEST + i / BINS_PER_DECADE for i in range(NUM_BINS + 1))
"""Edges of the bins in log10|g|."""
MAX_ELEMENTS = 1024
"""Elements per layer. The share p of a bin then has a standard error of ``sqrt(p (1 - p) / 1024)``, at most 1.6
percentage points; bins of a quarter decade hold at most a third of a bell-shaped gradient, which makes it 1.5."""


def _real(gradient: Tensor) -> Tensor:
    """Its elements, of complex ones the magnitudes, without the zeros that a sparse gradient leaves out."""
    gradient = gradient if gradient.layout is torch.strided else dense(gradient)
    return gradient.abs() if gradient.is_complex() else gradient


def spread(gradient: Tensor, turn: int, limit: int = MAX_ELEMENTS) -> Tensor:
    """At most ``limit`` elements at even distances; the distance shares no factor with any dimension.

    So the elements cycle through rows and columns instead of reading one of them, and ``turn`` moves the start.
    """
    flat = gradient.reshape(-1)
    step = _distance(flat.numel(), limit)
    return flat.as_strided((flat.numel() // step,), (step,), flat.storage_offset() + turn % step) if step > 1 else flat


@lru_cache(maxsize=1024)
def _distance(num_elements: int, limit: int) -> int:
    step = ceil(num_elements / limit)
    while step > 1 and gcd(step, num_elements) > 1:
        step += 1
    return step


@lru_cache(maxsize=8)
def _places(
    sizes: tuple[int, ...], owners: tuple[int, ...], factors: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each element of a subsample the first bin of its layer, and what it counts for."""
    lengths = torch.tensor(sizes)
    bases = torch.repeat_interleave(torch.tensor(owners) * _WIDTH, lengths)
    return bases.to(device), torch.repeat_interleave(torch.tensor(factors, dtype=torch.float32), lengths).to(device)


def log_histograms(
    gradients: Sequence[Tensor],
    layer_index: Sequence[int],
    num_layers: int,
    turn: int,
    scale: Tensor | None = None,
    shares: Sequence[float] = (),
) -> Tensor:
    """Count log10|g| per layer in bins of a quarter decade. No host sync.

    Args:
        gradients: Gradients of any shape, dtype and layout.
        layer_index: The layer of each gradient; ``num_layers`` for "not reported".
        num_layers: Number of layers.
        turn: Any counter; moves the subsample from call to call.
        scale: Loss scale that is still in the gradients, shape ``()``; None for none.
        shares: What an element of each gradient counts for; empty for 1.

    Returns:
        Counts, extrapolated from the subsample to all elements. Float32, shape ``(num_layers, NUM_BINS + 2)``: the bins
        from ``10**LOWEST`` upwards, then exact zeros, then non-finite values.
    """
    device = gradients[0].device
    counts = torch.zeros((num_layers + 1) * _WIDTH, dtype=torch.float32, device=device)
    together = zip(gradients, layer_index, shares or [1.0] * len(gradients), strict=True)
    here = [(_real(g), i, share) for g, i, share in together if g.device == device]
    siblings = Counter(i for _, i, _ in here)
    pieces = [spread(g, turn, MAX_ELEMENTS // min(siblings[i], 64)) for g, i, _ in here]
    factors = [share * g.numel() / max(p.numel(), 1) for p, (g, _, share) in zip(pieces, here, strict=True)]
    owners = tuple(i for _, i, _ in here)
    base, weights = _places(tuple(p.numel() for p in pieces), owners, tuple(factors), device)
    values = torch.cat(pieces).detach().float().abs_()
    if scale is not None:
        values /= scale
    # exact zeros come to lie below the lowest bin, what is not finite above the highest
    values.log10_().mul_(BINS_PER_DECADE).add_(1 - LOWEST * BINS_PER_DECADE)
    bins = values.nan_to_num_(_WIDTH - 1, _WIDTH - 1, 0).long()
    counts.index_add_(0, bins.add_(base), weights)
    zeros, inner, nonfinite = counts.view(-1, _WIDTH)[:num_layers].split([1, NUM_BINS, 1], dim=1)
    return torch.cat([inner, zeros, nonfinite], dim=1)
