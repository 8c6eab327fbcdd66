"""Every step of a run until it is written: nothing is lost, and what is written stays bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.sampling import HOME_EVERY, HOME_EVERY_LATER, YOUNG_STEPS
from lightning_gradwatch.outputs.step_log import (
    AROUND_STEPS,
    BLOCK_STEPS,
    MAX_WINDOWS,
    WIDTHS,
    YOUNG_SECONDS,
    YOUNG_STEPS_TOGETHER,
    StepLog,
    Steps,
    bin_width,
)
from lightning_gradwatch.reading.bins import Bins


def steps(first: int, num: int, num_layers: int = 2) -> Steps:
    at = np.arange(first, first + num)
    norms = np.stack([at + 1.0, *[np.full(num, 2.0)] * (num_layers - 1)], axis=1).astype(np.float32)
    return Steps(at, norms, np.zeros((num, 1), np.float32))


def run(log: StepLog, sizes: list[int], first: int = 0) -> list[Bins]:
    """Let so many steps come at a time; all bins that are written, with those at the end."""
    found = []
    for size in sizes:
        found.append(log.add(steps(first, size)))
        first += size
    return [bins for bins in [*found, log.take()] if bins is not None]


@given(st.lists(st.integers(0, 40), max_size=40), st.sampled_from([0, 990, 5_000, 10**6]))
def test_every_step_is_written_once_and_in_order(sizes: list[int], first: int) -> None:
    written = run(StepLog(2), sizes, first)
    covered = [step for bins in written for a, b in zip(bins.first, bins.last, strict=True) for step in range(a, b + 1)]
    assert covered == list(range(first, first + sum(sizes)))
    assert sum(int(bins.count.sum()) for bins in written) == sum(sizes)


def test_steps_of_a_young_run_are_written_at_once_and_one_by_one() -> None:
    log = StepLog(2)
    bins = log.add(steps(0, 7))
    assert bins is not None
    assert bins.first.tolist() == bins.last.tolist() == list(range(7))
    assert bins.high[:, 0].tolist() == list(range(1, 8))
    assert log.waiting() is None


def test_single_steps_of_a_young_run_are_written_together_the_first_at_once() -> None:
    log = StepLog(2, clock=lambda: 0.0)
    sizes = [0 if bins is None else len(bins) for bins in (log.add(steps(at, 1)) for at in range(22))]
    assert sizes == [1, *[0] * 9, YOUNG_STEPS_TOGETHER, *[0] * 9, YOUNG_STEPS_TOGETHER, 0]


def test_a_slow_young_run_waits_for_a_second_at_most() -> None:
    now = 0.0
    log = StepLog(2, clock=lambda: now)
    written = []
    for at in range(12):
        written.append(log.add(steps(at, 1)) is not None)
        now += YOUNG_SECONDS / 2
    assert written == [True, False] * 6


def test_an_alert_of_a_young_run_leaves_nothing_waiting() -> None:
    log = StepLog(2, clock=lambda: 0.0)
    for at in range(4):
        log.add(steps(at, 1))
    bins = log.add(steps(4, 1), is_alarming=True)
    assert bins is not None
    assert bins.first.tolist() == [1, 2, 3, 4]
    assert log.before_alert() is None  # each stands by itself already


def test_a_killed_process_takes_along_no_more_than_is_promised() -> None:
    """What has been seen and is not written: on the device, on its way to the host, and waiting here."""
    assert 2 * HOME_EVERY + YOUNG_STEPS_TOGETHER <= 30
    for size in (1, 7, HOME_EVERY_LATER):
        log, waiting = StepLog(2), 0
        for first in range(YOUNG_STEPS, YOUNG_STEPS + 3000, size):
            log.add(steps(first, size))
            bins = log.waiting()
            waiting = max(waiting, 0 if bins is None else int(bins.count.sum()))
        assert waiting + 2 * HOME_EVERY_LATER <= 200


def test_a_spike_of_one_step_is_in_the_record_of_a_run_of_any_age() -> None:
    for first in (0, 20_000, 5 * 10**6):
        log = StepLog(2)
        sick = steps(first, 100)
        sick.norms[37] = [1e9, np.nan]
        log.add(sick)
        bins = log.take() if first else None
        if bins is not None:
            assert bins.high[:, 0].max() == np.float32(1e9)
            assert np.isnan(bins.high[:, 1]).sum() == 1
            assert (bins.low[:, 1] == 2).all()


def test_bins_grow_with_the_age_of_the_run_and_the_size_of_the_model() -> None:
    assert [bin_width(step, 200) for step in (0, 999, 1000, 9_999, 10**5, 10**7)] == [1, 1, 1, 10, 170, 170]
    assert [bin_width(5_000, layers) for layers in (1, 1_000, 10_000, 10**6)] == [5, 10, 90, 170]
    assert bin_width(999, 10**6) == 1
    assert bin_width(10**9, 10**6) == WIDTHS[-1] == BLOCK_STEPS


def test_a_large_model_costs_a_kilobyte_a_step() -> None:
    """10,000 layers, from the first thousand steps on."""
    log, size = StepLog(10_000), 0
    generator = np.random.default_rng(0)
    for first in range(YOUNG_STEPS, YOUNG_STEPS + 10 * BLOCK_STEPS, HOME_EVERY_LATER):
        norms = (10 ** generator.normal(-3, 0.5, (HOME_EVERY_LATER, 10_000))).astype(np.float32)
        at = np.arange(first, first + HOME_EVERY_LATER)
        bins = log.add(Steps(at, norms, np.zeros((HOME_EVERY_LATER, 2), np.float32)))
        size += 0 if bins is None else len(bins.encode())
    assert size / (10 * BLOCK_STEPS) < 1000


def test_the_steps_before_an_alert_are_written_one_by_one_where_bins_would_hide_them() -> None:
    log = StepLog(2)
    run(log, [15] * 100)
    assert log.before_alert() is None  # up to step 1,499 each is written by itself
    run(log, [15] * 100, first=50_000)
    found = log.before_alert()
    assert found is not None
    assert AROUND_STEPS <= len(found) < AROUND_STEPS + 15
    assert found.last[-1] == 51_499
    assert (found.first == found.last).all()
    assert log.before_alert() is None  # nothing has come since
    log.add(steps(51_500, 3))
    again = log.before_alert()
    assert again is not None
    assert again.first.tolist() == [51_500, 51_501, 51_502]


def test_how_often_that_is_done_is_bounded_for_large_models_more_so() -> None:
    for num_layers, most in ((2, MAX_WINDOWS), (10_000, 3)):
        log, num = StepLog(num_layers), 0
        for first in range(50_000, 51_000, 10):
            log.add(steps(first, 10, num_layers))
            num += log.before_alert() is not None
        assert num == most


def test_observations_of_one_step_are_one_bin() -> None:
    log = StepLog(1)
    same = Steps(np.array([3, 3, 3, 4]), np.array([[1], [5], [2], [9]], np.float32), np.zeros((4, 1), np.float32))
    bins = log.add(same)
    assert bins is not None
    assert (bins.first.tolist(), bins.count.tolist()) == ([3, 4], [3, 1])
    assert (bins.low[:, 0].tolist(), bins.high[:, 0].tolist()) == ([1, 9], [5, 9])


def test_what_waited_when_a_run_was_interrupted_comes_first() -> None:
    log = StepLog(2)
    log.add(steps(5_000, 33))
    saved = log.waiting()
    assert saved is not None
    resumed = StepLog(2, saved)
    bins = run(resumed, [160], first=5_033)[0]
    assert (bins.first[0], bins.last[-1], bins.count.sum()) == (5_000, 5_192, 193)
    assert resumed.waiting() is None


@pytest.mark.parametrize("num", [0, 5])
def test_a_run_without_layers_has_no_norms_of_them(num: int) -> None:
    log = StepLog(0)
    none = Steps(np.arange(num), np.zeros((num, 0), np.float32), np.zeros((num, 1), np.float32))
    assert log.add(none) is None
    assert log.take() is None
    assert log.before_alert() is None
