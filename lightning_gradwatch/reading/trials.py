"""Remedies that were tried, from a log, as rows of text. Whatever is damaged is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_gradwatch.core.records import CLEAR_TIME

HEADER = ("remedy", "effect", "decades lost", "loss", "parameters", "time")
MAX_RECIPES = 3
Row = tuple[str, ...]


def shown(alert: Mapping[str, Any]) -> dict[str, Any]:
    """An alert as it is shown: what was tried is text under ``tried``."""
    prescription = alert.get("prescription")
    rest = {name: value for name, value in alert.items() if name != "prescription"}
    if not isinstance(prescription, Mapping):
        return rest
    return {
        **rest,
        "tried": {
            "title": summary(prescription),
            "caption": caption(prescription),
            "header": HEADER,
            "rows": rows_of(prescription),
            "recipes": recipes(prescription),
            "not_tried": not_tried(prescription),
        },
    }


def summary(prescription: Mapping[str, Any]) -> str:
    """How many remedies were tried, and how many helped."""
    trials = _items(prescription.get("trials"))
    num_helpful = sum(trial.get("effect") == "helps" for trial in trials)
    return f"{len(trials)} remedies tried on a copy of the model, {num_helpful or 'none'} of them helped"


def caption(prescription: Mapping[str, Any]) -> str:
    """How they were tried."""
    steps, seconds = prescription.get("num_steps"), prescription.get("seconds")
    how = f"{steps} steps each" if _is_finite(steps) and steps else "One backward pass each"
    took = f", {seconds:.1f} s in all" if _is_finite(seconds) else ""
    return f"{how}, on the batch of the alert{took}."


def rows_of(prescription: Mapping[str, Any]) -> list[Row]:
    """The untreated model and the remedies, the best first; columns as ``HEADER``."""
    untreated = prescription.get("untreated")
    rows = [("as it is", "", *_row(untreated)[2:4], "", "")] if isinstance(untreated, Mapping) else []
    return [*rows, *map(_row, _items(prescription.get("trials")))]


def recipes(prescription: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The best remedies that helped, each with its code."""
    helpful = [t for t in _items(prescription.get("trials")) if t.get("effect") == "helps" and t.get("code")]
    return [(str(trial.get("remedy")), str(trial["code"])) for trial in helpful[:MAX_RECIPES]]


def not_tried(prescription: Mapping[str, Any]) -> list[str]:
    """What could not be tried, and why."""
    return [f"{item.get('remedy')} ({item.get('why')})" for item in _items(prescription.get("not_tried"))]


def _items(found: object) -> list[Mapping[str, Any]]:
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, (list, tuple)) else []


def _row(trial: Mapping[str, Any]) -> Row:
    decades, time = trial.get("decades"), trial.get("time_percent")
    return (
        str(trial.get("remedy")),
        str(trial.get("effect")),
        f"{decades:.1f}" if _is_finite(decades) else "",
        _loss(trial.get("loss_after", "")),
        _change(trial.get("parameters_percent")),
        _change(time) if isinstance(time, (int, float)) and abs(time) >= CLEAR_TIME else "",
    )


def _loss(value: Any) -> str:
    if _is_finite(value):
        return f"{value:.3g}"
    return "diverged" if value in (None, "NaN", "Infinity") or isinstance(value, float) else ""


def _change(percent: Any) -> str:
    return "" if not _is_finite(percent) else f"{percent:+.0f} %" if round(percent) else "0 %"


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)
