"""Figures per layer: sums, shares and orders, each against a plain loop over the layers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradwatch.core import figures
from lightning_gradwatch.core.figures import (
    Arrangement,
    LayerFigures,
    combine,
    complement,
    moment_figures,
    per_layer,
    update_figures,
)
from lightning_gradwatch.core.records import MISSING, Layer

NUM_LAYERS = 4
NORMS = st.sampled_from([MISSING, math.nan, math.inf]) | st.floats(0, 2.0**20, width=32)


def test_values_of_parameters_that_are_not_reported_are_in_no_layer() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    assert per_layer(values, torch.tensor([1, 2, 1, 0]), 2).tolist() == [[8.0, 5.0]]


def test_sums_of_squares_leave_the_range_of_float32_unharmed() -> None:
    rows = torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])
    assert combine(rows, torch.tensor([0, 0]), 1)[:, 0].tolist() == pytest.approx([5e30, 5e-30])


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20), st.data())
def test_layers_partition_the_total(values: list[float], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    total, *layers = combine(torch.tensor([values]), torch.tensor(index), 4)[0].tolist()
    assert total == pytest.approx(math.hypot(*values), rel=1e-5)
    for i, layer in enumerate(layers):
        own = [v for v, j in zip(values, index, strict=True) if i == j]
        assert layer == pytest.approx(math.hypot(*own) if own else MISSING, rel=1e-5)


@given(rows=st.lists(st.lists(NORMS, min_size=5, max_size=5), max_size=3), data=st.data())
def test_the_quick_way_to_norms_per_layer_leads_to_the_same(rows: list[list[float]], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, NUM_LAYERS), min_size=5, max_size=5))
    norms = torch.tensor(rows).view(-1, 5)
    of_layers = LayerFigures(index, NUM_LAYERS, [1] * 5, [])
    torch.testing.assert_close(
        of_layers.norms(norms), combine(norms, torch.tensor(index), NUM_LAYERS), equal_nan=True, rtol=1e-6, atol=0
    )


def test_with_more_layers_than_a_table_holds_norms_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[3.0, 4.0, 12.0], [1.0, 0.0, 2.0]])
    quick = LayerFigures([1, 1, 0], 3, [1, 1, 1], []).norms(rows)
    monkeypatch.setattr(figures, "_MAX_TABLE", 8)
    assert torch.equal(LayerFigures([1, 1, 0], 3, [1, 1, 1], []).norms(rows), quick)
    assert quick[0].tolist() == [13.0, 12.0, 5.0, MISSING]


def test_the_highest_value_of_a_layer_is_none_below_zero() -> None:
    of_layers = LayerFigures([0, 0, 2, 3, 4], 4, [1] * 5, [])
    values = torch.tensor([1.0, 7.0, -1.0, 0.5, 99.0])  # the last is of no layer that is reported
    assert of_layers.highest(values).tolist() == [7.0, MISSING, 0.0, 0.5]


def test_the_gain_of_a_matrix_is_that_of_its_initialisation() -> None:
    torch.manual_seed(0)
    weight = nn.init.kaiming_normal_(torch.empty(300, 500), nonlinearity="relu")
    of_layers = LayerFigures([0, 0, 1, 3], 3, [weight.numel(), 300, 12, 8], [500, 0, 4, 2])
    gains = of_layers.gains(torch.tensor([float(weight.norm()), 5.0, MISSING, 1.0]))
    assert gains.tolist() == pytest.approx([math.sqrt(2), MISSING, MISSING], rel=0.01)


def test_the_share_of_zeros_is_over_the_gradients_there_are() -> None:
    of_layers = LayerFigures([0, 0, 1, 2], 4, [10, 30, 7, 5], [])
    shares = of_layers.zero_fractions(torch.tensor([4.0, MISSING, MISSING, 0.0]))
    assert shares.tolist() == pytest.approx([0.6, MISSING, 1.0, MISSING])


def layers() -> list[Layer]:
    return [Layer(name, (f"{name}.weight",)) for name in "abc"]


def test_an_arrangement_brings_rows_and_columns_into_the_order_of_its_layers() -> None:
    arrangement = Arrangement(layers(), [2, 0])
    assert [layer.name for layer in arrangement.layers] == ["c", "a"]
    assert len(arrangement) == 2
    assert arrangement.rows(torch.tensor([[1], [2], [3]])).tolist() == [[3], [1]]
    assert arrangement.columns(torch.tensor([[9, 1, 2, 3], [8, 4, 5, 6]])).tolist() == [[9, 3, 1], [8, 6, 4]]


def test_an_arrangement_as_registered_copies_nothing() -> None:
    arrangement, values = Arrangement(layers(), [0, 1, 2]), torch.arange(3.0)
    assert arrangement.rows(values) is values
    assert arrangement.columns(values) is values


def test_the_other_part_of_what_is_unknown_is_unknown() -> None:
    assert complement(torch.tensor([0.0, 0.25, 1.0, MISSING])).tolist() == [1.0, 0.75, 0.0, MISSING]


@pytest.mark.parametrize(
    ("sums", "ratio", "share"),
    [
        ([0.04, 4.0, 8.0, 2.0], 0.1, 0.25),  # moved by a tenth, two of eight elements stuck
        ([0.04, 0.0, 8.0, 8.0], MISSING, 1.0),  # weights of zero have no relative change
        ([0.0, 4.0, 0.0, 0.0], 0.0, MISSING),  # nothing was pushed
    ],
)
def test_an_update_without_a_measure_is_unknown(sums: list[float], ratio: float, share: float) -> None:
    found = torch.stack(update_figures(torch.tensor(sums)[:, None]))
    assert found.flatten().tolist() == pytest.approx([ratio, share])


def test_moments_that_are_not_there_are_unknown() -> None:
    sums: Tensor = torch.tensor([[4.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    below, signal = moment_figures(sums)
    assert below.tolist() == [0.25, MISSING]
    assert signal.tolist() == [0.5, MISSING]
