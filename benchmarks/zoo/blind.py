"""The blind set: shapes and situations on which no rule was ever tuned, written without looking at any rule.

Use: `python -m benchmarks.zoo.blind [--seed 0] [--only NAME ...] [--workers 2] [--json FILE]` runs them as
`python -m benchmarks.zoo` runs the zoo; with `--losses` it trains them bare instead, without GradWatch, and prints the
loss at the start and at the end. The notes of the cases give these for seeds 0 and 1 (some give a reward or a gap
instead, where the loss says nothing). A label was given if it held for both; no verdict was looked at.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import replace

from benchmarks import zoo
from benchmarks.zoo import shapes_depth, shapes_heads, shapes_practice, shapes_sets, shapes_time, shapes_towers
from benchmarks.zoo.__main__ import parse, run_and_tell
from benchmarks.zoo.case import Case
from benchmarks.zoo.check_labels import ends, train
from benchmarks.zoo.run import Outcome, prepare
from benchmarks.zoo.run import run as run_case

FILES = (shapes_towers, shapes_sets, shapes_depth, shapes_heads, shapes_time, shapes_practice)
CASES: dict[str, Case] = {case.name: replace(case, held_out=True) for file in FILES for case in file.CASES}


def run(name: str, seed: int) -> Outcome:
    """Train a case of the blind set as the zoo trains its own."""
    zoo.CASES.update(CASES)  # the runner, which may be another process, looks them up there
    return run_case(name, seed)


def print_losses(names: list[str], seed: int) -> None:
    """Train cases without any watcher, and print their losses at the start and at the end."""
    prepare()
    warnings.filterwarnings("ignore")
    for name in names:
        losses, seconds = train(CASES[name], seed)
        (first, last), twin = ends(losses), CASES[name].twin or "-"
        line = f"{name:28} {CASES[name].label:10} {first:10.4g} -> {last:<10.4g} {seconds:5.1f} s  twin {twin}"
        print(line, flush=True)


def main() -> int:
    """Read the arguments, run the cases and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo.blind", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--losses", action="store_true", help="train bare and print the losses instead")
    arguments = parse(parser, CASES)
    if arguments.losses:
        print_losses(arguments.only, arguments.seed)
        return 0
    zoo.CASES.update(CASES)
    outcomes = run_and_tell(run, arguments)
    return int(any(outcome.objections for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
