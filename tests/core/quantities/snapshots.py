"""A snapshot of three layers, for the tests of what is taken from it."""

from __future__ import annotations

from typing import Any

import torch

from lightning_gradwatch.core.records import NUM_BINS, Layer
from lightning_gradwatch.core.snapshot import Snapshot

NAMES = ("embedding", "rnn", "head")


def snapshot(**known: Any) -> Snapshot:
    """One of which nothing else is known."""
    return Snapshot(3, "", tuple(Layer(name, (f"{name}.weight",), has_matrix=True) for name in NAMES), **known)


def histogram(*rows: tuple[float, float, float]) -> torch.Tensor:
    """Counts of ordinary elements, zeros and elements that are not finite, layer by layer."""
    counts = torch.zeros(len(rows), NUM_BINS + 2)
    for row, (ordinary, zeros, nonfinite) in zip(counts, rows, strict=True):
        row[100], row[-2], row[-1] = ordinary, zeros, nonfinite
    return counts


def numbers(found: torch.Tensor | None) -> list[float]:
    """The numbers of the layers, which must be float32."""
    assert found is not None
    assert (found.dtype, found.shape) == (torch.float32, (len(NAMES),))
    return [float(number) for number in found]
