"""The norm of each layer's weights."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.weight_norm import WEIGHT_NORM
from tests.core.quantities.publications import numbers, publication, sample


def test_it_is_that_of_the_latest_full_sample() -> None:
    assert numbers(WEIGHT_NORM.of(publication(sample=sample()))) == [1, 2, 3]
    assert WEIGHT_NORM.of(publication()) is None
