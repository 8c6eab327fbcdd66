"""Where NaN was born, read from a log: what is damaged is left out, and never fails."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradwatch.reading.born import born_of
from tests.builders import alert, as_logged, birth


def read(found: Any) -> Any:
    return born_of(as_logged(alert(), birth=found))


def test_it_is_read_with_the_stages_of_a_step() -> None:
    found = read(birth())
    assert found["stages"][found["at"]] == "forward pass"
    assert (found["module"], found["code"]) == ("net.spread", "return x / y")
    assert (found["file"], found["line"]) == ("mynet.py", 6)
    assert found["samples"] == "sample 27"


@pytest.mark.parametrize(
    ("samples", "words"),
    [([], ""), ([1, 2], "samples 1, 2"), (list(range(10)), "samples 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"), ("12", "")],
)
def test_samples_are_few_words(samples: Any, words: str) -> None:
    assert read({**birth(), "samples": samples})["samples"] == words


@pytest.mark.parametrize("damaged", [None, 3, "text", [], {}, {"stage": "elsewhere"}, {"stage": None}, {"stage": []}])
def test_what_cannot_be_drawn_is_not(damaged: Any) -> None:
    assert read(damaged) is None


def test_a_damaged_part_costs_that_part() -> None:
    found = read({"stage": "loss", "line": True, "file": 3, "code": None, "samples": {"a": 1}})
    assert (found["at"], found["line"], found["file"], found["code"], found["samples"]) == (3, 0, "", "", "")
