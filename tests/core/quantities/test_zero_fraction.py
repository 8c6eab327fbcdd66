"""The share of zeros in each layer's gradient."""

from __future__ import annotations

import torch

from lightning_gradwatch.core.quantities.zero_fraction import ZERO_FRACTION
from tests.core.quantities.snapshots import numbers, snapshot

FOUND = torch.tensor([0.0, 0.5, 1.0])


def test_it_is_that_of_the_full_sample_if_it_was_measured() -> None:
    assert numbers(ZERO_FRACTION.of(snapshot(zero_fraction=FOUND))) == [0, 0.5, 1]
    assert ZERO_FRACTION.of(snapshot()) is None
