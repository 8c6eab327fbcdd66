"""What things are called, once: labels, titles and units for the tab, the page, the report and the terminal.

The browser gets them as JSON (:func:`encode`) and has no copy. Neither torch nor numpy is needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

Status = Literal["sick", "notice", "unreadable", "recovered", "healthy", "not_watched"]
ScaleKind = Literal["log", "fraction", "linear"]


@dataclass(frozen=True)
class Quantity:
    """What a heatmap can show.

    Attributes:
        name: As in the event file.
        label: In a few words.
        scale: ``"log"`` in decades, ``"fraction"`` for a share from 0 to 1, ``"linear"`` from 0 to the largest.
        missing: What -1 stands for.
        hint: In a sentence.
        unit: Stands behind a value; ``""`` for none.
    """

    name: str
    label: str
    scale: ScaleKind
    missing: str
    hint: str
    unit: str = ""


@dataclass(frozen=True)
class Kind:
    """An alert kind in words.

    Attributes:
        title: What is wrong, as a headline.
        label: The same in a word or two, where there is little room.
    """

    title: str
    label: str


@dataclass(frozen=True)
class Line:
    """A number of the run that is drawn as a line below the heatmap.

    Attributes:
        name: As in the tag.
        label: In a few words.
        range: What the axis shows.
    """

    name: str
    label: str
    range: tuple[float, float]


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            "grad_norm",
            "Gradient norm",
            "log",
            "no gradient",
            "L2 norm of the gradient of a layer's weights, unscaled and before clipping",
        ),
        Quantity(
            "output_grad_norm",
            "Gradient at layer output",
            "log",
            "not observed",
            "L2 norm of the gradient of the loss by a layer's output",
        ),
        Quantity(
            "update_ratio",
            "Update / weight",
            "log",
            "not observed",
            "Size of the optimizer's update relative to the weights; about 1e-3 is usual",
        ),
        Quantity("weight_norm", "Weight norm", "log", "not observed", "L2 norm of a layer's weights"),
        Quantity(
            "zero_fraction",
            "Zero gradients",
            "fraction",
            "not observed",
            "Share of gradient elements that are exactly zero",
        ),
        Quantity(
            "nonfinite_fraction",
            "NaN and Inf gradients",
            "fraction",
            "not observed",
            "Share of gradient elements that are NaN or infinite",
        ),
        Quantity(
            "clipped_fraction",
            "Clipped steps",
            "fraction",
            "not clipped here",
            "Share of steps in which this layer's gradient was clipped",
        ),
        Quantity(
            "memory_horizon",
            "Memory horizon",
            "linear",
            "not recurrent",
            "Time steps back over which the gradient of a recurrent layer survives",
            "steps",
        ),
    )
}
"""In the order in which they are offered."""
KINDS = {
    "vanishing": Kind("Gradients vanish with depth", "Vanishing"),
    "vanishing_through_time": Kind("Gradients vanish through time", "Vanishing through time"),
    "exploding": Kind("Gradients explode", "Exploding"),
    "nonfinite": Kind("NaN or infinite values", "NaN or Inf"),
    "dead": Kind("Layers without any gradient", "Dead"),
    "detached": Kind("Layers that no gradient reaches", "Detached"),
    "stalled": Kind("The loss does not fall", "Stalled"),
    "underflow": Kind("Gradients or updates are rounded away", "Underflow"),
}
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


@cache
def encode() -> dict[str, Any]:
    """All of them as plain JSON; not to be changed by who gets it."""
    return {
        "quantities": {name: asdict(quantity) for name, quantity in QUANTITIES.items()},
        "kinds": {name: asdict(kind) for name, kind in KINDS.items()},
        "statuses": STATUSES,
        "cells": CELLS,
        "lines": [asdict(line) for line in LINES],
        "least_decades": LEAST_DECADES,
        "viridis": VIRIDIS,
    }
