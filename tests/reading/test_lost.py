"""Where a gradient is lost, read from a log: what is damaged is left out, and never fails."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_gradwatch.reading.lost import lost_of
from tests.builders import alert, as_logged, attribution


def read(found: Any) -> Any:
    return lost_of(as_logged(alert(), attribution=found))


def test_it_is_read_with_the_largest_parts_told_apart() -> None:
    found = read(attribution())
    assert found["title"] == "Where 3.0 orders of magnitude are lost between the loss and net.0"
    assert [part["group"] for part in found["parts"]] == ["sigmoid", "weights", "softmax", "others"]
    assert found["parts"][-1]["lost"] == pytest.approx(-0.5)
    assert found["stages"][0] == {"layer": "net.4", "lost": {"sigmoid": 1.5, "weights": 0.6, "others": -0.3}}


@pytest.mark.parametrize(
    "damaged",
    [
        None, 3, "text", [], {}, {**attribution(), "shares": None}, {**attribution(), "shares": "text"},
        {**attribution(), "lost": "much"}, {**attribution(), "lost": -1.0}, {**attribution(), "lost": True},
        {**attribution(), "layer": 3}, {**attribution(), "shares": [3, {"group": 1}, {"group": "a", "label": "b"}]},
    ],
    ids=range(12),
)  # fmt: skip
def test_what_cannot_be_drawn_is_not(damaged: Any) -> None:
    assert read(damaged) is None


def test_a_damaged_part_costs_that_part() -> None:
    found = attribution()
    found["shares"][0]["lost"] = math.nan
    found["stages"] = [
        {"layer": 3},
        "text",
        {"layer": "net.2", "lost": {"weights": "much", "sigmoid": 1.0}},
        *[3] * 500,
    ]
    shown = read(found)
    assert [part["group"] for part in shown["parts"]] == ["weights", "softmax", "normalisation", "others"]
    assert shown["stages"] == [{"layer": "net.2", "lost": {"weights": 0.0, "others": 1.0}}]
    assert read({**attribution(), "stages": None})["stages"] == []


def test_an_alert_of_an_older_version_has_none() -> None:
    record = as_logged(alert())
    del record["attribution"]
    assert lost_of(record) is None
