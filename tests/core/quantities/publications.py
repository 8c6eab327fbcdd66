"""A publication of three layers, for the tests of what is taken from it."""

from __future__ import annotations

from typing import Any

import torch

from lightning_gradwatch.core.records import NUM_BINS, Layer, Publication, Sample, Window

NAMES = ("embedding", "rnn", "head")


def publication(**changes: Any) -> Publication:
    """One whose norms are 1, 2 and 4, and of which nothing else is known yet."""
    norms = torch.tensor([7.0, 1.0, 2.0, 4.0])
    known: dict[str, Any] = {
        "step": 3,
        "optimizer": "",
        "layers": tuple(Layer(name, (f"{name}.weight",), has_matrix=True) for name in NAMES),
        "window": Window(1, norms, norms, norms, norms),
        "sample": None,
        "histogram": None,
        "scores": {},
    }
    return Publication(**{**known, **changes})


def sample() -> Sample:
    """A full sample, each of whose tensors has numbers of its own."""
    return Sample(3, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.5, 1.0]))


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
