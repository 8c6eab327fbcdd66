"""The gradient of recurrent layers along their time steps, a layer in a line."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.text import Text

from lightning_gradwatch.cli.drawing import curve, shorten
from lightning_gradwatch.cli.glyphs import glyphs_for
from lightning_gradwatch.cli.logs import OpenRun
from lightning_gradwatch.cli.picture import Scale
from lightning_gradwatch.cli.words import safe
from lightning_gradwatch.reading import answers

_MAX_LAYERS = 6


def through_time(run: OpenRun, console: Console) -> RenderableType | None:
    """The latest sample of every recurrent layer of a run; None if it has none."""
    lines = list(_lines(run, console))
    if not lines:
        return None
    title = Text("Gradient norm along time", style="bold")
    title.append("  first time step on the left, last on the right", style="dim")
    more = [Text(f"and {len(lines) - _MAX_LAYERS} more layers", "dim")] if len(lines) > _MAX_LAYERS else []
    return Group(title, *lines[:_MAX_LAYERS], *more)


def _lines(run: OpenRun, console: Console) -> Iterator[Text]:
    width = max(console.width // 4, 8)
    for optimizer in run.document["optimizers"]:
        for version in optimizer["versions"][-1:]:
            whose = optimizer["name"], version["version"]
            for layer in run.sequences(*whose):
                found = answers.sequence(run.store, run.catalogue, *whose, layer, version["last_step"])
                name = shorten(safe(layer), width, glyphs_for(console))
                yield _line(f"  {name} ", found, console)


def _line(head: str, found: answers.TimeProfile, console: Console) -> Text:
    norms = np.array(found["norms"])
    scale = Scale.of(norms, "log")
    horizon = "" if found["horizon"] is None else f", memory {found['horizon']:.0f}"
    tail = f" {' to '.join(scale.ends)}, {int(max(found['steps_back'], default=0)) + 1:,} time steps{horizon}"
    columns = max(console.width - len(head) - len(tail), 8)
    places = np.arange(min(columns, len(norms))) * len(norms) // max(min(columns, len(norms)), 1)
    text = Text(head, no_wrap=True, overflow="crop")
    text.append_text(curve(norms[places].tolist(), scale, console))
    return text.append(tail, style="dim")
