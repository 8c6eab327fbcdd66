"""The gradient norm of each layer."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from tests.core.quantities.publications import numbers, publication


def test_it_is_the_norm_at_the_last_step_without_the_total() -> None:
    assert numbers(GRAD_NORM.of(publication())) == [1, 2, 4]
