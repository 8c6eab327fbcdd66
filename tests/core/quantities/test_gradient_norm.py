"""The gradient norm of each layer."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from tests.core.quantities.snapshots import snapshot


def test_it_is_known_at_every_step_and_so_no_full_sample_is_asked_for_it() -> None:
    assert GRAD_NORM.of(snapshot()) is None
