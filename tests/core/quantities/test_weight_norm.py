"""The norm of each layer's weights."""

from __future__ import annotations

import torch

from lightning_gradwatch.core.quantities.weight_norm import WEIGHT_NORM
from tests.core.quantities.snapshots import numbers, snapshot

FOUND = torch.tensor([0.0, 0.5, 1.0])


def test_it_is_that_of_the_full_sample_if_it_was_measured() -> None:
    assert numbers(WEIGHT_NORM.of(snapshot(weight_norm=FOUND))) == [0, 0.5, 1]
    assert WEIGHT_NORM.of(snapshot()) is None
