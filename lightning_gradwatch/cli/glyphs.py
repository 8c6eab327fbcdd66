"""Signs and colours of the terminal: told apart without colour, and plain ASCII where nothing else can be shown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.color import Color
from rich.console import Console
from rich.style import Style

from lightning_gradwatch.reading.tables import VIRIDIS, Status

STYLES: dict[Status, str] = {
    "sick": "bold red",
    "notice": "bold yellow",
    "unreadable": "bold magenta",
    "recovered": "bold cyan",
    "healthy": "bold green",
    "not_watched": "dim",
}
NONFINITE_STYLE, ZERO_STYLE, MISSING_STYLE = "bold white on red", "grey62 on grey15", "dim"


@dataclass(frozen=True)
class Glyphs:
    """The characters to draw with.

    Attributes:
        status: A sign for every status.
        levels: From a low to a high value, all visible.
        bar: Parts of a bar, the full one last.
        nonfinite: For NaN and infinity.
        zero: For exactly zero.
        missing: For "not observed".
        span: Between two ends.
        dot: Between two facts.
        edge: Before what belongs to the alert above.
    """

    status: dict[Status, str]
    levels: str
    bar: str
    nonfinite: str
    zero: str
    missing: str
    span: str
    dot: str
    edge: str


_FULL = Glyphs(
    status={"sick": "✖", "notice": "▲", "unreadable": "?", "recovered": "◐", "healthy": "✔", "not_watched": "○"},
    levels="▁▂▃▄▅▆▇█",
    bar="▏▎▍▌▋▊▉█",
    nonfinite="✕",
    zero="0",
    missing="·",
    span="…",
    dot=" · ",
    edge="│",
)
_ASCII = Glyphs(
    status={"sick": "X", "notice": "!", "unreadable": "?", "recovered": "o", "healthy": "+", "not_watched": "-"},
    levels=".:-=+*%@",
    bar="#",
    nonfinite="x",
    zero="0",
    missing=" ",
    span="..",
    dot=" - ",
    edge="|",
)


def glyphs_for(console: Console) -> Glyphs:
    """What the console can show."""
    return _ASCII if console.options.ascii_only else _FULL


def has_colours(console: Console) -> bool:
    """Whether there are enough colours for a scale."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def colour(position: float) -> Color:
    """The colour at a place from 0 to 1."""
    place = position * (len(VIRIDIS) - 1)
    index = min(int(place), len(VIRIDIS) - 2)
    share = place - index
    ends = zip(VIRIDIS[index], VIRIDIS[index + 1], strict=True)
    return Color.from_rgb(*(round(low + share * (high - low)) for low, high in ends))


def background(position: float) -> Style:
    """A cell of the heatmap."""
    return Style(bgcolor=colour(position))


def foreground(position: float) -> Style:
    """A bar of the profile."""
    return Style(color=colour(position))
