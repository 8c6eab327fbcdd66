"""A prescription as plain text."""

from __future__ import annotations

import math
from textwrap import indent, wrap

from lightning_gradwatch.core.records import CLEAR_TIME
from lightning_gradwatch.trials.records import Prescription, Trial

WIDTH = 100
_RIGHT = 2
"""Columns from here on are numbers."""


def as_text(prescription: Prescription) -> str:
    """Diagnosis, headroom of the rate, table, the code of the first remedy, and what could not be tried.

    It is 100 columns wide at most, but for code.
    """
    parts = ["\n".join(wrap(prescription.diagnosis, WIDTH))]
    if prescription.headroom is not None:
        parts.append("\n".join(wrap(str(prescription.headroom), WIDTH)))
    if prescription.kind and not prescription.trials and not prescription.not_tried:
        parts.append("No remedy is known that could be tried on a copy.")
    if prescription.trials:
        parts.append("\n".join(_table(prescription)))
    best = prescription.best
    if best is not None and best.code:
        parts.append("\n".join([*wrap(f"{best.remedy}:", WIDTH), indent(best.code, "    ")]))
        if len(prescription.trials) > 1:
            parts.append('The code of the others: `.trials[i].code`, from 0 for the first row below "untreated".')
    why = {entry.why: [other.remedy for other in prescription.not_tried if other.why == entry.why]
           for entry in prescription.not_tried}  # fmt: skip
    lines = [wrap(f"{', '.join(names)}: {why}", WIDTH - 2, subsequent_indent="  ") for why, names in why.items()]
    if lines:
        parts.append("\n".join(["Not tried:", *(f"  {line}" for wrapped in lines for line in wrapped)]))
    return "\n\n".join(parts)


def cells(prescription: Prescription) -> list[tuple[str, ...]]:
    """The table: its header, the untreated model, and the remedies, the best first."""
    untreated, steps = prescription.untreated, prescription.num_steps
    header = (
        "remedy",
        "effect",
        "orders of magnitude lost",
        f"loss after {steps}" if steps else "loss",
        "parameters",
        "time",
    )
    rows: list[tuple[str, ...]] = [
        header,
        ("untreated", "", _decades(untreated.decades), _number(untreated.loss_after), "", ""),
    ]
    return rows + [_row(untreated, trial) for trial in prescription.trials]


def _table(prescription: Prescription) -> list[str]:
    rows = cells(prescription)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    return [line for row in rows for line in _laid_out(row, widths)]


def _row(untreated: Trial, trial: Trial) -> tuple[str, ...]:
    decades = f"{_decades(untreated.decades)} -> {_decades(trial.decades)}"
    time = _percent(trial.time_percent) if abs(trial.time_percent) >= CLEAR_TIME else ""
    costs = (_percent(trial.parameters_percent), time)
    return (trial.remedy, trial.effect, decades, _number(trial.loss_after), *costs)


def _laid_out(row: tuple[str, ...], widths: list[int]) -> list[str]:
    """A row as lines: what is too long for the first column goes on below."""
    name, *further = wrap(row[0], widths[0], subsequent_indent="  ")
    cells = [name, *row[1:]]
    aligned = [
        cell.rjust(w) if i >= _RIGHT else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return ["  ".join(aligned).rstrip(), *further]


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "diverged"


def _decades(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}".replace("-0.0", "0.0")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.0f} %".replace("-0 ", "+0 ")
