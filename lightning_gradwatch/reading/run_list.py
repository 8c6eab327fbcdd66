"""The list of runs: how each is, whether it goes on, and which have the same layers."""

from __future__ import annotations

import hashlib
import time
from functools import lru_cache
from typing import TypedDict

from lightning_gradwatch.reading.schema import SCHEMA_VERSION
from lightning_gradwatch.reading.status import SICKEST_FIRST, State, Verdict, judge, state_of
from lightning_gradwatch.reading.store import Catalogue, Store
from lightning_gradwatch.reading.tables import Status


class RunRow(TypedDict):
    """How a run is, in the list of runs.

    Attributes:
        layers: What stands for the newest list of layers of each optimizer: the same for the same layers.
    """

    run: str
    status: Status
    headline: str
    num_open: int
    last_step: int | None
    wall_time: float
    stamp: str
    state: State
    state_text: str
    layers: dict[str, str]


class RunList(TypedDict):
    """Every run, the sickest first."""

    schema: int
    runs: list[RunRow]


def runs(store: Store) -> RunList:
    """Every run with its status, the sickest first, then the latest."""
    rows = [_row(run, catalogue) for run, catalogue in store.catalogues().items()]
    rows.sort(key=lambda row: (SICKEST_FIRST.index(row["status"]), -row["wall_time"], row["run"]))
    return {"schema": SCHEMA_VERSION, "runs": rows}


def _row(run: str, catalogue: Catalogue) -> RunRow:
    verdict = verdict_of(catalogue)
    end = catalogue.document.end if catalogue.document is not None else None
    state, state_text = state_of(end, catalogue.wall_time, time.time())
    return {
        "run": run,
        "status": verdict.status,
        "headline": verdict.headline,
        "num_open": verdict.num_open,
        "last_step": catalogue.last_step,
        "wall_time": catalogue.wall_time,
        "stamp": catalogue.stamp,
        "state": state,
        "state_text": state_text,
        "layers": layers_of(catalogue),
    }


def layers_of(catalogue: Catalogue) -> dict[str, str]:
    """What stands for the newest list of layers of each optimizer."""
    found = catalogue.optimizers
    newest = {name: catalogue.of(name, versions[-1]) for name, versions in found.items()}
    return {name: _mark(next(iter(series.values())).description.layers) for name, series in newest.items() if series}


@lru_cache(maxsize=256)
def _mark(layers: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(layers).encode()).hexdigest()[:16]


def verdict_of(catalogue: Catalogue) -> Verdict:
    """How a run is, by its alerts and by what of it cannot be read."""
    document = catalogue.document
    is_read = document is not None and not document.problem
    problem = document.problem if document is not None and document.problem else catalogue.problem
    problem = catalogue.damage[0]["message"] if catalogue.damage else problem
    problem = problem or (document.doubt if document is not None else "")
    alerts = document.alerts if document is not None and is_read else None
    return judge(alerts, catalogue.is_watched, problem, catalogue.last_step)
