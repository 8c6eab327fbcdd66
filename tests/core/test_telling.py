"""An alert in lines."""

from __future__ import annotations

import pytest

from lightning_gradwatch.core import telling
from tests.builders import alert

LONG = {
    "layer": "encoder.layers.11.attention.output.dense",
    "summary": "The early layers starve. " * 8,
    "evidence": "eleven sigmoids without normalisation pass on at most a quarter of the gradient each",
    "remedies": ("ReLU, GELU or SiLU with He initialisation " * 3, "normalisation layers before the sigmoids"),
}


@pytest.mark.parametrize("width", [44, 60, 80, 120])
def test_lines_fit_and_go_on_below_themselves(width: int) -> None:
    text = telling.as_text(alert(5, **LONG), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(text.split()) == " ".join(telling.as_text(alert(5, **LONG)).split())  # no word is lost
    assert [line[2:6].strip() for line in lines if line[2:3].strip() and line[6:7] == " "].count("What") == 1
    assert any(line.startswith("       2. normalisation") for line in lines)


def test_without_a_width_each_sentence_is_a_line() -> None:
    assert len(telling.as_text(alert(5, **LONG)).splitlines()) == 5


@pytest.mark.parametrize("width", [0, 1, 10])
def test_a_name_stays_in_one_piece_in_the_narrowest_window(width: int) -> None:
    assert LONG["layer"] in telling.as_text(alert(5, **LONG), width)


def test_the_width_is_that_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "57")
    assert telling.columns() == 57
