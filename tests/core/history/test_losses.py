from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.history.losses import LossHistory
from tests.core.builders import losses_of, saved_and_loaded


def test_a_loss_is_judged_flat_only_after_sixty_steps() -> None:
    assert not losses_of(*[1.0] * 59).is_flat
    assert losses_of(*[1.0] * 60).is_flat
    assert losses_of(*[1.0] * 60).has_not_improved
    assert not losses_of(*[1.0] * 59).has_not_improved


def test_a_loss_that_fell_and_then_stopped_is_flat_and_has_improved() -> None:
    seen = losses_of(*[5.0] * 30, *[1.0] * 60)
    assert seen.is_flat
    assert not seen.has_not_improved
    assert seen.has_learned
    assert not losses_of(*[5.0] * 30, *[4.0] * 60).has_learned


def test_a_loss_that_falls_is_not_flat() -> None:
    seen = losses_of(*[1.0 - 0.01 * i for i in range(80)])
    assert seen.is_falling
    assert not seen.is_flat
    assert seen.lower_share == 1.0
    assert not losses_of(*[1.0 + 0.01 * i for i in range(80)]).is_falling


def test_unknown_and_nonfinite_losses_do_not_count() -> None:
    seen = losses_of(None, 1.0, math.nan, 2.0, math.inf, None)
    assert seen.num_steps == 2
    assert (seen.first, seen.start, seen.now) == (1.0, 1.5, 1.5)
    empty = losses_of()
    assert (empty.is_flat, empty.is_falling, empty.has_not_improved, empty.has_learned) == (False,) * 4


@given(
    st.lists(st.integers(-100, 100), min_size=1, max_size=90),
    st.integers(-1000, 1000),
    st.sampled_from([0.25, 1.0, 1024.0]),
)
def test_verdicts_on_the_loss_do_not_depend_on_its_offset_and_scale(
    losses: list[int], shift: int, scale: float
) -> None:
    def verdicts(seen: LossHistory) -> tuple[object, ...]:
        return seen.is_flat, seen.is_falling, seen.has_not_improved, seen.lower_share

    assert verdicts(losses_of(*losses)) == verdicts(losses_of(*[scale * loss + shift for loss in losses]))


@given(st.lists(st.floats(-10, 10), max_size=150), st.integers(1, 40))
def test_losses_come_to_the_same_in_one_piece_or_many(losses: list[float], size: int) -> None:
    whole, parts = losses_of(*losses), LossHistory()
    for i in range(0, len(losses), size):
        parts.add(losses[i : i + size])
        loaded = LossHistory()
        loaded.load_state_dict(saved_and_loaded(parts.state_dict()))
        parts = loaded
    assert parts.state_dict() == whole.state_dict()


def test_a_loss_tells_nothing_of_other_layers_before_it_could_be_called_flat() -> None:
    assert losses_of(*[1.0] * 19).concern_regardless is None
    assert losses_of(*[10 * 0.9**i for i in range(59)]).concern_regardless == "notice"
    assert losses_of(*[10 * 0.9**i for i in range(60)]).concern_regardless == "alert"


def test_a_loss_is_a_concern_when_flat_and_worth_a_notice_before_it_has_begun_to_fall() -> None:
    assert losses_of(*[1.0] * 10).concern is None
    assert losses_of(*[1.0] * 30).concern == "notice"
    assert losses_of(*[1.0] * 60).concern == "alert"
    assert losses_of(*[10 * 0.97**i for i in range(30)]).concern is None
    assert losses_of(*[10.0] * 10, *[0.1] * 90).concern is None


def test_roughness_is_the_usual_change_relative_to_the_size() -> None:
    assert losses_of(*[1.0] * 29).roughness is None
    assert losses_of(*[2.0, 2.2] * 15).roughness == pytest.approx(0.2 / 2.1)
    assert losses_of(*[5.0] * 40).roughness == 0.0
    assert losses_of(*[0.0] * 40).roughness is None


def test_patience_lasts_only_while_the_loss_is_falling_still() -> None:
    falling, flat, fallen = LossHistory(), LossHistory(), LossHistory()
    falling.add([10 * 0.99**i for i in range(100)])
    flat.add([1.0 + 0.1 * (i % 3) for i in range(100)])
    fallen.add([5.0] * 10 + [1.0 + 0.1 * (i % 3) for i in range(90)])
    assert (falling.patience, flat.patience, fallen.patience) == (1.5, 1.0, 1.25)


def test_a_loss_is_done_when_a_ten_thousandth_is_left_or_nothing() -> None:
    assert losses_of(*[1.0] * 10, *[1e-4] * 10).is_done
    assert not losses_of(*[1.0] * 10, *[2e-4] * 10).is_done
    assert losses_of(*[0.0] * 10).is_done
    assert not losses_of(*[-1.0] * 10, *[-50.0] * 10).is_done  # a likelihood has no zero
    assert not losses_of().is_done


def test_a_loss_is_still_when_200_steps_have_not_moved_it_by_a_thousandth() -> None:
    assert losses_of(*[-1e6 - step for step in range(200)]).is_still
    assert not losses_of(*[-1e6 - step for step in range(199)]).is_still
    assert not losses_of(*[-1e3 - step for step in range(200)]).is_still
