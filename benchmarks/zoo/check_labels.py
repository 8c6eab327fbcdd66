"""Trains every case bare and checks that its label is honest.

Use: `python -m benchmarks.zoo.check_labels [--seed 0] [--threads 1] [case or file ...]`, or with `--matrix` instead of
these two: five seeds, with one thread and with two, by every kind of kernels that this processor has. A label that does
not hold in all of these hangs on the last bits of a sum. The matrix of all cases takes hours.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from . import CASES, FILES, NOT_JUDGED_BY_LOSS
from .case import Case
from .kernels import Arithmetic, all_here

SEEDS = range(5)
Losses = list[float]
_DOES_NOT_LEARN, _IS_NOT_WORSE = "DOES NOT LEARN", "NOT WORSE THAN ITS TWIN"


class Recorder(Callback):
    """Keeps the loss of every batch."""

    def __init__(self) -> None:
        self.losses: Losses = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss."""
        self.losses.append(float(outputs["loss"]))


def train(case: Case, seed: int) -> tuple[Losses, float]:
    """The losses and the seconds of one bare run."""
    seed_everything(seed, verbose=False)
    start = time.perf_counter()
    task = case.build()
    recorder = Recorder()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=case.steps, max_epochs=-1, callbacks=[recorder], **quiet, **task.trainer
    )
    trainer.fit(task.module, task.data)
    return recorder.losses, time.perf_counter() - start


def ends(losses: Losses) -> tuple[float, float]:
    """The loss at the start and at the end: medians over a few steps."""
    few = min(10, max(1, len(losses) // 20))
    first, last = losses[:few], losses[-2 * few :]
    return statistics.median(first), statistics.median(last) if all(map(math.isfinite, last)) else math.nan


def verdict(case: Case, runs: dict[str, tuple[Losses, float]]) -> str:
    """An objection to the label, or nothing."""
    first, last = ends(runs[case.name][0])
    if case.label == "healthy":
        falls = first - last >= 0.15 * abs(first) if first > 0 else last < first
        return "" if falls or case.name in NOT_JUDGED_BY_LOSS else _DOES_NOT_LEARN
    if case.twin is None:
        return ""
    twin_first, twin_last = ends(runs[case.twin][0])
    worse = not last <= (twin_first + twin_last) / 2
    return "" if worse or case.label == "borderline" else _IS_NOT_WORSE


def chosen(wanted: list[str]) -> list[Case]:
    """The cases of these names and files; all without any.

    Raises:
        ValueError: If there is no case and no file of such a name.
    """
    of_files = {file.__name__.split(".")[-1]: file.CASES for file in FILES}
    unknown = [name for name in wanted if name not in CASES and name not in of_files]
    if unknown:
        raise ValueError(f"no such case or file: {', '.join(unknown)}; the files are {', '.join(of_files)}")
    pairs = [(file, case) for file, cases in of_files.items() for case in cases]
    return [case for file, case in pairs if not wanted or case.name in wanted or file in wanted]


def check(cases: list[Case], seed: int) -> int:
    """Run cases with their twins, print a table, and return how many labels do not hold."""
    runs: dict[str, tuple[Losses, float]] = {}
    objections = 0
    for case in cases:
        for name in filter(None, (case.name, case.twin)):
            if name not in runs:
                runs[name] = train(CASES[name], seed)
        objection = verdict(case, runs)
        objections += bool(objection)
        (first, last), seconds = ends(runs[case.name][0]), runs[case.name][1]
        twin = "{:.4g} -> {:.4g}".format(*ends(runs[case.twin][0])) if case.twin else "-"
        line = f"{case.name:28} {case.label:10} {first:10.4g} -> {last:<10.4g} twin {twin:24} {seconds:4.1f} s"
        print(line, objection, flush=True)
    print(Counter(c.label for c in cases), f"{sum(s for _, s in runs.values()):.0f} s, {objections} objections")
    return objections


def check_everywhere(names: list[str], seeds: Iterable[int], arithmetics: Iterable[Arithmetic]) -> int:
    """Check cases in a process per seed and way to compute, and return how many of these runs objected or failed."""
    failed = 0
    for arithmetic in arithmetics:
        for seed in seeds:
            command = [sys.executable, "-m", __spec__.name, "--seed", str(seed), "--threads", str(arithmetic.threads)]
            environment = {**os.environ, **arithmetic.environment}
            child = subprocess.run([*command, *names], env=environment, capture_output=True, text=True, check=False)
            failed += child.returncode != 0
            print(f"{arithmetic}, seed {seed}: {_objections(child)}", flush=True)
    print(f"{failed} runs with an objection")
    return failed


def _objections(child: subprocess.CompletedProcess[str]) -> str:
    """The lines of a run that object; what a failed one says without any."""
    if child.returncode == 0:
        return "every label holds"
    objections = [line for line in child.stdout.splitlines() if line.endswith((_DOES_NOT_LEARN, _IS_NOT_WORSE))]
    return "".join(f"\n    {line}" for line in objections) or f"the run failed:\n{child.stderr}"


def main() -> int:
    """Read the arguments and check; the exit status is 1 if a label does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo.check_labels", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases or files; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--matrix", action="store_true", help="all seeds, threads and kernels; takes hours for all cases"
    )
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    try:
        cases = chosen(arguments.names)
    except ValueError as failure:
        parser.error(str(failure))
    if arguments.matrix:
        return int(check_everywhere([case.name for case in cases], SEEDS, all_here()) > 0)
    torch.set_num_threads(arguments.threads)
    return int(check(cases, arguments.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
