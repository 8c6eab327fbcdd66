"""``gradwatch alerts``: the alerts of every run, in plain text, or as JSON for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields

from lightning_gradwatch.cli import words
from lightning_gradwatch.cli.choice import exit_status, runs_of
from lightning_gradwatch.cli.logs import Run
from lightning_gradwatch.core import telling
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.paths import Place
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.schema import SCHEMA_VERSION, plain
from lightning_gradwatch.reading.status import urgency
from lightning_gradwatch.reading.tables import STATUSES

_DEFAULTS = {field.name: field.default for field in fields(Alert) if field.default is not MISSING}
_LACKING: dict[str, object] = {"value": None, "threshold": None, **_DEFAULTS}
"""What the logs of older versions may lack of an alert."""


def run(options: argparse.Namespace) -> int:
    """Tell the alerts of every run.

    Returns:
        The exit status, as of a report: it speaks of all alerts, also of those that are left out.

    Raises:
        CommandError: If nothing there is watched.
    """
    logs, runs = runs_of(options)
    if options.json:
        document = encode(runs, options.run_dir, options.since)
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    else:
        blocks = ["\n".join(_in_words(logs.title(run), run, options.since)) for run in runs]
        sys.stdout.write(telling.fitted("\n\n".join(blocks), telling.columns()) + "\n")
    return exit_status(runs)


def encode(runs: Sequence[Run], directory: Place, since: int | None = None) -> dict[str, object]:
    """The alerts of runs as plain JSON; NaN and infinity are the words ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.

    Args:
        runs: The sickest first.
        directory: Where the logs lie.
        since: Leave out alerts that were over before this step; None for all.

    Returns:
        ``schema`` (rises only if something is taken away or changes its meaning), ``directory``, ``since``,
        ``exit_status`` and ``runs``: of each ``run``, ``path``, ``status``, ``headline``, ``num_open``, ``last_step``,
        ``wall_time``, ``state`` (whether it goes on: see ``State``), ``state_text`` (in a few words), ``alerts`` (the
        oldest first: ``state``, which is ``"open"`` or ``"over"``, and the fields of ``Alert``), ``num_dropped``
        (older alerts of which nobody knows more), ``damage`` (the fields of ``Damage``), and ``left_out`` (what the
        run went on without: the fields of ``LeftOut``).
    """
    content = {
        "schema": SCHEMA_VERSION,
        "directory": str(directory),
        "since": since,
        "exit_status": exit_status(runs),
        "runs": [_run(run, directory, since) for run in runs],
    }
    return dict(plain(content))


def _run(run: Run, directory: Place, since: int | None) -> dict[str, object]:
    return {
        "run": run.name,
        "path": str(directory if run.name == os.curdir else directory / run.name),
        "status": run.verdict.status,
        "headline": run.verdict.headline,
        "num_open": run.verdict.num_open,
        "last_step": run.last_step,
        "wall_time": run.wall_time,
        "state": run.state,
        "state_text": run.state_text,
        "alerts": [_alert(alert) for alert in _held(run, since)],
        "num_dropped": run.num_dropped,
        "damage": list(run.damage),
        "left_out": list(run.left_out),
    }


def _alert(alert: AlertRecord) -> dict[str, object]:
    lacking = {name: value for name, value in _LACKING.items() if name not in alert}
    return {"state": "open" if alert["until_step"] is None else "over", **alert, **lacking}


def _held(run: Run, since: int | None) -> list[AlertRecord]:
    """The alerts that held at a step, or at a later one."""
    return [a for a in run.alerts if since is None or a["until_step"] is None or a["until_step"] >= since]


def _in_words(title: str, run: Run, since: int | None) -> Iterator[str]:
    """A run and its alerts, those that matter most at first."""
    state = "" if run.state == "ended" else f" ({words.safe(run.state_text)})"
    yield f"{STATUSES[run.verdict.status].upper()}  {words.safe(title)}: {words.safe(run.verdict.headline)}{state}"
    yield from words.untold(run)
    held = sorted(_held(run, since), key=urgency)
    yield from (telling.in_lines(words.heading(alert), words.rows(alert)) for alert in held)
    if left_out := len(run.alerts) - len(held) + run.num_dropped:
        yield f"Left out: {left_out:,} older."
