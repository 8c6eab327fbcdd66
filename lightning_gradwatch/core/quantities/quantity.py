"""What a number per layer is: how it is named and shown, and how it is taken from a publication. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lightning_gradwatch.core.records import MISSING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gradwatch.core.records import Publication

ScaleKind = Literal["log", "fraction", "linear"]
SCALES: tuple[str, ...] = get_args(ScaleKind)
WORDS = ("label", "scale", "missing", "hint", "unit")
"""The fields of a quantity that a reader needs."""


@dataclass(frozen=True)
class Quantity:
    """One number per layer, never negative: in the event file, in the tab, in the page and in the terminal.

    Attributes:
        name: As in the event file.
        label: In a few words.
        hint: In a sentence.
        scale: ``"log"`` in decades, ``"fraction"`` for a share from 0 to 1, ``"linear"`` from 0 to the largest.
        missing: What -1 stands for.
        unit: Stands behind a value; ``""`` for none.
        take: Takes it from a publication: shape ``(layers,)``, float32, on the host; None if there is nothing to write.
        is_always_written: Whether every publication is written; else the first 200, and then every tenth.
    """

    name: str
    label: str
    hint: str
    take: Callable[[Publication], Tensor | None]
    scale: ScaleKind = "log"
    missing: str = "not observed"
    unit: str = ""
    is_always_written: bool = False

    def of(self, publication: Publication) -> Tensor | None:
        """The numbers to write, shape ``(layers,)``, float32, -1 where there is none; None for nothing to write."""
        return self.take(publication)

    def words(self) -> dict[str, str]:
        """What a reader needs to show it, as plain JSON."""
        return {field: getattr(self, field) for field in WORDS}


def by_layer(publication: Publication, known: Mapping[str, float]) -> Tensor | None:
    """Numbers that are known by the names of layers, in the layers' order, -1 for the others.

    Args:
        publication: What is written; before its first full sample nothing is known.
        known: The numbers.

    Returns:
        Shape ``(layers,)``, float32; None if nothing is known.
    """
    if publication.sample is None or not known:
        return None
    return publication.window.last.new_tensor([known.get(layer.name, MISSING) for layer in publication.layers])
