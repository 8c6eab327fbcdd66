"""A picture in a terminal: the heatmap, and beside it the depth profile on the same rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.text import Text

from lightning_gradwatch.cli.glyphs import (
    MISSING_STYLE,
    NONFINITE_STYLE,
    ZERO_STYLE,
    Glyphs,
    background,
    foreground,
    glyphs_for,
    has_colours,
)
from lightning_gradwatch.cli.picture import Picture, Scale
from lightning_gradwatch.cli.words import safe
from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.reading.tables import CELLS

MAX_ROWS = 24
_NUMBER_WIDTH = 9
_KEY_WIDTH = 16
_FORMATS = {"log": ".1e", "fraction": ".0%", "linear": ".3g"}
_MARK = 2
"""Columns before a name, for the mark of a layer with an open alert."""


class Canvas:
    """What a picture is drawn on: its widths and its signs.

    Args:
        console: Where it will be shown.
        names: The names of its rows.
    """

    def __init__(self, console: Console, names: Iterable[str]) -> None:
        self.glyphs = glyphs_for(console)
        self.is_coloured = has_colours(console)
        longest = max((len(name) for name in names), default=0)
        self.name_width = min(longest, max(console.width // 4, 8))
        rest = max(console.width - _MARK - self.name_width - _NUMBER_WIDTH - 3, 12)
        self.bar_width = rest // 4 if rest >= 32 else 0
        self.columns = rest - self.bar_width

    def cell(self, value: float, scale: Scale) -> tuple[str, str]:
        """The sign of a value, and its style."""
        special = self._special(value)
        if special is not None:
            return special
        position = scale.position(value)
        if self.is_coloured:
            return " ", str(background(position))
        levels = self.glyphs.levels
        return levels[min(int(position * len(levels)), len(levels) - 1)], ""

    def bar(self, value: float, scale: Scale) -> tuple[str, str]:
        """A bar as long as the value is large, and its style."""
        if not math.isfinite(value):
            return self.glyphs.nonfinite * self.bar_width, NONFINITE_STYLE
        if value == MISSING or value == 0:
            return "", ""
        position, parts = scale.position(value), self.glyphs.bar
        eighths = max(round(position * self.bar_width * len(parts)), 1)
        whole, part = divmod(eighths, len(parts))
        text = parts[-1] * whole + (parts[part - 1] if part else "")
        return text, str(foreground(position)) if self.is_coloured else ""

    def key(self, scale: Scale) -> Text:
        """The scale from end to end."""
        low, high = scale.ends
        text = Text(f"{low} ", style="dim")
        for place in range(_KEY_WIDTH):
            position = place / (_KEY_WIDTH - 1)
            levels = self.glyphs.levels
            sign = levels[min(int(position * len(levels)), len(levels) - 1)]
            text.append(*((" ", background(position)) if self.is_coloured else (sign, "")))
        return text.append(f" {high}", style="dim")

    def _special(self, value: float) -> tuple[str, str] | None:
        if not math.isfinite(value):
            return self.glyphs.nonfinite, NONFINITE_STYLE if self.is_coloured else ""
        if value == MISSING:
            return self.glyphs.missing, MISSING_STYLE
        return (self.glyphs.zero, ZERO_STYLE if self.is_coloured else "") if value == 0 else None


def draw(picture: Picture, console: Console, ailing: Collection[int] = ()) -> RenderableType:
    """A picture with its title, its axes and its key.

    Args:
        picture: The picture, painted with as many columns as ``canvas_for`` has.
        console: Where it will be shown.
        ailing: Rows with a layer of an open alert.
    """
    canvas = canvas_for(console, picture.names)
    names = [row_name(name, canvas.glyphs) for name in picture.names]
    lines = [_title(picture, canvas)]
    for place, (name, values) in enumerate(zip(names, picture.values, strict=True)):
        lines.append(_row(canvas, picture, name, values.tolist(), float(picture.latest[place]), place in ailing))
    return Group(*lines, _axis(canvas, picture), _legend(canvas, picture))


def canvas_for(console: Console, names: Iterable[str]) -> Canvas:
    """The canvas for rows of layers, by what they are called."""
    return Canvas(console, (row_name(name, glyphs_for(console)) for name in names))


def row_name(name: str, glyphs: Glyphs) -> str:
    """What a row is called, in the signs of the terminal."""
    return safe(name.replace("…", glyphs.span))


def curve(values: Sequence[float], scale: Scale, console: Console) -> Text:
    """Values in one line."""
    canvas = Canvas(console, ())
    text = Text()
    for value in values:
        text.append(*canvas.cell(value, scale))
    return text


def shorten(name: str, width: int, glyphs: Glyphs) -> str:
    """A name in at most ``width`` columns; its end tells most."""
    return name if len(name) <= width else glyphs.span + name[len(name) - width + len(glyphs.span) :]


def number(value: float, quantity: Quantity) -> str:
    """A value in at most nine columns."""
    if value == MISSING:
        return "-"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return format(value, _FORMATS[quantity.scale])


def _title(picture: Picture, canvas: Canvas) -> Text:
    quantity = picture.quantity
    title = f"{quantity.label}, in {quantity.unit}" if quantity.unit else quantity.label
    text = Text(safe(title), style="bold")
    width = _MARK + canvas.name_width + 1 + canvas.columns
    text.append("  input above, loss below", style="dim")
    text.append(" " * max(width - len(text) + 1, 2))
    first, last = picture.latest_steps
    return text.append(f"at step {last:,}" if first == last else f"largest of steps {first:,} to {last:,}", style="dim")


def _row(canvas: Canvas, picture: Picture, name: str, values: list[float], latest: float, is_ailing: bool) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"{canvas.glyphs.status['sick'] if is_ailing else '':<{_MARK}}", style="bold red")
    text.append(f"{shorten(name, canvas.name_width, canvas.glyphs):<{canvas.name_width}} ", "bold" if is_ailing else "")
    for value in values:
        text.append(*canvas.cell(value, picture.scale))
    text.append(f" {number(latest, picture.quantity):>{_NUMBER_WIDTH}} ")
    return text.append(*canvas.bar(latest, picture.scale)) if canvas.bar_width else text


def _axis(canvas: Canvas, picture: Picture) -> Text:
    first, last = (f"{step:,}" for step in picture.steps)
    gap = canvas.columns - len(first) - len(last)
    axis = f"{first}{' ' * gap}{last}" if gap > 0 and first != last else first
    return Text(" " * (_MARK + canvas.name_width + 1) + axis + "  steps", style="dim", no_wrap=True)


def _legend(canvas: Canvas, picture: Picture) -> Text:
    text = Text(" " * (_MARK + canvas.name_width + 1), no_wrap=True, overflow="ellipsis")
    text.append_text(canvas.key(picture.scale))
    shown = picture.values
    specials = (
        ((shown == 0).any(), 0.0, CELLS["zero"]),
        ((~np.isfinite(shown)).any(), math.nan, CELLS["nonfinite"]),
        ((shown == MISSING).any(), MISSING, safe(picture.quantity.missing)),
    )
    for is_there, value, words in specials:
        if is_there:
            sign, style = canvas.cell(value, picture.scale)
            text.append("   ").append(sign, style).append(f" {words}", style="dim")
    return text
