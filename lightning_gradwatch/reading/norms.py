"""Ways to show gradient norms so that layers can be compared, in words. Needs neither torch nor numpy.

The total norm of a layer grows with its number of elements: by it, normalisation layers and biases look a hundred times
smaller than the matrices beside them, and a healthy network looks striped. ``benchmarks/comparable.py`` compares ways.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM

if TYPE_CHECKING:
    from lightning_gradwatch.core.quantities.quantity import Quantity
    from lightning_gradwatch.reading.schema import Description


@dataclass(frozen=True)
class Norm:
    """A way to show gradient norms.

    Attributes:
        name: As in an address and on the command line.
        label: In the list of ways.
        after: What is put behind the quantity's label, so that it says what is shown; ``""`` for nothing.
        hint: In a sentence.
    """

    name: str
    label: str
    after: str
    hint: str

    def of(self, quantity: Quantity) -> Quantity:
        """A quantity that is shown so, in words."""
        return replace(quantity, label=f"{quantity.label} {self.after}") if self.after else quantity


RMS = Norm(
    "rms",
    "per element (RMS)",
    "per element (RMS)",
    "The root mean square of the gradient's elements: layers of any size can be compared",
)
TOTAL = Norm(
    "total", "of the whole layer", "", "The L2 norm over all of a layer's elements: large layers have large norms"
)
RELATIVE = Norm(
    "relative",
    "relative to its median",
    "relative to the layer's median",
    "What changes over the run: a layer that is sick from the start looks like any other",
)
NORMS = {norm.name: norm for norm in (RMS, TOTAL, RELATIVE)}
"""In the order in which they are offered; the first one that a log allows is shown unless another one is asked for."""


def norms_for(description: Description) -> list[str]:
    """The ways in which a quantity can be shown, the default first; none for a quantity that has but one."""
    if description.quantity != GRAD_NORM.name:
        return []
    return [name for name in NORMS if name != RMS.name or description.elements]


def chosen(description: Description, wanted: str | None) -> Norm:
    """The way that is meant, if there is such a one for this quantity, or else the default.

    Args:
        description: Of the quantity.
        wanted: The name of a way; None for the default.
    """
    known = norms_for(description)
    name = wanted if wanted in known else known[0] if known else TOTAL.name
    return NORMS[name]
