"""How a run is called, and which scalar is taken for its loss."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.status import SILENT_AFTER_S, judge, loss_tag, state_of, urgency
from tests.builders import alert, as_logged


def told(step: int = 9, until: int | None = None, **changes: Any) -> AlertRecord:
    """An alert of the whole run, as a log holds it."""
    return as_logged(alert(step, until, **{"layer": "", **changes}))


@pytest.mark.parametrize(
    ("alerts", "verdict"),
    [
        ([], ("healthy", "No alert up to step 50.", 0)),
        ([told()], ("sick", "Gradients vanish with depth since step 9.", 1)),
        ([told(layer="net.0")], ("sick", "Gradients vanish with depth since step 9, in net.0.", 1)),
        ([told(optimizer="SGD")], ("sick", "Gradients vanish with depth since step 9, with SGD.", 1)),
        ([told(level="notice")], ("notice", "Gradients vanish with depth since step 9.", 1)),
        (
            [told(kind="stalled", level="notice"), told(20, kind="dead")],
            ("sick", "Layers without any gradient since step 20, and 1 more.", 2),
        ),
        ([told(until=12)], ("recovered", "Gradients vanish with depth until step 12; well since.", 0)),
        (
            [told(5, 40, kind="nonfinite"), told(until=12)],
            ("recovered", "NaN or infinite values until step 40; well since.", 0),
        ),
        ([told(until=12), told(30, kind="exploding")], ("sick", "Gradients explode since step 30.", 1)),
        ([told(kind="of_the_future")], ("sick", "of_the_future since step 9.", 1)),
    ],
)
def test_a_run_is_called_by_its_alerts(alerts: list[AlertRecord], verdict: tuple[str, str, int]) -> None:
    assert judge(alerts, True, "", 50) == verdict


def test_open_alerts_come_first_and_the_latest_of_the_others() -> None:
    alerts = [told(1, 2), told(3, 9), told(7, level="notice"), told(8), told()]
    assert [one["step"] for one in sorted(alerts, key=urgency)] == [8, 9, 7, 3, 1]


def test_a_run_that_is_not_watched_is_not_called_healthy() -> None:
    assert judge(None, False, "", 50).status == "not_watched"
    assert judge(None, False, "", None).status == "not_watched"


def test_a_run_whose_alerts_are_missing_or_damaged_is_not_called_healthy() -> None:
    assert judge(None, True, "", 50) == ("unreadable", "The document of this run's alerts is missing.", 0)
    assert judge(None, True, "It is torn.", 50) == ("unreadable", "It is torn.", 0)
    assert judge([], True, "A series is torn.", 50) == ("unreadable", "A series is torn.", 0)


def test_an_open_alert_weighs_more_than_a_damaged_series() -> None:
    assert judge([told()], True, "A series is torn.", 50).status == "sick"


def test_a_run_without_a_step_is_healthy_so_far() -> None:
    assert judge([], True, "", None) == ("healthy", "No alert.", 0)


@pytest.mark.parametrize(
    ("tags", "loss"),
    [
        ([], None),
        (["accuracy", "lr-Adam"], None),
        (["loss"], "loss"),
        (["val_loss", "train_loss"], "train_loss"),
        (["val_loss", "loss"], "loss"),
        (["val/loss", "train/loss_epoch", "train/loss_step"], "train/loss_step"),
        (["loss_epoch", "loss_step"], "loss_step"),
        (["g_loss", "d_loss"], "d_loss"),
        (["train/reconstruction_loss", "train/loss"], "train/loss"),
        (["Training Loss", "Validation Loss"], "Training Loss"),
        (["validation_loss"], "validation_loss"),
        (["glossary", "lossless"], None),
        (["gradwatch/loss_lower_share", "gradwatch/loss_roughness"], None),
        (["grad_norm/loss", "accuracy"], None),
        (["trainable/aux_loss", "train_loss"], "train_loss"),
    ],
)
def test_the_loss_is_found_by_its_name_whatever_the_order(tags: list[str], loss: str | None) -> None:
    for seed in range(5):
        assert loss_tag(random.Random(seed).sample(tags, len(tags))) == loss


@pytest.mark.parametrize(
    ("end", "age", "state"),
    [
        ("end", 0.0, ("ended", "ended")),
        ("end", 1e6, ("ended", "ended")),
        ("KeyboardInterrupt", 0.0, ("ended", "ended by KeyboardInterrupt")),
        ("ValueError", 0.0, ("crashed", "crashed with ValueError")),
        ("", 0.0, ("live", "live")),
        ("", SILENT_AFTER_S - 1, ("live", "live")),
        ("", SILENT_AFTER_S + 1, ("silent", "stopped without a word")),
        (None, 0.0, ("live", "live")),
        (None, SILENT_AFTER_S + 1, ("unknown", "not live")),
        ("", -100.0, ("live", "live")),
    ],
)
def test_whether_a_run_goes_on(end: str | None, age: float, state: tuple[str, str]) -> None:
    assert state_of(end, 1e9, 1e9 + age) == state
