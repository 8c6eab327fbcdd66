"""The command in a process of its own, as a shell runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gradwatch.cli.main import main
from lightning_gradwatch.core.records import Alert
from tests import builders

PACKAGE = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "lightning_gradwatch")


def environment(**variables: str) -> dict[str, str]:
    """The present one, with the package under test first, without what colours or widens a terminal."""
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    path = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**plain, "PYTHONPATH": path, "PYTHONUTF8": "1", "COLUMNS": "100", **variables}


def gradwatch(*arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment(**variables),
        timeout=120,
        check=False,
    )


def here(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    """Run it in this process: status, output and complaints."""
    status = main(list(map(str, arguments)))
    told = capsys.readouterr()
    return status, told.out, told.err


def alert(step: int = 5, until: int | None = None, **changes: Any) -> Alert:
    """An alert of a layer ``a``, with a cause."""
    fields: Mapping[str, Any] = {
        "layer": "a",
        "message": f"Gradients vanish with depth (step {step}): the early layers starve. Two sigmoids. Try: ReLU.",
        "cause": "saturating_activation",
        "evidence": "two sigmoids",
        "remedies": ("ReLU",),
        "summary": "The early layers starve.",
        **changes,
    }
    return builders.alert(step, until, **fields)
