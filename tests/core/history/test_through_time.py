from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.history.through_time import TimeHistory, memory_horizon
from tests.core.builders import through_time


def test_growth_into_the_past_is_the_opposite_of_a_loss() -> None:
    time = TimeHistory()
    for _ in range(5):
        assert (time.growth, time.worst) == (("", 0.0), ("", 0.0))
        time.add({"a": through_time(-2), "b": through_time(1)})
    (growing, growth), (losing, loss) = time.growth, time.worst
    assert (growing, losing) == ("a", "b")
    assert growth == pytest.approx(2)
    assert loss == pytest.approx(1)


def test_a_sequence_of_zeros_tells_nothing_and_hurts_nothing() -> None:
    time = TimeHistory()
    for _ in range(10):
        time.add({"a": [0.0] * 9, "b": [math.nan] * 9})
    assert (time.worst[1], time.growth[1]) == (0.0, 0.0)
    assert time.horizons == {"a": (0, 9, 0.0), "b": (0, 9, 0.0)}


def test_the_memory_horizon_counts_what_carries_a_hundredth_of_the_largest() -> None:
    assert memory_horizon([0.0, 0.0099, 0.01, 0.5, 1.0]) == 3
    assert memory_horizon([math.nan, 1.0, math.inf, 1.0]) == 3
    assert memory_horizon([1.0, 0.0, 0.0, 0.001]) == 4  # all that matters lies at the start
    assert memory_horizon([0.0, 0.0]) == memory_horizon([]) == memory_horizon([math.nan]) == 0


@given(st.lists(st.floats(1e-10, 1e10), min_size=1), st.sampled_from([2.0**-20, 2.0**20]))
def test_the_memory_horizon_knows_no_scale(norms: list[float], scale: float) -> None:
    assert 1 <= memory_horizon(norms) <= len(norms)
    assert memory_horizon([scale * norm for norm in norms]) == memory_horizon(norms)


def test_what_both_directions_lose_on_their_way_to_the_middle_counts() -> None:
    time = TimeHistory()
    both = [*through_time(-4, 12), *through_time(4, 12)]
    for _ in range(5):
        time.add({"both": both, "one": through_time(4, 24), "back": through_time(-4, 24)})
    assert time.recent["both"] == pytest.approx([4.0] * 5)
    assert time.recent["one"] == pytest.approx([4.0] * 5)
    assert time.recent["back"] == pytest.approx([-4.0] * 5)


def test_one_sample_that_loses_what_the_median_does_not_stands_alone() -> None:
    time = TimeHistory()
    for _ in range(4):
        time.add({"a": through_time(0)})
    time.add({"a": through_time(4)})
    assert time.is_alone(3.0)
    for _ in range(2):
        time.add({"a": through_time(4)})
    assert not time.is_alone(3.0)
