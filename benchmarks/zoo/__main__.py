"""Runs the zoo and counts what GradWatch, and simpler rules beside it, find and raise wrongly.

Use: `python -m benchmarks.zoo [--seed 0] [--only NAME ...] [--workers 2] [--json FILE]`. The exit status is 1 if a
healthy case alarmed, a vanishing one was missed, or a run failed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_gradwatch import Alert

from . import CASES
from .processes import run_all
from .run import Outcome, run
from .table import report


def is_failure(outcome: Outcome) -> bool:
    """Whether this outcome alone fails the benchmark."""
    is_alarm = outcome.case.label == "healthy" and bool(outcome.loud)
    is_missed = "vanishing" in outcome.case.required and outcome.verdict.first_step is None
    return is_alarm or is_missed or bool(outcome.troubles)


def as_record(outcome: Outcome) -> dict[str, Any]:
    """An outcome with its label and verdict, for a file."""
    case = outcome.case
    label = {"label": case.label, "held_out": case.held_out, "onset": case.onset}
    kinds = {name: sorted(getattr(case, name)) for name in ("required", "acceptable", "causes")}
    alerts = [_alert_as_record(alert) for alert in outcome.alerts]
    return {**asdict(outcome), **label, **kinds, "alerts": alerts, "objections": outcome.objections}


def _alert_as_record(alert: Alert) -> dict[str, Any]:
    """An alert whose value, where it is not finite, is a string: JSON has no number for it."""
    return {**asdict(alert), "value": alert.value if math.isfinite(alert.value) else str(alert.value)}


def parse(parser: argparse.ArgumentParser, cases: Collection[str]) -> argparse.Namespace:
    """Read what is asked for of these cases; ``only`` holds each name once."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(cases), help="cases to run; by default all")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for every outcome in full")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.only) - set(cases))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}")
    if arguments.workers < 1:
        parser.error("--workers must be at least 1")
    arguments.only = list(dict.fromkeys(arguments.only))
    return arguments


def run_and_tell(run_one: Callable[[str, int], Outcome], arguments: argparse.Namespace) -> list[Outcome]:
    """Run the cases, print the tables, and write every outcome into the file that was asked for."""
    outcomes: list[Outcome] = run_all(run_one, arguments.only, arguments.seed, arguments.workers)
    print(report(outcomes))
    if arguments.json is not None:
        records = [as_record(outcome) for outcome in outcomes]
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "cases": records}, indent=1), encoding="utf-8")
    return outcomes


def main() -> int:
    """Read the arguments, run the cases and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=(__doc__ or "").split("\n\n")[0])
    outcomes = run_and_tell(run, parse(parser, CASES))
    return int(any(map(is_failure, outcomes)))


if __name__ == "__main__":
    sys.exit(main())
