"""What things are called, once: labels, titles and units for the tab, the page, the report and the terminal.

The browser gets them as JSON (``encode``) and has no copy. Neither torch nor numpy is needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

from lightning_gradwatch.core.alerts import ALERTS
from lightning_gradwatch.core.quantities import QUANTITIES
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.memory_horizon import MEMORY_HORIZON
from lightning_gradwatch.core.quantities.output_gradient import OUTPUT_GRAD_NORM
from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.quantities.several import HISTOGRAM
from lightning_gradwatch.reading.norms import NORMS

Status = Literal["sick", "notice", "unreadable", "recovered", "healthy", "not_watched"]


@dataclass(frozen=True)
class Kind:
    """An alert kind in words.

    Attributes:
        title: What is wrong, as a headline.
        label: The same in a word or two, where there is little room.
        shown_by: The quantity that a picture opens with, if it is there; ``""`` for the one that is always first.
    """

    title: str
    label: str
    shown_by: str


@dataclass(frozen=True)
class Line:
    """A number of the run that is drawn as a line below the heatmap.

    Attributes:
        name: As in the tag.
        label: In a few words.
        range: What the axis shows; None for what the numbers need.
        limits: Name of the number of the run that this one limits: both are drawn in one chart, on a logarithmic axis,
            and what is above the limit is filled. ``""`` for none.
    """

    name: str
    label: str
    range: tuple[float, float] | None
    limits: str = ""


_SHOWN_BY = {
    "vanishing": OUTPUT_GRAD_NORM.name,
    "exploding": OUTPUT_GRAD_NORM.name,
    "vanishing_through_time": MEMORY_HORIZON.name,
}
KINDS = {kind.name: Kind(kind.title, kind.label, _SHOWN_BY.get(kind.name, "")) for kind in ALERTS}
PARTICULAR = {"default": GRAD_NORM.name, "horizon": MEMORY_HORIZON.name, "histogram": HISTOGRAM.name}
"""What a view needs by its name: what is shown first, and what has a panel of its own."""
STATUSES: dict[Status, str] = {
    "sick": "sick",
    "notice": "notice",
    "unreadable": "unreadable",
    "recovered": "recovered",
    "healthy": "healthy",
    "not_watched": "not watched",
}
"""How a run is, as a word; the sickest first."""
CELLS = {"nonfinite": "NaN or Inf", "zero": "exactly zero", "missing": "no data"}
"""Cells of a heatmap that are no number."""
LINES = (
    Line("clip_threshold", "clip limit", None, limits="total_norm"),
    Line("clip_coefficient", "clip coefficient", (0.0, 1.05)),
    Line("clipped_percent", "clipped percent", (0.0, 105.0)),
)
LEAST_DECADES = 6
"""What a scale in decades spans at least: a healthy network spans one or two and looks calm, a dying one does not."""
VIRIDIS = (
    (68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142),
    (38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115), (94, 201, 98), (132, 212, 75),
    (173, 220, 48), (216, 226, 25), (253, 231, 37),
)  # fmt: skip
"""17 even points of viridis (Nathaniel Smith and Stefan van der Walt, CC0), which colour-blind people read as well."""


def words(quantity: Quantity) -> dict[str, str]:
    """A quantity in words, as plain JSON."""
    return {"name": quantity.name, **quantity.words()}


@cache
def encode() -> dict[str, object]:
    """All of them as plain JSON; not to be changed by who gets it."""
    return {
        "quantities": {quantity.name: words(quantity) for quantity in QUANTITIES},
        "norms": {name: asdict(norm) for name, norm in NORMS.items()},
        "particular": PARTICULAR,
        "kinds": {name: asdict(kind) for name, kind in KINDS.items()},
        "statuses": STATUSES,
        "cells": CELLS,
        "lines": [asdict(line) for line in LINES],
        "least_decades": LEAST_DECADES,
        "viridis": VIRIDIS,
    }
