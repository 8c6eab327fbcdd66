"""Histograms of log10|g|, from a bounded number of elements per layer, on the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_gradwatch.core.devices import send
from lightning_gradwatch.core.groups import bunches, distance, stack
from lightning_gradwatch.core.norms import dense
from lightning_gradwatch.core.records import BINS_PER_DECADE, LOWEST, NUM_BINS

_WIDTH = NUM_BINS + 2
EDGES = tuple(LOWEST + i / BINS_PER_DECADE for i in range(NUM_BINS + 1))
"""Edges of the bins in log10|g|."""
MAX_ELEMENTS = 1024
"""Most elements of a layer, shared evenly among its parameters; at even distances, so it is often 350 to 1,000. The
share p of a bin then has a standard error of ``sqrt(p (1 - p) / elements)``: bins of a quarter decade hold at most a
third of a bell-shaped gradient, which makes it 1.5 to 2.5 percentage points."""


def _real(gradient: Tensor) -> Tensor:
    """Its elements, of complex ones the magnitudes, without the zeros that a sparse gradient leaves out."""
    gradient = gradient if gradient.layout is torch.strided else dense(gradient)
    return gradient.abs() if gradient.is_complex() else gradient


def spread(gradient: Tensor, turn: int, limit: int = MAX_ELEMENTS) -> Tensor:
    """At most ``limit`` elements at even distances; the distance shares no factor with any dimension.

    So the elements cycle through rows and columns instead of reading one of them, and ``turn`` moves the start.
    """
    flat = gradient.reshape(-1)
    step = distance(flat.numel(), limit)
    if step == 1:
        return flat
    stride, start = flat.stride(0), turn % step
    return flat.as_strided((flat.numel() // step,), (step * stride,), flat.storage_offset() + start * stride)


@dataclass(frozen=True)
class _Plan:
    """Which elements of some gradients are counted, and where.

    Attributes:
        bunches: Places of small gradients of one shape on a CPU, which are thinned out together.
        others: Places of the rest.
        limits: At most how many elements of each gradient are taken.
        bases: For each element of the subsample the first bin of its layer.
        weights: What it counts for.
    """

    bunches: list[list[int]]
    others: list[int]
    limits: list[int]
    bases: Tensor
    weights: Tensor

    def pieces(self, gradients: Sequence[Tensor], turn: int) -> list[Tensor]:
        """The subsamples: those of the bunches, then the others'."""
        together = [_spread_rows(stack(gradients, places), turn, self.limits[places[0]]) for places in self.bunches]
        return together + [spread(gradients[i], turn, self.limits[i]) for i in self.others]


def _spread_rows(rows: Tensor, turn: int, limit: int) -> Tensor:
    """``spread`` of each row."""
    step = distance(rows.shape[1], limit)
    return rows[:, turn % step :: step][:, : rows.shape[1] // step].reshape(-1)


@lru_cache(maxsize=8)
def _plan(
    kinds: tuple[tuple[torch.Size, torch.dtype, int], ...], owners: tuple[tuple[int, float], ...], device: torch.device
) -> _Plan:
    """Shape, dtype and limit of each gradient; its layer, and what an element of it counts for."""
    found = bunches([(shape, (dtype, limit)) for shape, dtype, limit in kinds]) if device.type == "cpu" else []
    bunched = [i for places in found for i in places]
    others = sorted(set(range(len(kinds))) - set(bunched))
    order, sizes = [*bunched, *others], [shape.numel() for shape, _, _ in kinds]
    taken = [size // distance(size, limit) for size, (_, _, limit) in zip(sizes, kinds, strict=True)]
    lengths = torch.tensor([taken[i] for i in order])
    bases = torch.tensor([owners[i][0] * _WIDTH for i in order]).repeat_interleave(lengths)
    factors = torch.tensor([owners[i][1] * sizes[i] / max(taken[i], 1) for i in order], dtype=torch.float32)
    weights = factors.repeat_interleave(lengths)
    return _Plan(found, others, [limit for _, _, limit in kinds], send(bases, device), send(weights, device))


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
    kinds = tuple((g.shape, g.dtype, MAX_ELEMENTS // min(siblings[i], 64)) for g, i, _ in here)
    plan = _plan(kinds, tuple((i, share) for _, i, share in here), device)
    values = torch.cat(plan.pieces([g for g, _, _ in here], turn)).detach().float().abs_()
    if scale is not None:
        values /= scale
    is_zero = values == 0
    values.add_(is_zero)  # the logarithm of 0 takes five times as long as that of 1
    values.log10_().mul_(BINS_PER_DECADE).add_(1 - LOWEST * BINS_PER_DECADE)
    # exact zeros come to lie below the lowest bin, what is not finite above the highest
    bins = values.nan_to_num_(_WIDTH - 1, _WIDTH - 1, 0).masked_fill_(is_zero, 0).long()
    counts.index_add_(0, bins.add_(plan.bases), plan.weights)
    zeros, inner, nonfinite = counts.view(-1, _WIDTH)[:num_layers].split([1, NUM_BINS, 1], dim=1)
    return torch.cat([inner, zeros, nonfinite], dim=1)
