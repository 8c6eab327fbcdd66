from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.history.profile import Profile, decades_lost, depth_profile, largest_jump, without
from lightning_gradwatch.core.records import Layer
from tests.core.builders import LAYERS


def test_decades_are_the_difference_of_the_outer_thirds() -> None:
    assert decades_lost([1e-6, 1e-6, 1e-2, 1e-4, 1.0, 1.0]) == pytest.approx(6)
    assert decades_lost([1e-5, 7.0, 1e-3]) == pytest.approx(2)
    assert decades_lost([1.0, 1e-3, 1e-5]) == pytest.approx(-5)
    assert decades_lost([1.0, 2.0]) is None


@given(st.lists(st.floats(1e-20, 1e20), min_size=3, max_size=30), st.floats(1e-6, 1e6))
def test_decades_do_not_depend_on_the_loss_scale(norms: list[float], scale: float) -> None:
    before, after = decades_lost(norms), decades_lost([n * scale for n in norms])
    assert before is not None
    assert after == pytest.approx(before, abs=1e-6)


def test_the_profile_skips_what_tells_nothing_about_depth() -> None:
    layers = [*LAYERS[:4], Layer("norm", ("norm.weight",)), LAYERS[4]]
    seen = depth_profile(layers, [1.0, 0.0, math.nan, 2.0, 5.0, 3.0], [9.0] * 6)
    assert seen == Profile(("l0", "l3", "l4"), (1.0, 2.0, 3.0), at_outputs=True)


def test_without_outputs_the_weights_gradients_stand_in() -> None:
    assert depth_profile(LAYERS, [-1.0] * 6, [1.0, 2.0, 3.0, -1.0, 4.0, 5.0]) == Profile(
        ("l0", "l1", "l2", "l4", "l5"), (1.0, 2.0, 3.0, 4.0, 5.0), at_outputs=False
    )


def test_one_layer_that_stands_out_is_no_jump() -> None:
    level = [1.0] * 30
    assert largest_jump([*level[:15], 100.0, *level[15:]]) < 0.1
    assert largest_jump([1e-3] * 15 + [1.0] * 15) == pytest.approx(3)
    assert largest_jump([1.0]) == 0.0


def test_what_is_lost_in_some_operations_can_be_left_out() -> None:
    profile = Profile(("a", "b", "c"), (1e-3, 1e-2, 1.0), at_outputs=True)
    assert without(profile, {"a": 2.0, "b": 2.0}).norms == pytest.approx((0.1, 1.0, 1.0))
    assert without(profile, {}) is profile
    assert without(profile, {"a": 0.0}) is profile
    at_weights = Profile(("a",), (1.0,), at_outputs=False)
    assert without(at_weights, {"a": 2.0}) is at_weights
