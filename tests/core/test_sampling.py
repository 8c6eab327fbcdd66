from __future__ import annotations

import itertools

import pytest

from lightning_gradwatch.core.sampling import (
    BURST_PAUSE,
    BURST_STEPS,
    SEEKING_EVERY,
    THOROUGH_EVERY,
    YOUNG_STEPS,
    Sampling,
)
from lightning_gradwatch.core.saved import Saved
from lightning_gradwatch.core.schedule import Schedule


def run(sampling: Sampling, num_steps: int) -> list[int]:
    """The steps that are sampled."""
    sampled = []
    for _ in range(num_steps):
        if sampling.falls_on(sampling.num_steps):
            sampled.append(sampling.num_steps)
            sampling.num_samples += 1
        sampling.num_steps += 1
    return sampled


def test_the_first_step_is_looked_at_even_without_a_dense_start() -> None:
    sampling = Sampling(Schedule(0, 1000))
    assert sampling.is_due()
    sampling.num_steps = 1
    assert not sampling.is_due()


def test_steps_ahead_count_where_one_batch_makes_several() -> None:
    sampling = Sampling(Schedule(0, 1000))
    (due,) = run(Sampling(Schedule(0, 1000)), 1000)
    sampling.num_steps = due - 2
    assert not sampling.is_due(steps_ahead=1)
    assert sampling.is_due(steps_ahead=2)


def test_the_first_and_every_fifth_sample_is_thorough() -> None:
    sampling, thorough = Sampling(Schedule(100, 1)), []
    for _ in range(12):
        thorough.append(sampling.is_thorough)
        sampling.num_samples += 1
    assert [i for i, is_thorough in enumerate(thorough) if is_thorough] == [
        0,
        THOROUGH_EVERY - 1,
        2 * THOROUGH_EVERY - 1,
    ]


def seeking(sampling: Sampling, num_samples: int) -> list[int]:
    found = []
    for number in range(sampling.num_samples, sampling.num_samples + num_samples):
        if sampling.seeks_causes:
            found.append(number)
        sampling.num_samples += 1
    return found


def test_causes_are_sought_at_once_and_then_by_every_fifth_thorough_sample() -> None:
    assert seeking(Sampling(Schedule(100, 1)), 80) == [
        0,
        THOROUGH_EVERY - 1,
        *(SEEKING_EVERY * i - 1 for i in (1, 2, 3)),
    ]


def test_causes_are_sought_whenever_something_looks_wrong() -> None:
    sampling = Sampling(Schedule(0, 10))
    sampling.num_steps, sampling.num_samples = 1000, 6 * THOROUGH_EVERY
    assert not sampling.seeks_causes
    sampling.look_closer()
    assert sampling.seeks_causes


def test_a_burst_is_thorough_and_has_a_pause_after_it() -> None:
    sampling = Sampling(Schedule(0, 10**6))
    sampling.num_steps, sampling.num_samples = 100, 2
    sampling.look_closer()
    assert run(sampling, BURST_STEPS + 3) == [100 + i for i in range(BURST_STEPS)]
    sampling.look_closer()
    assert not sampling.falls_on(sampling.num_steps)
    sampling.num_steps = 100 + BURST_STEPS + BURST_PAUSE
    sampling.look_closer()
    assert sampling.falls_on(sampling.num_steps)
    assert sampling.is_thorough


def test_thinning_takes_samples_farther_apart() -> None:
    plain, thinned = Sampling(Schedule(0, 10)), Sampling(Schedule(0, 10))
    thinned.thinning = 8
    assert len(run(plain, 800)) == 80
    assert len(run(thinned, 800)) == 10


def histograms(every: int, num_layers: int, steps: range) -> list[int]:
    """At which of these steps, each of them a thorough sample, there is a histogram."""
    sampling, found = Sampling(Schedule()), []
    for step in steps:
        sampling.num_steps = step
        if sampling.takes_histogram(every, num_layers):
            found.append(step)
    assert sampling.num_histograms == len(found)
    return found


def test_histograms_lie_farther_apart_as_the_run_grows_and_in_large_models() -> None:
    young = histograms(10, 200, range(0, YOUNG_STEPS, 5))
    assert young[:4] == [0, 10, 20, 30]
    distances = [b - a for a, b in itertools.pairwise(histograms(10, 200, range(0, 10**6, 50)))]
    assert distances == sorted(distances)
    assert distances[0] == 50
    assert distances[-1] > 20_000
    assert len(distances) < 250
    assert histograms(10, 10_000, range(YOUNG_STEPS, 12_000, 50)) == [1000, 6000, 11_000]
    assert histograms(0, 1, range(10)) == []


def test_norms_are_brought_home_early_in_a_young_run() -> None:
    sampling = Sampling(Schedule())
    assert sampling.steps_to_home == 10
    sampling.num_steps = YOUNG_STEPS
    assert sampling.steps_to_home == 15


@pytest.mark.parametrize("damage", [{}, {"num_steps": -1, "thinning": 0, "burst_until": "soon"}])
def test_it_goes_on_where_it_was_and_starts_afresh_what_is_damaged(damage: dict[str, object]) -> None:
    sampling = Sampling(Schedule(5, 10))
    sampling.thinning = 2
    run(sampling, 37)
    sampling.look_closer()
    resumed, saved = Sampling(Schedule(5, 10)), Saved({**sampling.state_dict(), **damage})
    resumed.load_state_dict(saved)
    assert sorted(saved.lost) == sorted(damage)
    if not damage:
        assert run(resumed, 100) == run(sampling, 100)
    else:
        assert (resumed.num_steps, resumed.thinning, resumed.num_samples) == (0, 1, sampling.num_samples)
