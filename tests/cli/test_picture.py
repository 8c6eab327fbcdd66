"""The small matrix that stands for all samples: nothing that matters is lost in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.cli.picture import Scale, is_seen, paint
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM as NORM
from lightning_gradwatch.reading.bins import reduce_steps
from lightning_gradwatch.reading.folding import Row, fold
from lightning_gradwatch.reading.samples import Samples


def samples(values: np.ndarray, every: int = 10) -> Samples:
    return Samples(np.arange(len(values)) * every, values.astype(np.float32))


def rows(*names: str) -> list[Row]:
    return fold(names, np.ones(len(names)), most=8)


@given(
    num_samples=st.integers(1, 90),
    num_layers=st.integers(1, 40),
    columns=st.integers(1, 60),
    bad=st.sampled_from([np.nan, np.inf, 1e30]),
    data=st.data(),
)
def test_no_spike_and_no_nan_is_lost(
    num_samples: int, num_layers: int, columns: int, bad: float, data: st.DataObject
) -> None:
    values = np.full((num_samples, num_layers), 0.5)
    place = data.draw(st.integers(0, num_samples - 1)), data.draw(st.integers(0, num_layers - 1))
    values[place] = bad
    shared = rows(*(f"l{i}" for i in range(num_layers)))
    picture = paint(samples(values), shared, NORM, columns)
    row = next(i for i, found in enumerate(shared) if place[1] in found.layers)
    assert picture.names == tuple(found.path for found in shared)
    found = picture.values[row]
    assert (np.isnan(found) if np.isnan(bad) else found == np.float32(bad)).any()
    assert (np.delete(picture.values, row, axis=0) == 0.5).all()


def test_columns_are_equally_many_steps_wide_and_gaps_show_the_sample_before() -> None:
    sparse = Samples(np.array([0, 10, 90]), np.array([[1.0], [2.0], [3.0]], np.float32))
    assert paint(sparse, rows("a"), NORM, 10).values.tolist() == [[1, 2, 2, 2, 2, 2, 2, 2, 2, 3]]


def test_a_bin_is_as_wide_as_its_steps_and_its_spike_is_in_every_column_of_it() -> None:
    norms = np.ones((10, 1), np.float32)
    norms[7] = np.nan
    single = reduce_steps(np.arange(10), norms, norms, 1)
    picture = paint(Samples.of_norms(single.merged(np.array([0, 1, 2, 3, 4, 6]))), rows("a"), NORM, 10)
    np.testing.assert_array_equal(picture.values, [[1] * 6 + [np.nan] * 4])
    assert (picture.steps, picture.latest_steps) == ((0, 9), (6, 9))


def test_one_sample_fills_the_picture() -> None:
    picture = paint(samples(np.array([[1.0, 2.0]])), rows("a", "b"), NORM, 5)
    assert picture.values.tolist() == [[1] * 5, [2] * 5]
    assert picture.steps == (0, 0)


def test_a_scale_covers_the_values_in_whole_decades_and_six_at_least() -> None:
    assert Scale.of(np.array([1e-3, 0.5]), "log") == Scale("log", -6, 0)
    assert Scale.of(np.array([2e-18, 0.5, np.nan, np.inf, 0.0, -1.0]), "log") == Scale("log", -18, 0)
    assert Scale.of(np.array([0.0, -1.0]), "log") == Scale("log", -6, 0)
    assert Scale.of(np.array([0.2]), "fraction").ends == ("0 %", "100 %")
    assert Scale.of(np.array([0.2, np.nan, -1.0]), "linear").ends == ("0", "1")
    assert Scale.of(np.array([7.0, 12.0, np.inf]), "linear") == Scale("linear", 0, 12)


@pytest.mark.parametrize(("value", "place"), [(1.0, 1.0), (1e-3, 0.5), (1e-6, 0.0), (1e-9, 0.0), (1e9, 1.0)])
def test_a_place_lies_within_the_scale(value: float, place: float) -> None:
    assert Scale("log", -6, 0).position(value) == pytest.approx(place)


def test_nothing_observed_is_not_seen() -> None:
    assert not is_seen(np.array([[-1.0, -1.0]]))
    assert is_seen(np.array([[-1.0, np.nan]]))
