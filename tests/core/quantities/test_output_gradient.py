"""The gradient at each layer's output."""

from __future__ import annotations

import pytest

from lightning_gradwatch.core.quantities.output_gradient import OUTPUT_GRAD_NORM
from tests.core.quantities.publications import numbers, publication, sample


def test_it_is_that_of_the_latest_full_sample() -> None:
    assert numbers(OUTPUT_GRAD_NORM.of(publication(sample=sample()))) == pytest.approx([0.1, 0.2, 0.3])
    assert OUTPUT_GRAD_NORM.of(publication()) is None
