"""``gradwatch watch``: follow a run while it is written."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from lightning_gradwatch.cli.choice import SICK, exit_status, meant
from lightning_gradwatch.cli.drawing import MAX_ROWS
from lightning_gradwatch.cli.errors import CommandError
from lightning_gradwatch.cli.logs import Logs, Run
from lightning_gradwatch.cli.terminal import Scene, overview, report
from lightning_gradwatch.cli.words import safe, untold
from lightning_gradwatch.reading.answers import Layout
from lightning_gradwatch.reading.tables import STATUSES

_TICK_SECONDS = 0.25
"""How soon a window of another size is noticed."""
_FEWEST_ROWS = 4
_MAX_RUNS = 8

Show = Callable[[Sequence[Run]], None]


def run(options: argparse.Namespace) -> int:
    """Follow a directory until Ctrl-C, or until what the options name.

    Returns:
        The exit status, as of a report at the end.

    Raises:
        CommandError: If nothing was written until the end.
    """
    if options.run_dir.is_file():
        raise CommandError(
            f"`RUN_DIR` must be a directory, but {str(options.run_dir)!r} came, which is a file. "
            "To cure it: give the directory of the logger, such as lightning_logs."
        )
    console = Console(highlight=False, emoji=False, markup=False)
    logs = Logs(options.run_dir, None if options.run is None else os.path.normpath(options.run))
    scene = Scene(logs, console, options.quantity, layout=Layout(options.norm, options.matrices))
    runs: Sequence[Run] = ()
    with _ended_by_signals(), _screen(scene) if console.is_terminal else _lines(scene) as show:
        try:
            for runs in _news(scene, options):
                show(runs)
        except KeyboardInterrupt:
            pass
    if not runs:
        longer = "" if options.until_idle is None else " A training that starts later needs a longer --until-idle."
        raise CommandError(
            f"`RUN_DIR` must be where GradWatch writes, but nothing came in {str(options.run_dir)!r} while it was "
            f"watched. To cure it: give the directory of the logger, and train with callbacks=[GradWatch()].{longer}"
        )
    if console.is_terminal:
        console.print(report(runs[0], scene))
    return exit_status(runs)


def _news(scene: Scene, options: argparse.Namespace) -> Iterator[Sequence[Run]]:
    """The runs that are meant, whenever one of them or the window has changed."""
    seen: tuple[list[tuple[str, str]], tuple[int, int]] | None = None
    changed = time.monotonic()
    while True:
        runs = meant([run for run in scene.logs.reload() if run.is_watched], options)
        state = [(run.name, run.stamp) for run in runs]
        if seen is None or state != seen[0]:
            changed = time.monotonic()
        size = scene.console.size
        if (state, size) != seen:
            seen = state, size
            yield runs
        is_idle = options.until_idle is not None and time.monotonic() - changed >= options.until_idle
        if is_idle or (options.until_alert and exit_status(runs) == SICK):
            return
        _wait(options.every, scene.console, size)


def _wait(seconds: float, console: Console, size: tuple[int, int]) -> None:
    """Wait; shorter if the window has no longer the size for which was drawn, also where it has changed meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and console.size == size:
        time.sleep(min(left, _TICK_SECONDS))


@contextmanager
def _screen(scene: Scene) -> Iterator[Show]:
    """A whole screen, drawn anew with every call; the one before comes back at the end."""
    with Live(console=scene.console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda runs: live.update(_fitted(runs, scene), refresh=True)


def _fitted(runs: Sequence[Run], scene: Scene) -> RenderableType:
    """The sickest run, with as many rows of the heatmap as there is room for, and bars if all else fits."""
    if not runs:
        return Text(f"Waiting for GradWatch to write to {safe(str(scene.logs.directory))} ... (Ctrl-C ends this)")
    num_pictures = max(len(runs[0].catalogue.optimizers), 1) if runs[0].catalogue else 1
    for shown in (scene, replace(scene, has_bars=False)):
        full = _view(runs, shown, MAX_ROWS)
        excess = len(scene.console.render_lines(full)) - scene.console.height
        if excess <= 0:
            return full
        least = _view(runs, shown, max(MAX_ROWS - -(-excess // num_pictures), _FEWEST_ROWS))
        if len(scene.console.render_lines(least)) <= scene.console.height:
            break
    return least


def _view(runs: Sequence[Run], scene: Scene, max_rows: int) -> RenderableType:
    several = [overview(runs[:_MAX_RUNS], scene)] if len(runs) > 1 else []
    return Group(*several, report(runs[0], scene, max_rows))


@contextmanager
def _lines(scene: Scene) -> Iterator[Show]:
    """Where there is no terminal: a line whenever a run is judged anew."""
    said: dict[str, tuple[str, int, int]] = {}

    def show(runs: Sequence[Run]) -> None:
        for run in runs:
            judged = run.verdict.status, run.verdict.num_open, len(run.damage)
            if said.get(run.name) != judged:
                said[run.name] = judged
                now, status = datetime.now().strftime("%H:%M:%S"), STATUSES[run.verdict.status]
                told = " ".join([safe(run.verdict.headline), *untold(run)])
                scene.console.file.write(f"{now} {status}: {scene.name(run)}: {told}\n")
                scene.console.file.flush()

    yield show


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end it as Ctrl-C does, so that the terminal is left as it was."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
