"""Where on its way back a gradient is lost, as bars in a terminal."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_gradwatch.cli import words
from lightning_gradwatch.cli.glyphs import glyphs_for
from lightning_gradwatch.reading.lost import Lost

LENGTH = 24
"""Characters of the longest bar."""


def bars(where: Lost, console: Console) -> RenderableType:
    """A line for each kind of operation: how many, the orders of magnitude that they lose, and a bar."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    full, longest = glyphs_for(console).bar[-1], max(part["lost"] for part in where["parts"])
    for part in where["parts"]:
        length = round(LENGTH * max(part["lost"], 0.0) / longest) if longest > 0 else 0
        table.add_row(Text(words.safe(part["label"])), f"{part['lost']:.1f}", Text(full * length, "yellow"))
    return table
