"""The gradient at each layer's output."""

from __future__ import annotations

import torch

from lightning_gradwatch.core.quantities.output_gradient import OUTPUT_GRAD_NORM
from tests.core.quantities.snapshots import numbers, snapshot

FOUND = torch.tensor([0.0, 0.5, 1.0])


def test_it_is_that_of_the_full_sample_if_it_was_measured() -> None:
    assert numbers(OUTPUT_GRAD_NORM.of(snapshot(output_grad_norm=FOUND))) == [0, 0.5, 1]
    assert OUTPUT_GRAD_NORM.of(snapshot()) is None
