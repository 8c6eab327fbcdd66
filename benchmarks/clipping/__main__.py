"""What each clipping policy does to a healthy training, and to one at the edge; and what a call costs.

Twenty small trainings (recurrent, attention, convolutions, plain and residual MLPs, a VAE, GANs, PPO, actor and critic,
bad batches; plain and momentum SGD, Adam, AdamW, Muon; with warm-up, schedule and accumulation), healthy, and at a rate
at which they fall apart unclipped. Each seed gives all methods the same weights and the same batches.

- Harm: how much of the unclipped run's progress is lost where all was well, in percent of it.
- Rescue: how much of what the best fixed norm of a sweep gains over no clipping is gained, in percent of it, from 0 to
  100. That norm is the best on these very seeds: it has been told what an adaptive policy has to find out.

Intervals are those of the mean at 95 %, over tasks where several are in one figure, over seeds otherwise. Seven of the
trainings are held out: they were written after the default's numbers had been chosen on the others, their rates were
found with no clipping and fixed norms, and no number has been changed since.

Use: `python -m benchmarks.clipping [--seeds 5] [--workers 2] [--json FILE] [--quick]`; FILE keeps every run, and what
it holds is not run again. `python -m benchmarks.clipping --cost` for the milliseconds; the registry's `autoclip` and
`zclip` join where they are installed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from benchmarks.clipping.cost import cost_table, gpt_shapes, time_all
from benchmarks.clipping.race import run_all
from benchmarks.clipping.table import Table


def main() -> None:
    """Read the arguments, run, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clipping", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument(
        "--held-out", action=argparse.BooleanOptionalAction, help="only the tasks held out, or the others"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, to see that it works")
    parser.add_argument("--cost", action="store_true", help="time one call instead")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each contestant")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for every run, or every time")
    arguments = parser.parse_args()
    started = time.perf_counter()
    if arguments.cost:
        report_cost(arguments.quick, arguments.rounds, arguments.json)
    else:
        seeds = 1 if arguments.quick else arguments.seeds
        runs = run_all(seeds, arguments.workers, arguments.json, arguments.held_out)
        for is_held_out in (False, True):
            if arguments.held_out in (None, is_held_out):
                table = Table(runs, is_held_out)
                print("## held out\n" if is_held_out else "## chosen on\n")
                print("\n\n".join([table.summary(), table.details("healthy"), table.details("edge")]) + "\n")
    print(f"\ntook {time.perf_counter() - started:.0f} s")


def report_cost(is_quick: bool, rounds: int, file: Path | None) -> None:
    """Time a network of 100 million numbers, and one of so many tensors with next to nothing in them."""
    shapes = gpt_shapes(256, 2) if is_quick else gpt_shapes()
    title = f"{sum(map(math.prod, shapes)) / 1e6:.0f} million numbers in {len(shapes)} tensors, one thread"
    sizes: dict[str, tuple[Any, float]] = {
        f"{title}, all is clipped but by value": (shapes, 1e-3),
        f"{title}, nothing is clipped but by AdaGC": (shapes, 1e-6),
        "what remains for 146 tensors of 10 numbers": ([(10,)] * 146, 1e-3),
    }
    timed = {name: time_all(of_each, rounds, size) for name, (of_each, size) in sizes.items()}
    print("\n\n".join(cost_table(name, milliseconds) for name, milliseconds in timed.items()))
    if file is not None:
        file.write_text(json.dumps(timed), encoding="utf-8")


if __name__ == "__main__":
    main()
