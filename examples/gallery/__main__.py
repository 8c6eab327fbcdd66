"""Run the whole gallery: every network people know, sick and cured, and what GradWatch says about each.

    python examples/gallery [--only ROW ...] [--steps N] [--workers 2] [--directory D]

Writes ``gallery.md``, ``gallery.json`` and a picture per row to the directory. If packages of a row are missing, the
row is skipped and says so. The exit status is 1 if a verdict is not what it should be. Runs cut short are not judged.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import Outcome, Pair, Row, draw, load, objections, train_by_name
from tqdm import tqdm  # type: ignore[import-untyped]

ROWS = (
    *("mlp", "cnn", "rnn", "translation", "language_model", "detector"),
    *("gan", "vae", "unet", "moe", "lora", "half_precision"),
)
HEADER = """| system | sick | GradWatch says | first alert | loss | cured | GradWatch says | loss |
|---|---|---|---|---|---|---|---|"""


def run_all(rows: Iterable[Row], directory: Path, steps: int | None, workers: int) -> dict[str, dict[str, Outcome]]:
    """Train all networks of all rows, with a progress bar; outcomes by row and network, in their order."""
    jobs = [(row, index) for row in rows for index in range(len(row.networks))]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(train_by_name, row.name, index, directory, steps) for row, index in jobs]
        for _ in tqdm(as_completed(runs), total=len(runs), unit="network", disable=None):
            pass
    outcomes: dict[str, dict[str, Outcome]] = {}
    for (row, _), run in zip(jobs, runs, strict=True):
        outcomes.setdefault(row.name, {})[run.result().name] = run.result()
    return outcomes


def lines(row: Row, pair: Pair, outcomes: dict[str, Outcome], is_judged: bool) -> list[str]:
    """A pair in the table: the sick network once, then a line for each cure."""
    sick = outcomes[pair.sick.name]
    first = sick.first_alert
    said, step = (f"**{first.kind}**: {first.cause}", f"step {first.step}") if first else ("silent", "none")
    said += " (wrong)" if is_judged and sick.objections(pair) else ""
    cells = [row.title, sick.name, said, step, figure(sick.final_loss)]
    table = []
    for cure in pair.cures:
        cured = outcomes[cure.name]
        table.append("| " + " | ".join([*cells, cured.name, cured.verdict, figure(cured.final_loss)]) + " |")
        cells = [""] * len(cells)
    return table


def figure(number: float) -> str:
    """Three digits, or that there is no number."""
    return f"{number:.3g}" if math.isfinite(number) else "not finite"


def record(row: Row, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """A row for the file."""
    pairs = [
        {
            "sick": entry(outcomes[pair.sick.name]),
            "cured": [entry(outcomes[cure.name]) for cure in pair.cures],
            "right": {"kinds": pair.kinds.split(), "causes": pair.causes.split()},
            "objections": objections(pair, outcomes),
        }
        for pair in row.pairs
    ]
    return {"row": row.name, "title": row.title, "measure": row.measure, "pairs": pairs}


def entry(outcome: Outcome) -> dict[str, Any]:
    """A network for the file."""
    first = outcome.first_alert
    return {
        "name": outcome.name,
        "silent": not outcome.alerts,
        "kind": first.kind if first else None,
        "cause": first.cause if first else None,
        "first_alert_step": first.step if first else None,
        "loss": finite_or_text(outcome.final_loss),
        "steps": len(outcome.losses),
        "seconds": round(outcome.seconds, 1),
        "alerts": [{**asdict(alert), "value": finite_or_text(alert.value)} for alert in outcome.alerts],
    }


def finite_or_text(number: float) -> float | str:
    """JSON has no number for what is not finite."""
    return number if math.isfinite(number) else str(number)


def main() -> int:
    """Read the arguments, run the rows, write table, file and pictures."""
    parser = argparse.ArgumentParser(prog="python examples/gallery", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--directory", type=Path, default=Path("gallery_logs"), help="where everything goes")
    parser.add_argument("--steps", type=int, help="optimizer steps of each training; by default the row's own")
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="rows; by default all"
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    arguments = parser.parse_args()
    loaded = {name: load(name) for name in arguments.only}
    rows = [row for row in loaded.values() if isinstance(row, Row)]
    outcomes = run_all(rows, arguments.directory, arguments.steps, arguments.workers)
    table, wrong, is_judged = [HEADER], [], arguments.steps is None
    for row in rows:
        draw(row, outcomes[row.name], arguments.directory / f"{row.name}.png")
        for pair in row.pairs:
            table += lines(row, pair, outcomes[row.name], is_judged)
            wrong += [f"{row.name}: {text}" for text in objections(pair, outcomes[row.name]) if is_judged]
    skipped = [f"{name} is skipped: {why}" for name, why in loaded.items() if isinstance(why, str)]
    text = "\n".join([*table, "", *skipped, *(f"Not as it should be: {text}" for text in wrong)])
    (arguments.directory / "gallery.md").write_text(text + "\n", encoding="utf-8")
    records = [record(row, outcomes[row.name]) for row in rows]
    whole = {"rows": records, "skipped": skipped}
    (arguments.directory / "gallery.json").write_text(json.dumps(whole, indent=1, allow_nan=False), encoding="utf-8")
    print(text)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
