"""Inputs of layers are described by seven numbers, from a bounded part of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradwatch.core.inputs import MAX_ELEMENTS, MAX_HELD, MAX_UNITS, RAIL, InputFacts, describe, thin_rows
from lightning_gradwatch.core.samples import Inputs


def facts(given: Tensor, channels_first: bool = False) -> Inputs:
    return Inputs(*describe(given, channels_first).tolist())


def test_an_input_is_described_by_its_facts() -> None:
    given = torch.tensor([[0.0, -3.0, 0.96, 0.5], [0.0, 5.0, 0.0, 0.5]])
    seen = facts(given)
    assert (seen.low, seen.high) == (-3.0, 5.0)
    assert seen.std == pytest.approx(float(given.numpy().std()))
    assert seen.zeros == pytest.approx(3 / 8)
    assert seen.dead_units == pytest.approx(1 / 4)
    assert seen.beyond == pytest.approx(3 / 8)
    assert seen.below == pytest.approx(4 / 8)


def test_units_of_images_are_their_channels() -> None:
    images = torch.ones(2, 3, 4, 5)
    images[:, 1] = 0
    assert facts(images, channels_first=True).dead_units == pytest.approx(1 / 3)
    assert facts(images).dead_units == 0
    assert facts(images).zeros == pytest.approx(1 / 3)


def test_a_large_input_is_described_about_as_well_from_a_part_of_it() -> None:
    torch.manual_seed(0)
    given = torch.randn(5000, 64) * 7
    given[:, ::4] = 0
    seen = facts(given)
    assert seen.dead_units == seen.zeros == 0.25
    assert seen.std == pytest.approx(float(given.std()), rel=0.05)


def test_the_units_of_a_wide_input_are_judged_over_many_samples() -> None:
    torch.manual_seed(0)
    given = torch.rand(64, 8192)
    given[torch.rand_like(given) < 0.9] = 0
    truth = float((given == 0).all(0).float().mean())
    assert facts(given).dead_units == pytest.approx(truth, abs=0.05)


def test_half_precision_inputs_do_not_overflow_in_their_description() -> None:
    given = torch.tensor([[-60000.0, 60000.0]], dtype=torch.float16)
    assert facts(given).std == pytest.approx(60000.0, rel=1e-3)


def test_an_input_of_equal_elements_has_no_spread_however_large_they_are() -> None:
    assert facts(torch.full((4, 300), 1e6)).std == 0


@given(st.integers(1, 10**6), st.integers(1, 50_000))
def test_of_any_input_a_bounded_part_with_whole_units_is_taken(num_rows: int, num_units: int) -> None:
    given_rows = torch.empty(1, device="meta").expand(num_rows, num_units)
    rows = thin_rows(given_rows, channels_first=False)
    assert 1 <= rows.shape[0] <= num_rows
    assert 1 <= rows.shape[1] <= min(num_units, MAX_UNITS)
    assert rows.numel() <= MAX_ELEMENTS + MAX_UNITS
    assert rows.numel() >= min(num_rows * min(num_units, MAX_UNITS // 2), MAX_ELEMENTS // 4)


@pytest.mark.parametrize(
    ("shape", "channels_first", "rows"),
    [
        ((), False, (1, 1)),
        ((5,), True, (5, 1)),
        ((5, 3), True, (5, 3)),
        ((2, 3, 4), False, (6, 4)),
        ((2, 3, 4), True, (8, 3)),
        ((2, 3, 4, 5), True, (40, 3)),
    ],
)
def test_units_are_columns(shape: tuple[int, ...], channels_first: bool, rows: tuple[int, int]) -> None:
    assert thin_rows(torch.zeros(shape), channels_first).shape == rows


def some_inputs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"a": (6, 4), "b": (6, 4), "c": (2, 3, 4), "d": (7,), "e": (6, 4)}
    return {name: torch.randn(shape).relu() for name, shape in shapes.items()}


def test_inputs_that_are_described_together_are_described_as_if_alone() -> None:
    inputs, together = some_inputs(), InputFacts()
    for name, value in inputs.items():
        together.add(name, value, channels_first=False)
    assert together.get("z") is None
    for name, value in inputs.items():
        found = together.get(name)
        assert found is not None
        torch.testing.assert_close(found, describe(value, channels_first=False))


def test_the_latest_input_counts_as_it_was_then() -> None:
    value, together = torch.ones(3, 2), InputFacts()
    together.add("a", value - 5, channels_first=False)
    together.add("a", value, channels_first=False)
    value.zero_()
    found = together.get("a")
    assert found is not None
    assert Inputs(*found.tolist())[:2] == (1.0, 1.0)
    together.add("a", value, channels_first=False)
    latest = together.get("a")
    assert latest is not None
    assert Inputs(*latest.tolist()).zeros == 1.0


def test_what_waits_to_be_described_is_bounded() -> None:
    together, held = InputFacts(), []
    for i in range(40):
        together.add(f"layer {i}", torch.full((MAX_ELEMENTS // 8, 8), float(i)), channels_first=False)
        held.append(sum(rows.numel() for rows in together._held.values()))
    assert max(held) <= MAX_HELD
    assert min(held[1:]) < held[0]  # they were described on the way
    for i in range(40):
        found = together.get(f"layer {i}")
        assert found is not None
        assert found[0].item() == i


def test_a_rail_is_for_tanh_on_both_sides_and_for_sigmoid_near_zero() -> None:
    seen = facts(torch.tensor([[-RAIL - 0.01, RAIL + 0.01, 0.5, 0.01]]))
    assert seen.beyond == 0.5
    assert seen.below == 0.5
