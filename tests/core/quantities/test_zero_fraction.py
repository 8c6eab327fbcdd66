"""The share of zeros in each layer's gradient."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.zero_fraction import ZERO_FRACTION
from tests.core.quantities.publications import numbers, publication, sample


def test_it_is_that_of_the_latest_full_sample() -> None:
    assert numbers(ZERO_FRACTION.of(publication(sample=sample()))) == [0, 0.5, 1]
    assert ZERO_FRACTION.of(publication()) is None
