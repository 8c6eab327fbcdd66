"""``gradwatch snapshot``: all layers around a step, as a table, or as JSON for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning_gradwatch.cli import words
from lightning_gradwatch.cli.around import around, span
from lightning_gradwatch.cli.choice import exit_status, runs_of, the_one
from lightning_gradwatch.cli.errors import CommandError
from lightning_gradwatch.cli.logs import OpenRun
from lightning_gradwatch.core import telling
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.several import HISTOGRAM
from lightning_gradwatch.paths import Place
from lightning_gradwatch.reading.percentiles import PERCENTS
from lightning_gradwatch.reading.schema import SCHEMA_VERSION

_GAP = "  "
Column = tuple[str, str, list[str]]
"""What it shows, of which steps, and a cell for each layer."""


def run(options: argparse.Namespace) -> int:
    """Show what is known of all layers around a step.

    Returns:
        The exit status, as of a report.

    Raises:
        CommandError: If there are several runs, or none, or no such step.
    """
    logs, runs = runs_of(options)
    whole = logs.open(the_one(runs, options.run_dir))
    step = _step(whole, options.step, options.run_dir)
    document = encode(whole, step, options.run_dir)
    if options.json:
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    else:
        sys.stdout.write("\n".join(_in_words(logs.title(whole.run), document)) + "\n")
    return int(document["exit_status"])


def encode(run: OpenRun, step: int, directory: Place) -> dict[str, Any]:
    """A run around a step as plain JSON.

    Args:
        run: The run.
        step: The step.
        directory: Where the logs lie.

    Returns:
        ``schema`` (rises only if something is taken away or changes its meaning), ``directory``, ``run``, ``path``,
        ``exit_status``, ``status``, ``headline``, ``last_step``, ``step`` (the one that is meant) and ``optimizers``,
        as ``around`` has them.
    """
    name, verdict = run.run.name, run.run.verdict
    return {
        "schema": SCHEMA_VERSION,
        "directory": str(directory),
        "run": name,
        "path": str(directory if name == os.curdir else directory / name),
        "exit_status": exit_status([run.run]),
        "status": verdict.status,
        "headline": verdict.headline,
        "last_step": run.run.last_step,
        "step": step,
        "optimizers": around(run, step),
    }


def _step(run: OpenRun, step: int | None, directory: Place) -> int:
    """The step that is meant.

    Raises:
        CommandError: If no layer is known, or none at that step.
    """
    known = span(run)
    if known is None:
        raise CommandError(
            f"`RUN_DIR` must hold a run of which layers are on record, but {str(directory)!r} came, which holds only "
            "alerts. To cure it: leave `record` of GradWatch as it is, and train for a step at least."
        )
    first, last = known
    if step is not None and not first <= step <= last:
        raise CommandError(
            f"`--step` must be from {first} to {last}, the steps on record, but {step} came. "
            "To cure it: give one of these, or leave it out for the last one."
        )
    return last if step is None else step


def _in_words(title: str, document: dict[str, Any]) -> Iterator[str]:
    head = f"Step {document['step']:,} of {title}. {document['headline']}"
    yield telling.fitted(words.safe(head), telling.columns())
    for optimizer in document["optimizers"]:
        yield ""
        if optimizer["name"]:
            yield f"Optimizer {words.safe(optimizer['name'])}"
        for name, number in optimizer["numbers"].items():
            yield f"{words.safe(name)}: {_range(number)} ({_when(number)})"
        yield from _table([words.safe(layer["layer"]) for layer in optimizer["layers"]], list(_columns(optimizer)))


def _columns(optimizer: dict[str, Any]) -> Iterator[Column]:
    layers = optimizer["layers"]
    for quantity, steps in optimizer["samples"].items():
        name, when = words.safe(quantity), _when(steps)
        if quantity == HISTOGRAM.name:
            for percent in PERCENTS:
                found = [layer["histogram"] or {} for layer in layers]
                yield f"|g| p{percent}", when, [_cell(one.get(f"p{percent}")) for one in found]
        elif quantity == GRAD_NORM.name and steps["num_steps"] > 1:
            for end in ("low", "mean", "high"):
                yield f"{name} {end}", when, [_cell(layer["grad_norm_range"][end]) for layer in layers]
        else:
            yield name, when, [_cell(layer["values"][quantity]) for layer in layers]


def _table(names: Sequence[str], columns: Sequence[Column]) -> Iterator[str]:
    """The layers in rows; where the columns are too many for the window, one table below the other."""
    left = _aligned(["", "", *names], str.ljust)
    cells = [_aligned([head, when, *column], str.rjust) for head, when, column in columns]
    for block in _blocks(cells, telling.columns() - len(left[0])):
        yield ""
        yield from (_GAP.join(row).rstrip() for row in zip(left, *block, strict=True))


def _blocks(columns: Sequence[list[str]], room: int) -> Iterator[list[list[str]]]:
    """As many columns at once as there is room for, one at least."""
    block, taken = list[list[str]](), 0
    for column in columns:
        width = len(_GAP) + len(column[0])
        if block and taken + width > room:
            yield block
            block, taken = [], 0
        block.append(column)
        taken += width
    if block:
        yield block


def _aligned(cells: Sequence[str], align: Callable[[str, int], str]) -> list[str]:
    width = max(map(len, cells))
    return [align(cell, width) for cell in cells]


def _cell(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else words.short(value)


def _range(number: dict[str, Any]) -> str:
    """A number, or of several steps the mean and what it lies between."""
    low, mean, high = (_cell(number[end]) for end in ("low", "mean", "high"))
    return mean if number["num_steps"] == 1 else f"{mean}, from {low} to {high}"


def _when(steps: dict[str, Any]) -> str:
    first, last = steps["step"], steps["last_step"]
    return f"step {first:,}" if first == last else f"steps {first:,}-{last:,}"
