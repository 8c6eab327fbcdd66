"""An alert in lines."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradwatch.core import telling
from tests.builders import alert

LONG: dict[str, Any] = {
    "layer": "encoder.layers.11.attention.output.dense",
    "summary": "The early layers starve. " * 8,
    "evidence": "eleven sigmoids without normalisation pass on at most a quarter of the gradient each",
    "remedies": ("ReLU, GELU or SiLU with He initialisation " * 3, "normalisation layers before the sigmoids"),
}


@pytest.mark.parametrize("width", [44, 60, 80, 120])
def test_lines_fit_and_go_on_below_themselves(width: int) -> None:
    text = telling.as_text(alert(5, **LONG))
    lines = telling.fitted(text, width).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(lines).split() == text.split()  # no word is lost
    assert [line.split()[0] for line in lines if line[:7] in ("  What ", "  Why  ", "  Try  ")] == [
        "What",
        "Why",
        "Try",
    ]
    assert any(line.startswith("       2. normalisation") for line in lines)
    assert {len(line) - len(line.lstrip()) for line in lines} <= {0, 2, 7}


def test_each_sentence_is_a_line_that_stays_one() -> None:
    changed = {**LONG, "evidence": "two\nlines\x1b[2J"}
    assert len(telling.as_text(alert(5, **changed)).splitlines()) == 5


@pytest.mark.parametrize("width", [0, 1, 10])
def test_a_name_stays_in_one_piece_in_the_narrowest_window(width: int) -> None:
    assert str(LONG["layer"]) in telling.fitted(telling.as_text(alert(5, **LONG)), width)


def test_an_announcement_says_where_to_look() -> None:
    lines = telling.announcement(alert(5, **LONG), "gradwatch report logs").splitlines()
    assert lines[0] == f"GradWatch, vanishing: Gradients vanish with depth, since step 5, in {LONG['layer']}"
    assert lines[-1] == "  Look gradwatch report logs"


def test_a_kind_of_ones_own_is_named_once() -> None:
    lines = telling.announcement(alert(5, kind="stuffy", summary="It is stuffy."), "there").splitlines()
    assert lines == ["GradWatch, stuffy, since step 5, in net.0", "  What It is stuffy.", "  Look there"]


def test_the_width_is_that_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "57")
    assert telling.columns() == 57
