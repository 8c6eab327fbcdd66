"""The share of NaN and infinity in each layer's gradient."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.nonfinite_fraction import NONFINITE_FRACTION
from tests.core.quantities.snapshots import histogram, numbers, snapshot


def test_it_is_a_share_of_all_elements_and_a_layer_without_a_gradient_has_none() -> None:
    counts = histogram((6, 2, 0), (2, 1, 1), (0, 0, 0))
    assert numbers(NONFINITE_FRACTION.of(snapshot(histogram=counts))) == [0, 0.25, -1]


def test_it_comes_with_a_histogram() -> None:
    assert NONFINITE_FRACTION.of(snapshot()) is None
