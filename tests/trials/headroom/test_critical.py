"""The critical multiple of functions whose root is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lightning_gradwatch.trials.headroom.critical import MAX_FORWARDS, critical_multiple

PRECISE = 1e-7


def counted(loss: Callable[[float], float], slope: float = -1.0) -> tuple[float, int]:
    seen: list[float] = []

    def loss_at(multiple: float) -> float:
        seen.append(multiple)
        return loss(multiple)

    return critical_multiple(loss_at, slope, PRECISE), len(seen)


@pytest.mark.parametrize("root", [0.08, 0.3, 0.9, 1.0, 1.1, 2.0, 4.0, 5.0, 10.0, 15.0, 16.0])
def test_of_a_parabola_it_is_exact(root: float) -> None:
    found, num_forwards = counted(lambda m: 3 - m + m * m / root)
    assert found == pytest.approx(root, rel=1e-4)
    assert num_forwards <= MAX_FORWARDS


@pytest.mark.parametrize("root", [0.1, 0.5, 1.5, 3.0, 7.0, 14.0])
@pytest.mark.parametrize("power", [3, 4])
def test_what_is_no_parabola_is_bracketed(root: float, power: int) -> None:
    found, num_forwards = counted(lambda m: 3 - m + m**power / root ** (power - 1))
    assert found == pytest.approx(root, rel=0.2)
    assert num_forwards <= MAX_FORWARDS


@pytest.mark.parametrize(
    ("loss", "slope", "expected"),
    [
        (lambda m: 3 - m + m * m / 40, -1.0, math.inf),
        (lambda m: 3 + m, 1.0, 0.0),
        (lambda m: 3 + m, -1.0, 0.0),  # as of a gradient that is not that of the loss
        (lambda _: 1.0, 0.0, math.nan),
        (lambda _: 1.0, -1e-9, math.nan),
        (lambda _: math.nan, -1.0, math.nan),
        (lambda m: 3 + m if m else math.inf, -1.0, math.nan),
        (lambda m: 3 - m, math.nan, math.nan),
    ],
)
def test_what_has_no_multiple(loss: Callable[[float], float], slope: float, expected: float) -> None:
    assert counted(loss, slope)[0] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("root", [0.05, 0.003, 2e-4])
@pytest.mark.parametrize("power", [2, 6])
def test_far_beyond_the_edge_it_is_found_where_nothing_but_the_slope_falls(root: float, power: int) -> None:
    found, num_forwards = counted(lambda m: 3 - m + m**power / root ** (power - 1))
    assert found == pytest.approx(root, rel=1e-3 if power == 2 else 2)
    assert num_forwards <= MAX_FORWARDS


def test_beyond_an_abyss_it_is_between_the_last_known_and_the_abyss() -> None:
    found, _ = counted(lambda m: 3 - m if m < 1.7 else math.nan)
    assert 1 < found < 2


def test_a_step_too_small_to_be_seen_is_measured_farther_out() -> None:
    assert math.isnan(counted(lambda m: 3 - 1e-8 * m + 1e-8 * m * m / 0.5, -1e-8)[0])
    assert counted(lambda m: 3 - 1e-6 * m + 1e-6 * m * m / 12, -1e-6)[0] == pytest.approx(12, rel=0.05)
