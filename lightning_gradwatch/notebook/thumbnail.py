"""A small heatmap as inline SVG: layers over steps, in the colours of the tab."""

from __future__ import annotations

from html import escape

import numpy as np

from lightning_gradwatch.cli.logs import OpenRun
from lightning_gradwatch.cli.picture import Picture, is_seen, paint
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.reading.answers import Layout, rows_of
from lightning_gradwatch.reading.norms import TOTAL
from lightning_gradwatch.reading.tables import VIRIDIS

MAX_ROWS, COLUMNS = 24, 60
CELL_WIDTH, LEFT, BOTTOM = 6, 150, 18
MAX_NAME = 22
_NONFINITE, _ZERO, _MISSING = "#d32f2f", "#9e9e9e", "none"


def thumbnail(run: OpenRun) -> str:
    """The gradient norms of the first optimizer's layers; ``""`` where there are none."""
    for optimizer in run.document["optimizers"]:
        for version in optimizer["versions"][-1:]:
            series = run.quantities(optimizer["name"], version["version"]).get(GRAD_NORM.name)
            if series is not None and is_seen((samples := run.store.samples(series)).values):
                rows = rows_of(series, samples, run.document["alerts"], Layout(TOTAL.name, most=MAX_ROWS))
                return _drawn(paint(samples, rows, GRAD_NORM, COLUMNS))
    return ""


def _drawn(picture: Picture) -> str:
    num_rows, num_columns = picture.values.shape
    height = max(120 // num_rows, 8)
    colours = np.array([[_colour(picture, value) for value in row] for row in picture.values.tolist()])
    # neighbours of one colour are one stretch, and all stretches of one colour one path
    paths: dict[str, list[str]] = {}
    for row in range(num_rows):
        starts = np.flatnonzero(np.append(True, colours[row, 1:] != colours[row, :-1]))
        for start, end in zip(starts, [*starts[1:], num_columns], strict=True):
            x, width = LEFT + start * CELL_WIDTH, (end - start) * CELL_WIDTH
            paths.setdefault(str(colours[row, start]), []).append(f"M{x} {row * height}h{width}v{height}h-{width}z")
    parts = [f'<path fill="{colour}" d="{"".join(found)}"/>' for colour, found in paths.items()]
    # names of the rows, as far as there is room, and the steps
    every = -(-14 // height)
    parts += [
        f'<text x="{LEFT - 6}" y="{(row + 0.5) * height + 4}" text-anchor="end">{escape(_short(name))}</text>'
        for row, name in enumerate(picture.names)
        if row % every == 0
    ]
    bottom, right = num_rows * height, LEFT + num_columns * CELL_WIDTH
    (first, last), ends = picture.steps, picture.scale.ends
    parts.append(f'<text x="{LEFT}" y="{bottom + 13}">step {first:,}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 13}" text-anchor="end">{last:,}</text>')
    middle = (LEFT + right) // 2
    parts.append(f'<text x="{middle}" y="{bottom + 13}" text-anchor="middle">norm {ends[0]} to {ends[1]}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Gradient norm of each layer over the steps" '
        f'width="{right + 4}" height="{bottom + BOTTOM}" font-family="sans-serif" font-size="11" '
        f'fill="currentColor">{"".join(parts)}</svg>'
    )


def _colour(picture: Picture, value: float) -> str:
    if not np.isfinite(value):
        return _NONFINITE
    if value <= 0:
        return _ZERO if value == 0 else _MISSING
    red, green, blue = VIRIDIS[round(picture.scale.position(value) * (len(VIRIDIS) - 1))]
    return f"#{red:02x}{green:02x}{blue:02x}"


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"...{name[3 - MAX_NAME :]}"
