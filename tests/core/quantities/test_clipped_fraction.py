"""How often each layer was clipped."""

from __future__ import annotations

import torch

from lightning_gradwatch.core.quantities.clipped_fraction import CLIPPED_FRACTION
from tests.core.quantities.snapshots import numbers, snapshot


def test_it_is_written_where_something_clips() -> None:
    shares = torch.tensor([0.0, 0.5, -1.0])
    assert numbers(CLIPPED_FRACTION.of(snapshot(clipped_fraction=shares))) == [0, 0.5, -1]
    assert CLIPPED_FRACTION.of(snapshot()) is None
