"""Remedies that were tried, from a log, as rows of text. Whatever is damaged is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypedDict, TypeGuard, cast

from lightning_gradwatch.core.records import CLEAR_TIME
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.born import Born, born_of
from lightning_gradwatch.reading.lost import Lost, lost_of

HEADER = ("remedy", "effect", "orders of magnitude lost", "loss", "parameters", "time")
MAX_RECIPES = 3
Row = tuple[str, ...]


class Tried(TypedDict):
    """What was tried against an alert, as text; ``rows`` have the columns of ``header``."""

    title: str
    caption: str
    headroom: str
    order: str
    header: Row
    rows: list[Row]
    recipes: list[tuple[str, str]]
    not_tried: list[str]


class ShownAlert(AlertRecord, total=False):
    """An alert as it is shown; ``rank`` among those of its run, 0 matters most."""

    tried: Tried
    where: Lost
    born: Born
    rank: int


def shown(alert: AlertRecord) -> ShownAlert:
    """An alert as it is shown: with ``tried``, ``where`` and ``born`` for what a log has in more detail."""
    rest = cast(ShownAlert, dict(alert))  # what it has more is not there yet, and need not be
    prescription = rest.pop("prescription", None)
    rest.pop("attribution", None)
    rest.pop("birth", None)
    if (where := lost_of(alert)) is not None:
        rest["where"] = where
    if (born := born_of(alert)) is not None:
        rest["born"] = born
    if isinstance(prescription, Mapping):
        rest["tried"] = {
            "title": summary(prescription),
            "caption": caption(prescription),
            "headroom": headroom(prescription),
            "order": order(prescription),
            "header": HEADER,
            "rows": rows_of(prescription),
            "recipes": recipes(prescription),
            "not_tried": not_tried(prescription),
        }
    return rest


def summary(prescription: Mapping[str, object]) -> str:
    """How many remedies were tried, and how many helped."""
    trials = _items(prescription.get("trials"))
    num_helpful = sum(trial.get("effect") == "helps" for trial in trials)
    return f"{len(trials)} remedies tried on a copy of the model, {num_helpful or 'none'} of them helped"


def caption(prescription: Mapping[str, object]) -> str:
    """How they were tried."""
    steps, seconds = prescription.get("num_steps"), prescription.get("seconds")
    how = f"{steps} steps each" if _is_finite(steps) and steps else "One backward pass each"
    took = f", {seconds:.1f} s in all" if _is_finite(seconds) else ""
    return f"{how}, on the batch of the alert{took}."


def headroom(prescription: Mapping[str, object]) -> str:
    """How far the learning rate is from the edge, in a sentence; empty where that was not measured."""
    found = prescription.get("headroom")
    text = found.get("text") if isinstance(found, Mapping) else None
    return text if isinstance(text, str) else ""


def order(prescription: Mapping[str, object]) -> str:
    """Why they stand in this order, in sentences; see ``ranked``."""
    steps = prescription.get("num_steps")
    if not (_is_finite(steps) and steps):
        return "What helps comes first, and of that what leaves least of the gradient lost."
    return (
        "What helps comes first. A lower loss may stand below a higher one: after so few steps it does not tell which "
        "remedy is better in the end. Of all that gain nearly as much as the best, what takes away the cause and "
        "changes the network least comes first; where no loss tells, a restored gradient does."
    )


def rows_of(prescription: Mapping[str, object]) -> list[Row]:
    """The untreated model and the remedies, the best first; columns as ``HEADER``."""
    untreated = prescription.get("untreated")
    rows = [("as it is", "", *_row(untreated)[2:4], "", "")] if isinstance(untreated, Mapping) else []
    return [*rows, *map(_row, _items(prescription.get("trials")))]


def recipes(prescription: Mapping[str, object]) -> list[tuple[str, str]]:
    """The best remedies that helped, each with its code."""
    helpful = [t for t in _items(prescription.get("trials")) if t.get("effect") == "helps" and t.get("code")]
    return [(str(trial.get("remedy")), str(trial["code"])) for trial in helpful[:MAX_RECIPES]]


def not_tried(prescription: Mapping[str, object]) -> list[str]:
    """What could not be tried, and why."""
    return [f"{item.get('remedy')} ({item.get('why')})" for item in _items(prescription.get("not_tried"))]


def _items(found: object) -> list[Mapping[str, object]]:
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, (list, tuple)) else []


def _row(trial: Mapping[str, object]) -> Row:
    decades, time = trial.get("decades"), trial.get("time_percent")
    return (
        str(trial.get("remedy")),
        str(trial.get("effect")),
        f"{decades:.1f}" if _is_finite(decades) else "",
        _loss(trial.get("loss_after", "")),
        _change(trial.get("parameters_percent")),
        _change(time) if isinstance(time, (int, float)) and abs(time) >= CLEAR_TIME else "",
    )


def _loss(value: object) -> str:
    if _is_finite(value):
        return f"{value:.3g}"
    return "diverged" if value in (None, "NaN", "Infinity") or isinstance(value, float) else ""


def _change(percent: object) -> str:
    return "" if not _is_finite(percent) else f"{percent:+.0f} %" if round(percent) else "0 %"


def _is_finite(number: object) -> TypeGuard[float]:
    return isinstance(number, (int, float)) and math.isfinite(number)
