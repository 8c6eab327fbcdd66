"""``gradwatch report``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from lightning_gradwatch.cli.choice import exit_status, require_quantity, runs_of
from lightning_gradwatch.cli.document import encode
from lightning_gradwatch.cli.errors import CommandError
from lightning_gradwatch.cli.logs import Logs, Run
from lightning_gradwatch.paths import Place


def run(options: argparse.Namespace) -> int:
    """Report in the terminal, as JSON, or as a page.

    Returns:
        The exit status.

    Raises:
        CommandError: If there is nothing to report.
    """
    logs, runs = runs_of(options)
    require_quantity(options.quantity, runs)
    if options.html is not None:
        _write_page(logs, runs, options.html)
    if options.json:
        sys.stdout.write(json.dumps(encode(logs, runs, options.run_dir), allow_nan=False) + "\n")
    elif options.html is None:
        _show(logs, runs, options)
    return exit_status(runs)


def _show(logs: Logs, runs: Sequence[Run], options: argparse.Namespace) -> None:
    from rich.console import Console

    from lightning_gradwatch.cli.terminal import Scene, overview, report
    from lightning_gradwatch.reading.answers import Layout

    console = Console(highlight=False, emoji=False, markup=False)
    scene = Scene(logs, console, options.quantity, now=time.time(), layout=Layout(options.norm, options.matrices))
    if len(runs) > 1:
        console.print(overview(runs, scene))
        console.print()
    console.print(report(runs[0], scene))
    if len(runs) > 1:
        console.print(f"\n{len(runs)} runs; --run NAME shows another one.")


def _write_page(logs: Logs, runs: Sequence[Run], path: Place) -> None:
    from lightning_gradwatch.cli.page import build

    try:
        path.write_bytes(build(logs, runs).encode())
    except OSError as failure:
        raise CommandError(
            f"`--html` must be a file that can be written, but {str(path)!r} came ({failure.strerror or failure}). "
            "To cure it: give a path in a directory that exists and has room."
        ) from None
    sys.stderr.write(f"Wrote {path}.\n")
