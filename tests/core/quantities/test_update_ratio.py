"""The size of updates relative to the weights."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.update_ratio import UPDATE_RATIO
from tests.core.quantities.snapshots import numbers, snapshot


def test_it_follows_the_layers_and_says_which_are_not_known() -> None:
    found = snapshot(update_ratios={"head": 0.25, "rnn": 0.5, "gone": 1.0})
    assert numbers(UPDATE_RATIO.of(found)) == [-1, 0.5, 0.25]


def test_nothing_is_written_before_anything_is_known() -> None:
    assert UPDATE_RATIO.of(snapshot()) is None
