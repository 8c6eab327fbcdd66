"""What GradWatch costs beside what people use instead, in one interleaved run.

Use: `python -m benchmarks.overhead [--quick] [--only mlp small cnn gpt] [--skip-limits] [--device cpu|cuda]
[--json FILE] [--chart FILE]`. The registry's `wandb`, `autoclip` and `zclip` join where they are
installed: `pip install -c constraints.txt -e '.[benchmarks,peers]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from . import limits
from .contestants import Contestant, available
from .race import Result, race
from .report import averages, chart, race_table, table
from .workloads import QUICK, WORKLOADS, Workload


def plan_limits(quick: bool) -> dict[str, Callable[[], Any]]:
    """What is measured beside the races, by its title."""
    return {
        "The physical limit: milliseconds on gradients in memory": lambda: limits.bandwidth(
            (1, 16) if quick else (1, 8, 64, 200)
        ),
        "Growth with the number of layers": lambda: limits.layers(
            (10, 100) if quick else (10, 30, 100, 300, 1000, 2000)
        ),
        "Host reads and copies of one step, 20 layers": limits.syncs,
        "Memory held between two steps": limits.memory,
        "TensorBoard's files": lambda: limits.disk(*((210, 250) if quick else (400, 800))),
        "Soak": lambda: [limits.soak(2000 if quick else 20_000)],
        "Import": lambda: [limits.imports()],
    }


def run_races(workloads: dict[str, Workload], contestants: list[Contestant], device: str) -> list[Result]:
    """Every workload, with a progress bar."""
    results: list[Result] = []
    with tqdm(total=len(workloads) * (len(contestants) + 1), unit="fit", disable=None) as bar:
        for workload in workloads.values():
            bar.set_description(workload.title)
            found = race(workload, contestants, device, bar.update)
            tqdm.write(race_table(found) + "\n")
            results += found
    return results


def main() -> None:
    """Read the arguments, run, print the tables, write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="the MLP alone and short limits, to see that it works")
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), help="which trainings")
    parser.add_argument("--skip-limits", action="store_true", help="the races alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for every figure")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="file for the chart, a PNG")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    started = time.perf_counter()
    contestants, left_out = available()
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {arguments.device} ({where})")
    print("\n".join(f"left out: {reason}" for reason in left_out))
    if arguments.device == "cpu":
        print("left out: CUDA, of which there is no device here; with one, --device cuda times steps by its events")
    workloads = QUICK if arguments.quick else {key: WORKLOADS[key] for key in arguments.only}
    results = run_races(workloads, contestants, arguments.device)
    print("GradWatch() by the kind of step, in percent of a bare step\n" + table(averages(results)) + "\n")
    record: dict[str, Any] = {"left out": left_out, "races": [asdict(result) for result in results], "limits": {}}
    if not arguments.skip_limits:
        torch.set_num_threads(os.cpu_count() or 1)  # the last race may have taken fewer
        for title, measure in plan_limits(arguments.quick).items():
            rows = measure()
            record["limits"][title] = rows
            print(f"{title}\n{table(rows)}\n", flush=True)
    print(f"took {time.perf_counter() - started:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    if arguments.chart is not None:
        chart(results, arguments.chart)


if __name__ == "__main__":
    main()
