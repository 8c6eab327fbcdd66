"""What a number per layer is: how it is named and shown, and how it is taken from a sample. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from lightning_gradwatch.core.records import MISSING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gradwatch.core.snapshot import Snapshot

ScaleKind = Literal["log", "fraction", "linear"]
SCALES: tuple[str, ...] = get_args(ScaleKind)
WORDS = ("label", "scale", "missing", "hint", "unit")
"""The fields of a quantity that a reader needs, and that travel in the log with a quantity that it may not know."""


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
        take: Takes it from a snapshot: shape ``(layers,)``, float32, on the host; None if there is nothing to write.
            Left out for a quantity of the user, which stands in ``Snapshot.extra``.
    """

    name: str
    label: str
    hint: str
    scale: ScaleKind = "log"
    missing: str = "not observed"
    unit: str = ""
    take: Callable[[Snapshot], Tensor | None] | None = None

    def of(self, snapshot: Snapshot) -> Tensor | None:
        """The numbers to write, shape ``(layers,)``, float32, -1 where there is none; None for nothing to write."""
        return snapshot.extra.get(self.name) if self.take is None else self.take(snapshot)

    def words(self) -> dict[str, str]:
        """What a reader needs to show it, as plain JSON; ``from_words`` is the inverse."""
        return {field: getattr(self, field) for field in WORDS}

    @classmethod
    def from_words(cls, name: str, words: object) -> Quantity | None:
        """A quantity of which only a log knows; None if what the log says of it is of no use.

        Args:
            name: As in the event file.
            words: What ``words`` gave, or anything: logs may be damaged, or newer than their reader.
        """
        if not isinstance(words, Mapping) or not all(isinstance(words.get(field), str) for field in WORDS):
            return None
        is_shown = words["scale"] in SCALES and words["label"]
        return cls(name, **{field: words[field] for field in WORDS}) if is_shown else None


class LayerQuantity(Protocol):
    """A quantity of the user's own: what to call it, and how to measure it. It must never be negative."""

    @property
    def name(self) -> str:
        """As in the event file: letters, digits, ``_``, ``.`` and ``-``; not that of a built-in one."""
        ...

    @property
    def label(self) -> str:
        """In a few words."""
        ...

    @property
    def hint(self) -> str:
        """In a sentence."""
        ...

    @property
    def scale(self) -> ScaleKind:
        """As in ``Quantity``."""
        ...

    @property
    def unit(self) -> str:
        """Stands behind a value; ``""`` for none."""
        ...

    @property
    def missing(self) -> str:
        """What to say of a layer without a value."""
        ...

    def measure(self, weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
        """The number of one layer.

        Args:
            weights: The layer's parameters that have a gradient. Not to be changed.
            gradients: Their gradients, complete, unscaled and not yet clipped, in the same order and shapes. Not to be
                changed: they are the ones that the optimizer will get.

        Returns:
            Shape ``()``, on the same device, so that nothing waits for it.
        """
        ...


def by_layer(snapshot: Snapshot, known: Mapping[str, float]) -> Tensor | None:
    """Numbers that are known by the names of layers, in the layers' order, -1 for the others.

    Args:
        snapshot: Whose layers are meant.
        known: The numbers.

    Returns:
        Shape ``(layers,)``, float32; None if nothing is known.
    """
    if not known:
        return None
    from torch import tensor

    return tensor([float(known.get(layer.name, MISSING)) for layer in snapshot.layers])
