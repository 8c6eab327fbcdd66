from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.cost import MAX_THINNING, Cost
from lightning_gradwatch.core.schedule import Schedule
from tests.tasks import Clock


def trained(
    ordinary: float, sampled: float, bare: float, every: int, steps: int = 400, cost: Cost | None = None
) -> Cost:
    """The cost of a training of which each part takes a known time."""
    cost = cost or Cost(Clock())
    assert isinstance(cost.clock, Clock)
    for step in range(steps):
        own = sampled if step % every == 0 else ordinary
        cost.begin_step()
        cost.clock.now += bare + own
        cost.spent += own
        cost.end_step(is_sampled=step % every == 0)
    return cost


def test_the_percentage_is_own_time_over_the_time_without_it() -> None:
    assert trained(ordinary=0.02, sampled=0.12, bare=1.0, every=10).percent == pytest.approx(3.0, rel=0.1)


def test_nothing_is_known_before_the_first_step_is_over() -> None:
    cost = Cost(Clock())
    assert cost.percent is None
    cost.end_step(is_sampled=False)
    cost.begin_step()
    assert cost.percent is None
    assert cost.thinning(0.01, 10, 1) == 1


def test_what_lies_between_two_steps_is_not_the_steps_time() -> None:
    cost = Cost(Clock())
    for _ in range(10):
        assert isinstance(cost.clock, Clock)
        cost.clock.now += 100.0  # a validation
        cost.begin_step()
        cost.clock.now += 1.1
        cost.spent += 0.1
        cost.end_step(is_sampled=False)
    assert cost.percent == pytest.approx(10.0)


def test_the_past_is_forgotten() -> None:
    cost = trained(ordinary=0.5, sampled=0.5, bare=1.0, every=10)
    trained(ordinary=0.01, sampled=0.01, bare=1.0, every=10, steps=1000, cost=cost)
    assert cost.percent == pytest.approx(1, 0.01)


@given(st.floats(0.0, 0.02), st.floats(0.0, 1.0), st.floats(0.001, 0.1), st.integers(1, 20))
def test_samples_are_thinned_out_just_as_far_as_the_budget_asks(
    ordinary: float, extra: float, budget: float, every: int
) -> None:
    thinning = trained(ordinary, ordinary + extra, 1.0, 10).thinning(budget, every, 1)

    def share(thinning: int) -> float:
        return ordinary + extra / (every * thinning)

    assert thinning == MAX_THINNING or share(thinning) <= budget * 1.001
    assert thinning == 1 or share(thinning // 2) > budget * 0.999


def test_samples_come_back_when_there_is_room_with_some_to_spare() -> None:
    cost = trained(ordinary=0.0, sampled=0.1, bare=1.0, every=10)
    assert cost.thinning(0.01, 10, 4) == 2  # at 1 they would take the budget whole
    assert cost.thinning(0.02, 10, 4) == 1
    assert cost.thinning(0.001, 10, 4) == 16


@given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 64))
def test_a_thinned_schedule_has_one_sample_in_each_longer_stretch(dense: int, every: int, thinning: int) -> None:
    schedule = Schedule(dense, every)
    assert all(schedule.is_due(step, thinning) for step in range(dense))
    for stretch in range(4):
        start = dense + stretch * every * thinning
        assert sum(schedule.is_due(step, thinning) for step in range(start, start + every * thinning)) == 1
