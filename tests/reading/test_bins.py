"""Stretches of steps: what their norms become on the way into an event file and back."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from lightning_gradwatch import reading
from lightning_gradwatch.reading.bins import Bins, reduce_steps
from lightning_gradwatch.reading.schema import Array, UnreadableError

NORMS = st.one_of(
    st.floats(0, float(np.finfo(np.float32).max), width=32),
    st.sampled_from([-1.0, 0.0, float("nan"), float("inf"), 1e-45, 1e-12, 1.0]),
)
MATRICES = some.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=NORMS)


def lines_of(num_steps: int, *values: float) -> Array:
    return np.tile(np.array(values, np.float32), (num_steps, 1))


def of(norms: Array, width: int = 1, first: int = 0) -> Bins:
    return reduce_steps(np.arange(first, first + len(norms)), norms, lines_of(len(norms), 0.5), width)


def same(found: Array, expected: Array, precision: float) -> None:
    """Alike where they are numbers, and the same where they are none."""
    is_number = (expected > 0) & (expected < np.inf)
    np.testing.assert_array_equal(found[~is_number], expected[~is_number])
    np.testing.assert_allclose(np.log(found[is_number]), np.log(expected[is_number]), atol=precision)


@given(MATRICES)
def test_single_steps_come_back_as_they_were_to_0_15_percent(norms: Array) -> None:
    bins = of(norms)
    back = Bins.decode(bins.encode(), norms.shape[1], 1)
    same(back.low, norms, 1.5e-3)
    same(back.high, norms, 1.5e-3)
    assert back.first.tolist() == back.last.tolist() == list(range(len(norms)))
    assert back.count.tolist() == [1] * len(norms)
    assert (back.lines == 0.5).all()


@given(MATRICES, st.integers(2, 5))
def test_bins_of_several_steps_come_back_to_1_2_percent(norms: Array, width: int) -> None:
    bins = of(norms, width)
    back = Bins.decode(bins.encode(), norms.shape[1], 1)
    for name in ("low", "mean", "high"):
        same(getattr(back, name), getattr(bins, name), 1.2e-2)
    for name in ("first", "last", "count", "lines"):
        np.testing.assert_array_equal(getattr(back, name), getattr(bins, name))


@given(MATRICES, st.integers(2, 12))
def test_the_largest_norm_of_a_bin_is_that_of_its_steps(norms: Array, width: int) -> None:
    bins = of(norms, width)
    for place, start in enumerate(range(0, len(norms), width)):
        part = norms[start : start + width]
        np.testing.assert_array_equal(bins.high[place], part.max(0))  # NaN is larger than anything
        counted = np.where(np.isfinite(part) & (part >= 0), part, np.inf).min(0)
        is_there = np.isfinite(counted)
        np.testing.assert_array_equal(bins.low[place][is_there], counted[is_there])
        assert (bins.first[place], bins.last[place]) == (start, start + len(part) - 1)


def test_the_mean_is_that_of_the_logarithm_of_what_is_there() -> None:
    norms = np.array([[1, -1, 0, np.nan, 0], [100, 4, 4, 4, 0], [np.inf, 9, 9, 9, 0]], np.float32)
    assert of(norms, 3).mean[0].tolist() == pytest.approx([10, 6, 6, 6, 0])
    assert of(norms, 3).low[0].tolist() == [1, 4, 0, 4, 0]


@given(MATRICES, st.integers(1, 4), st.integers(1, 4))
def test_merging_in_two_goes_is_merging_in_one(norms: Array, width: int, factor: int) -> None:
    fine = of(norms, width)
    twice, once = fine.merged(np.arange(0, len(fine), factor)), of(norms, width * factor)
    for name in ("first", "last", "count", "low", "high"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(once, name))


def test_a_finite_steady_gradient_has_the_same_mean_however_it_is_merged() -> None:
    norms = np.geomspace(1e-6, 1e3, 24, dtype=np.float32).reshape(12, 2)
    np.testing.assert_allclose(of(norms, 3).merged(np.arange(0, 4, 2)).mean, of(norms, 6).mean, rtol=1e-6)


def test_lines_keep_their_ends_and_leave_out_what_is_not_known() -> None:
    lines = np.array([[1, np.nan], [3, np.nan], [np.nan, np.nan], [-5, np.nan]], np.float32)
    found = reduce_steps(np.arange(4), np.ones((4, 1), np.float32), lines, 2).lines
    np.testing.assert_allclose(found[:, 0], [[1, 2, 3], [-5, -5, -5]])
    assert np.isnan(found[:, 1]).all()


def test_observations_of_one_step_begin_once() -> None:
    bins = Bins.joined([of(np.ones((1, 1), np.float32), first=step) for step in (3, 3, 4, 4, 4, 7)])
    assert bins.starts().tolist() == [0, 2, 5]
    assert bins.merged(bins.starts()).count.tolist() == [2, 3, 1]
    resumed = Bins.joined([of(np.ones((4, 1), np.float32), 2), of(np.ones((4, 1), np.float32), 2, first=3)])
    assert resumed.starts().tolist() == [0, 1, 2, 3]  # what a resumed run writes anew stands by itself


def test_what_is_damaged_is_said() -> None:
    content = of(np.ones((6, 3), np.float32), 2).encode()
    for broken in (b"", b"nonsense", content[:-4], content[:5] + b"\0\0\0" + content[8:]):
        with pytest.raises(UnreadableError, match="A stretch of gradient norms is damaged"):
            Bins.decode(broken, 3, 1)
    with pytest.raises(UnreadableError, match="3 bins of 3 layers"):
        Bins.decode(content, 4, 1)
    head = np.frombuffer(zlib.decompress(content), np.uint8).copy()
    head[16:24] = 99  # the first step lies behind the last one
    with pytest.raises(UnreadableError, match="without any step"):
        Bins.decode(zlib.compress(head.tobytes()), 3, 1)


def test_a_block_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.bins, "_MAX_BYTES", 2**20)
    with pytest.raises(UnreadableError, match="larger than"):
        Bins.decode(zlib.compress(bytes(2**21)), 3, 1)


def test_a_run_that_goes_on_with_other_lines_keeps_its_norms() -> None:
    content = reduce_steps(np.arange(6), np.ones((6, 3), np.float32), lines_of(6, 1, 2, 3), 2).encode()
    fewer, more = Bins.decode(content, 3, 2), Bins.decode(content, 3, 4)
    np.testing.assert_allclose([fewer.high, more.high], 1, rtol=1e-2)
    assert fewer.lines[:, :, 1].tolist() == [[1, 2]] * 3
    np.testing.assert_array_equal(more.lines[:, :, 1], [[1, 2, 3, np.nan]] * 3)


@pytest.mark.parametrize("num", [1, 7, 400])
def test_the_number_of_bins_is_known_without_the_norms(num: int) -> None:
    norms, lines = np.ones((num, 3), np.float32), np.ones((num, 1), np.float32)
    assert Bins.number_in(Bins.of_steps(np.arange(num), norms, lines).encode()) == num
