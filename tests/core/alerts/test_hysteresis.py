from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.alerts.hysteresis import Hysteresis
from lightning_gradwatch.core.records import Finding
from tests.core.builders import saved_and_loaded


def test_an_alert_waits_opens_holds_and_ends() -> None:
    hysteresis = Hysteresis("stalled", 2.0, persistence=2)
    values = [2.0, 1.0, 2.0, 2.0, 1.6, 1.4, 1.6, 1.4, 1.4, 0.0]
    changes = [(step, hysteresis.judge(step, value)) for step, value in enumerate(values)]
    assert [step for step, change in changes if change is not None] == [3, 8]
    assert changes[3][1] == Finding("stalled", "alert", 3, None, (), 2.0, 2.0)
    assert changes[8][1] == Finding("stalled", "alert", 3, 6, (), 2.0, 2.0)
    assert hysteresis.finding is None


def test_a_notice_rises_to_an_alert_once() -> None:
    hysteresis = Hysteresis("dead", 1.0)
    levels: list[Any] = ["notice", "notice", "alert", "alert", "notice"]
    changes = [hysteresis.judge(step, 1.0 + step, (), level) for step, level in enumerate(levels)]
    assert [None if c is None else (c.level, c.step, c.value) for c in changes] == [
        ("notice", 0, 1.0),
        None,
        ("alert", 0, 3.0),
        None,
        None,
    ]


@given(st.lists(st.sampled_from([0.0, 0.7, 0.8, 1.0, 3.0]), max_size=30), st.integers(0, 30))
def test_it_goes_on_after_a_checkpoint(values: list[float], cut: int) -> None:
    def make() -> Hysteresis:
        return Hysteresis("exploding", 1.0, persistence=2)

    one, other = make(), make()
    for step, value in enumerate(values):
        if step == cut:
            other.load_state_dict(saved_and_loaded(one.state_dict()))
        change = one.judge(step, value, ("a", "b"))
        assert step < cut or other.judge(step, value, ("a", "b")) == change


def test_what_needs_more_values_to_open_is_in_doubt_until_then() -> None:
    hysteresis = Hysteresis("dead", 1.0, persistence=3)
    seen = []
    for step, value in enumerate([0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]):
        hysteresis.judge(step, value)
        seen.append(hysteresis.is_in_doubt)
    assert seen == [False, True, True, False, False, False, False, False, True, False]
