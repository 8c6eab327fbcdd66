"""What a quantity is, and what of it travels in a log."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lightning_gradwatch.core.quantities.quantity import WORDS, Quantity
from tests.core.quantities.snapshots import numbers, snapshot

OWN = Quantity("sign", "Sign changes", "Share of elements whose sign changed", "fraction", "first step", "%")


def test_a_quantity_of_the_users_own_stands_in_the_snapshot() -> None:
    found = snapshot(extra={"sign": torch.tensor([0.0, 0.5, -1.0])}, declared=(OWN,))
    assert numbers(OWN.of(found)) == [0, 0.5, -1]
    assert OWN.of(snapshot(declared=(OWN,))) is None


def test_its_words_come_back_as_they_were() -> None:
    assert Quantity.from_words("sign", json.loads(json.dumps(OWN.words()))) == OWN


@pytest.mark.parametrize(
    "words",
    [
        None,
        "fraction",
        [],
        {},
        *({field: text for field, text in OWN.words().items() if field != left_out} for left_out in WORDS),
        {**OWN.words(), "scale": "of_the_future"},
        {**OWN.words(), "label": ""},
        {**OWN.words(), "hint": 3},
    ],
)
def test_words_that_are_of_no_use_are_not_guessed(words: Any) -> None:
    assert Quantity.from_words("sign", words) is None


def test_what_else_a_newer_version_says_is_no_matter() -> None:
    assert Quantity.from_words("sign", {**OWN.words(), "colour": "red"}) == OWN
