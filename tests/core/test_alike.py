from __future__ import annotations

from lightning_gradwatch.core.alike import SharedDoubts
from lightning_gradwatch.core.records import Observation
from tests.core.builders import observed, profile, silent


def losing(step: int, decades: float) -> Observation:
    return observed(step, gradients=list(profile(decades).norms))


def test_a_layer_that_falls_silent_is_a_reason_once() -> None:
    doubts = SharedDoubts()
    found = [
        doubts.are_new(observed(step, **silent(*layers))) for step, layers in enumerate([(), (3,), (3,), (), (4,)])
    ]
    assert found == [False, True, False, False, False]  # as experts do in turn
    assert doubts.are_new(observed(5, **silent(3, 4)))


def test_a_loss_along_the_depth_is_a_reason_whenever_it_begins() -> None:
    doubts = SharedDoubts()
    found = [doubts.are_new(losing(step, decades)) for step, decades in enumerate((0, 3, 3, 0, 3))]
    assert found == [False, True, False, False, True]
