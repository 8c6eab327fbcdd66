"""Samples of single steps and of stretches: which are meant, and how neighbours share a column."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.reading.bins import Bins, reduce_steps
from lightning_gradwatch.reading.samples import Samples


def stretches(*widths: int) -> Samples:
    """One layer whose norm is the step and 1; as wide as these, one after the other."""
    steps = np.arange(sum(widths))
    norms = (steps[:, None] + 1).astype(np.float32)
    single = reduce_steps(steps, norms, norms, 1)
    return Samples.of_norms(single.merged(np.cumsum([0, *widths[:-1]])))


def test_the_sample_of_a_step_is_that_whose_steps_hold_it() -> None:
    samples = stretches(1, 1, 4, 10)
    assert [samples.place(step) for step in (-1, 0, 1, 2, 5, 6, 15, 99)] == [0, 0, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("first", "last", "found"),
    [(None, None, [0, 1, 2, 6]), (3, 7, [2, 6]), (5, 5, [2]), (16, None, []), (None, -1, []), (6, 3, [])],
)
def test_a_span_holds_every_sample_that_reaches_into_it(first: int | None, last: int | None, found: list[int]) -> None:
    part = stretches(1, 1, 4, 10).between(first, last)
    assert part.steps.tolist() == found
    assert len(part.last_steps) == len(part.counts) == len(part.values) == len(found)


def test_columns_are_equally_many_steps_wide_and_a_wide_sample_has_its_own() -> None:
    samples = stretches(*[1] * 20, 20, 20, 20)
    assert samples.columns(4).tolist() == [0, 20, 21, 22]
    assert samples.columns(8).tolist() == [0, 10, 20, 21, 22]
    assert samples.columns(23).tolist() == list(range(23))
    assert stretches(5).columns(1).tolist() == [0]


@given(
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    most=st.integers(1, 50),
    gaps=st.lists(st.integers(0, 100), min_size=40, max_size=40),
)
def test_there_are_never_more_columns_than_wanted_and_each_has_its_statistics(
    widths: list[int], most: int, gaps: list[int]
) -> None:
    samples = stretches(*widths)
    away = np.cumsum(gaps)[: len(widths)]
    bins = samples.bins
    assert bins is not None
    samples = Samples.of_norms(
        Bins(bins.first + away, bins.last + away, bins.count, bins.low, bins.mean, bins.high, bins.lines)
    )
    starts = samples.columns(most)
    assert 1 <= len(starts) <= most
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    edges = [*starts.tolist(), len(widths)]
    ends = np.cumsum([0, *widths])[edges]
    low, mean, high = (samples.merged(starts, name)[:, 0] for name in ("low", "mean", "high"))
    assert low.tolist() == (ends[:-1] + 1).tolist()
    assert high.tolist() == ends[1:].tolist()
    for start, end, middle in zip(ends, ends[1:], mean, strict=False):
        assert middle == pytest.approx(np.exp(np.log(np.arange(start, end) + 1).mean()), rel=1e-5)


def test_nan_is_larger_than_anything_however_samples_are_kept() -> None:
    values = np.array([[1, 2], [np.nan, 5], [3, np.inf]], np.float32)
    plain = Samples(np.arange(3), values)
    binned = Samples.of_norms(reduce_steps(np.arange(3), values, values[:, :1], 1))
    for samples in (plain, binned):
        np.testing.assert_array_equal(samples.merged(np.array([0])), [[np.nan, np.inf]])
        np.testing.assert_array_equal(samples.merged(np.array([0, 2])), [[np.nan, 5], [3, np.inf]])


def test_a_number_of_the_run_is_known_without_its_norms() -> None:
    bins = stretches(1, 4).bins
    assert bins is not None
    line = Samples.of_line(bins, 0)
    assert line.values.tolist() == [1, 3.5]
    assert line.num_bytes < bins.num_bytes
