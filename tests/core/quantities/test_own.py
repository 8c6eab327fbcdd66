"""Quantities of the user's own are declared, or refused in a sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gradwatch.core.quantities import QUANTITIES, RESERVED
from lightning_gradwatch.core.quantities.own import MAX_NAME, declare
from lightning_gradwatch.core.quantities.quantity import LayerQuantity, Quantity, ScaleKind


@dataclass
class LargestElement:
    """The largest element of a layer's gradient."""

    name: str = "largest_element"
    label: str = "Largest element"
    hint: str = "Largest magnitude among the elements of a layer's gradient"
    scale: ScaleKind = "log"
    unit: str = ""
    missing: str = "no gradient"

    def measure(self, weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
        """Shape ``()``."""
        return torch.stack([gradient.abs().max() for gradient in gradients]).max()


def test_a_declaration_says_what_the_quantity_says_of_itself() -> None:
    own: LayerQuantity = LargestElement()
    (found,) = declare("quantities", [own])
    assert found == Quantity(own.name, own.label, own.hint, own.scale, own.missing, own.unit)
    assert declare("quantities", []) == ()


@pytest.mark.parametrize("name", ["a", "Cosine-2", "grad_norm.late", "x" * MAX_NAME])
def test_a_name_that_can_be_part_of_a_tag_is_taken(name: str) -> None:
    assert declare("quantities", [LargestElement(name)])[0].name == name


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_names_of_what_is_built_in_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`quantities\[0\].name` must be a name that .* but '{name}' came. To cure"):
        declare("quantities", [LargestElement(name)])


@pytest.mark.parametrize("name", ["2nd", "_private", "a/b", "a b", "ünï", "-x", "x" * (MAX_NAME + 1), "a\n"])
def test_names_that_cannot_be_part_of_a_tag_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"`quantities\[0\].name` must be a letter and then .* came. To cure it: "):
        declare("quantities", [LargestElement(name)])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            [object()],
            r"`quantities\[0\].name` must be a text, but None came. To cure it: give the quantity the at",
        ),
        ([LargestElement(label="")], r"`quantities\[0\].label` must be a text, but '' came"),
        ([LargestElement(), LargestElement()], r"`quantities\[1\].name` must be a name of its own, but 'largest_el"),
        ([replace(LargestElement(), scale="symlog")], r"`quantities\[0\].scale` must be one of 'log', 'fraction', 'l"),  # type: ignore[arg-type]
        ([QUANTITIES[0]], r"`quantities\[0\]` must be something that can measure"),
        ("grad_norm", r"`quantities` must be a list of quantities, but 'grad_norm' came. To cure it: quantities=\["),
        (LargestElement(), r"`quantities` must be a list of quantities"),
    ],
)
def test_what_is_no_quantity_is_refused_in_a_sentence(wrong: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        declare("quantities", wrong)
