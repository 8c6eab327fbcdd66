"""The memory horizon of recurrent layers."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.memory_horizon import MEMORY_HORIZON
from tests.core.quantities.snapshots import numbers, snapshot


def test_layers_that_are_not_recurrent_have_none() -> None:
    assert numbers(MEMORY_HORIZON.of(snapshot(horizons={"rnn": 12}))) == [-1, 12, -1]
    assert MEMORY_HORIZON.of(snapshot()) is None
