"""Two real ranks, each of which calls a function of a training module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.setups.processes import run_ranks

HOME = "tests.setups.deepspeed"
Told = tuple[Path, list[dict[str, Any]]]
"""Where the ranks have written, and what each has told."""


def told_by(function: str, directory: Path, module: str = "deepspeed_training") -> Told:
    """What each rank tells, when it runs a function of a training module."""
    lines = (f"from {HOME} import {module}", f"from {HOME}.deepspeed_training import run", f"run({module}.{function})")
    return directory, run_ranks("\n".join(lines), directory)
