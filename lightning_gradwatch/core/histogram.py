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

EDGES = tuple(LOWEST + i / BINS_PER_DECADE for i in range(NUM_BINS + 1))
"""Edges of the bins in log10|g|."""
MAX_ELEMENTS = 4096
"""Elements per layer. The share of a bin then has a standard error of at most 0.8 percentage points."""


def spread(gradient: Tensor, turn: int, limit: int = MAX_ELEMENTS) -> Tensor:
    """At most ``limit`` elements at even distances; the distance shares no factor with any dimension.

    So the elements cycle through rows and columns instead of reading one of them, and ``turn`` moves the start.
    """
    flat = dense(gradient).reshape(-1)
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
    bases = torch.repeat_interleave(torch.tensor(owners) * (NUM_BINS + 2), lengths)
    return bases.to(device), torch.repeat_interleave(torch.tensor(factors), lengths).to(device)


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
    width = NUM_BINS + 2
    device = gradients[0].device
    counts = torch.zeros((num_layers + 1) * width, dtype=torch.float32, device=device)
    plain = [dense(g.abs() if g.is_complex() else g) for g in gradients]
    everywhere = zip(plain, layer_index, shares or [1.0] * len(plain), strict=True)
    here = [(g, i, share) for g, i, share in everywhere if g.device == device and g.numel()]
    if not here:
        return counts.view(num_layers + 1, width)[:num_layers]
    siblings = Counter(i for _, i, _ in here)
    pieces = [spread(g, turn, MAX_ELEMENTS // min(siblings[i], 64)).detach().float() for g, i, _ in here]
    owners = [i for _, i, _ in here]
    factors = [share * g.numel() / p.numel() for p, (g, _, share) in zip(pieces, here, strict=True)]
    base, weights = _places(tuple(p.numel() for p in pieces), tuple(owners), tuple(factors), device)
    values = torch.cat(pieces).abs_()
    if scale is not None:
        values = values / scale
    bins = values.log10().sub_(LOWEST).mul_(BINS_PER_DECADE).clamp_(0, NUM_BINS - 1).nan_to_num_(0).long()
    bins.masked_fill_(values == 0, NUM_BINS).masked_fill_(~values.isfinite(), NUM_BINS + 1)
    counts.index_add_(0, bins.add_(base), weights)
    return counts.view(num_layers + 1, width)[:num_layers]
