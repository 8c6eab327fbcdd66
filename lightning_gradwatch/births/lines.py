"""The line of the user's own code that is running."""

from __future__ import annotations

import functools
import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_OURS = str(Path(__file__).parents[1])
_CALLERS = tuple(str(Path(__file__).with_name(name)) for name in ("replay.py", "manual.py"))
"""Who calls the user's code: what has called them is no part of the step."""
_OTHERS = ("torch", "lightning", "lightning_fabric", "pytorch_lightning")


class Line(NamedTuple):
    """A line of a file."""

    file: str
    number: int

    @property
    def code(self) -> str:
        """Its text; ``""`` if the file cannot be read."""
        return linecache.getline(self.file, self.number).strip()

    @property
    def name(self) -> str:
        """The file without its directories."""
        return Path(self.file).name


def present_line() -> Line | None:
    """The innermost line that is neither torch's, Lightning's nor ours, below our own call; None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        kind = _kind_of(file)
        if kind == "callers":
            return None
        if kind == "users":
            return Line(file, frame.f_lineno)
        frame = frame.f_back
    return None


@functools.lru_cache(4096)
def _kind_of(file: str) -> str:
    if file.startswith(_OURS):
        return "callers" if file in _CALLERS else "ours"
    if file == "<string>" or file.startswith(("<frozen", *_homes())):
        return "others"
    return "users"


@functools.lru_cache(1)
def _homes() -> tuple[str, ...]:
    """Directories of torch, Lightning and Python's own library."""
    found = [getattr(sys.modules.get(name), "__file__", None) for name in (*_OTHERS, "functools")]
    paths = [Path(file) for file in found if file]
    homes = [f"{path.parent}/" if path.name == "__init__.py" else str(path) for path in paths]
    return *homes, str(Path(linecache.__file__).with_name("contextlib.py"))
