"""Which steps stand out of those before."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor

from lightning_gradwatch.core.spikes import LEAST, WINDOW, SpikeGuard, stands_out

ONE = [torch.zeros(3)]
NAN = torch.tensor(math.nan)


def numbers(count: int, seed: int = 0, scatter: float = 0.2) -> Tensor:
    """As norms and losses are: they scatter by factors."""
    return torch.exp(scatter * torch.randn(count, generator=torch.Generator().manual_seed(seed)))


def judged(guard: SpikeGuard, norm: float, loss: float = math.nan) -> bool:
    return bool(guard.judge(torch.tensor([norm, -1.0]), torch.tensor(loss)))


def fed(steps: int = WINDOW, sees_loss: bool = True) -> SpikeGuard:
    guard = SpikeGuard(ONE, sees_loss)
    for norm, loss in zip(numbers(steps).tolist(), numbers(steps, 1).tolist(), strict=True):
        assert not judged(guard, norm, loss)
    return guard


@pytest.mark.parametrize(
    ("norm", "loss", "expected"),
    [
        (1.0, 1.0, False), (50.0, 1.0, True), (1.0, 50.0, True), (1.0, math.inf, True), (1.0, math.nan, False),
        (1e15, math.nan, True), (1e-9, 1e-9, False), (0.0, 50.0, False),
        (math.nan, 50.0, False), (math.inf, 1.0, False),
    ],
)  # fmt: skip
def test_what_stands_out(norm: float, loss: float, expected: bool) -> None:
    guard = fed()
    before = guard.memory["seen"].clone()
    assert judged(guard, norm, loss) is expected
    assert int(guard.memory["num_skipped"]) == expected
    is_told = 0 < norm < math.inf
    assert torch.equal(guard.memory["seen"].nan_to_num(-1), before.nan_to_num(-1)) is not is_told


def test_nothing_is_judged_before_enough_is_known() -> None:
    assert not judged(fed(LEAST - 1), 1e9, 1e9)
    assert judged(fed(LEAST), 1e9)


def test_where_ranks_have_losses_of_their_own_the_loss_is_not_judged() -> None:
    guard = fed(sees_loss=False)
    assert not judged(guard, 1.0, 50.0)
    assert judged(guard, 50.0, 1.0)


def test_the_limit_is_six_robust_deviations_of_the_logarithm() -> None:
    seen = numbers(WINDOW).view(1, -1)
    logs = seen.log().double()
    middle = logs.quantile(0.5, interpolation="lower")
    deviation = 1.4826 * (logs - middle).abs().quantile(0.5, interpolation="lower")
    limit = float((middle + 6 * deviation).exp())
    assert not stands_out(torch.tensor([0.999 * limit]), seen)
    assert stands_out(torch.tensor([1.001 * limit]), seen)


def test_losses_that_may_be_negative_are_judged_as_they_are() -> None:
    seen = torch.randn(1, WINDOW, generator=torch.Generator().manual_seed(0))
    assert [bool(stands_out(torch.tensor([loss]), seen)) for loss in (-50.0, 0.0, 4.0, 8.0)] == [False] * 3 + [True]


@pytest.mark.parametrize(("level", "now"), [(1.0, 1.05), (-3.0, -2.9), (0.0, 1e-3)])
def test_where_nothing_scatters_a_small_rise_does_not_stand_out(level: float, now: float) -> None:
    assert not stands_out(torch.tensor([now]), torch.full((1, WINDOW), level))


def test_a_level_that_has_changed_for_good_is_soon_the_usual_one() -> None:
    guard = fed()
    found = [judged(guard, 100 * norm) for norm in numbers(WINDOW, 2).tolist()]
    assert all(found[:20])
    assert not any(found[LEAST:])


def test_a_burst_of_ten_is_found_whole() -> None:
    guard = fed()
    assert all(judged(guard, 1e6) for _ in range(10))
    assert not judged(guard, 1.0, 1.0)


def test_a_steady_rise_does_not_stand_out() -> None:
    guard = SpikeGuard(ONE, True)
    rising = torch.logspace(0, 3, 400) * numbers(400, scatter=0.05)
    assert not any(judged(guard, norm, norm) for norm in rising.tolist())


def test_it_goes_on_where_it_was_saved() -> None:
    first = fed(100)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = SpikeGuard(ONE, True)
    second.load_state_dict(torch.load(file, weights_only=True))
    for norm in [*numbers(100, 3).tolist(), 60.0, 1.0]:
        assert judged(first, norm, norm) == judged(second, norm, norm)
    assert all(torch.equal(first.memory[name], value) for name, value in second.memory.items())


@pytest.mark.parametrize("state", [{}, {"seen": torch.ones(3)}, {"seen": torch.ones(2, 9), "count": torch.ones(())}])
def test_what_is_not_its_state_is_left(state: dict[str, Tensor]) -> None:
    guard = fed(10)
    before = guard.state_dict()
    guard.load_state_dict(state)
    assert all(torch.equal(value.nan_to_num(-1), before[name].nan_to_num(-1)) for name, value in guard.memory.items())


def test_a_further_evaluation_of_a_step_is_not_remembered() -> None:
    guard = fed()
    before = guard.state_dict()
    with guard.without_memory():
        assert judged(guard, 1e9)
    assert all(torch.equal(value, before[name]) for name, value in guard.memory.items())


def test_no_number_is_needed_on_the_host() -> None:
    """On the meta device there are shapes only: to read a number is an error."""
    guard = SpikeGuard([torch.empty(3, device="meta")], True)
    assert guard.judge(torch.empty(2, device="meta"), torch.empty((), device="meta")).shape == ()
