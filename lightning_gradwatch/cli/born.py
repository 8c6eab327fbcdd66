"""Where NaN was born, in a terminal: the stage of the step, the line of code, the samples."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from lightning_gradwatch.cli import words
from lightning_gradwatch.cli.glyphs import STYLES, glyphs_for
from lightning_gradwatch.reading.born import Born


def birth(born: Born, console: Console) -> RenderableType:
    """The stages of a step with a sign at the one, and below it the code."""
    glyphs = glyphs_for(console)
    way = Text()
    for place, stage in enumerate(born["stages"]):
        is_here = place == born["at"]
        way.append(" > " if place else "", "dim")
        way.append(f"{glyphs.nonfinite} {stage}" if is_here else stage, STYLES["sick"] if is_here else "dim")
    line = f"line {born['line']}" if born["line"] else ""
    facts = [words.safe(fact) for fact in (born["file"], line, born["module"], born["samples"]) if fact]
    parts: list[RenderableType] = [way]
    if facts:
        parts.append(Text(glyphs.dot.join(facts)))
    if born["code"]:
        parts.append(Padding(Text(words.safe(born["code"]), "bold"), (0, 0, 0, 2)))
    return Group(*parts)
