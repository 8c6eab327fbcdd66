"""When an alert is announced, since alerts that come and go must not flood the console; and where a run is seen."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.paths import at, is_url

PAUSE_STEPS = 50


class Pauses:
    """One announcement per kind and optimizer, then pauses that double."""

    def __init__(self) -> None:
        self._next: dict[tuple[str, str], int] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def passes(self, alert: Alert) -> bool:
        """Whether to announce an alert that has just opened."""
        key = alert.kind, alert.optimizer
        if alert.step < self._next.get(key, alert.step):
            return False
        self._next[key] = alert.step + PAUSE_STEPS * 2 ** self._counts[key]
        self._counts[key] += 1
        return True


def where_to_look(log_dir: str) -> str:
    """The command and the address that show a run, its siblings beside it.

    Args:
        log_dir: The directory, or the URL of one, with the run's event file.
    """
    here = _from_here(log_dir)
    parent, name = os.path.split(here)
    is_whole = not parent or not name or (is_url(here) and not at(here).parent.name)  # a bucket has nothing above it
    logdir, run = (here, ".") if is_whole else (parent, name)
    command = f"tensorboard --logdir {shlex.quote(logdir)}"
    return f"GradWatch: {command}, then http://localhost:6006/#gradwatch&run={quote(run, safe='')}"


def report_of(log_dir: str | None) -> str:
    """How to get the report of a run.

    Args:
        log_dir: The directory of the run, or the URL of one; None for a run without any.
    """
    if log_dir is None:
        return 'the report() of this GradWatch, in a notebook, or report().save("report.html")'
    return f"gradwatch report {shlex.quote(_from_here(log_dir))}, or the GradWatch tab of TensorBoard"


def _from_here(log_dir: str) -> str:
    """The same directory, relative to the present one if it lies below it."""
    is_below = os.path.isabs(log_dir) and Path(log_dir).is_relative_to(Path.cwd())
    return os.path.relpath(log_dir) if is_below else log_dir
