from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.schedule import Schedule


def test_the_start_is_dense() -> None:
    schedule = Schedule(dense_steps=20, every_n_steps=10)
    assert all(schedule.is_due(step) for step in range(20))


@given(st.integers(0, 30), st.integers(1, 60))
def test_each_stretch_after_the_start_has_one_sample(dense: int, every: int) -> None:
    schedule = Schedule(dense, every)
    for stretch in range(8):
        start = dense + stretch * every
        assert sum(schedule.is_due(step) for step in range(start, start + every)) == 1


@given(st.integers(0, 30), st.integers(1, 60), st.integers(1, 8), st.integers(0, 500))
def test_the_next_sample_is_the_first_step_that_is_due(dense: int, every: int, thinning: int, step: int) -> None:
    schedule = Schedule(dense, every)
    due = next(later for later in range(step, step + 2000) if schedule.is_due(later, thinning))
    assert schedule.next_due(step, thinning) == due


def test_samples_do_not_lock_in_step_with_alternating_updates() -> None:
    schedule = Schedule(dense_steps=0, every_n_steps=10)
    parities = [step % 2 for step in range(1000) if schedule.is_due(step)]
    assert 30 < sum(parities) < 70


def test_every_step_can_be_sampled() -> None:
    assert all(Schedule(0, 1).is_due(step) for step in range(100))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 10), "dense_steps"),
        ((0, 0), "sample_every_n_steps"),
        ((0, 1.5), "sample_every_n_steps"),
        ((True, 1), "dense_steps"),
    ],
)
def test_wrong_numbers_are_refused_by_name(arguments: tuple[Any, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
        Schedule(*arguments)
