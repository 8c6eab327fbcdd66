"""Trains every case bare and checks that its label is honest.

Use: `python -m benchmarks.zoo.check_labels [--seed 0] [case or file ...]`.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
import time
import warnings
from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from . import CASES, FILES, NOT_JUDGED_BY_LOSS
from .case import Case

Losses = list[float]


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
        return "" if falls or case.name in NOT_JUDGED_BY_LOSS else "DOES NOT LEARN"
    if case.twin is None:
        return ""
    twin_first, twin_last = ends(runs[case.twin][0])
    worse = not last <= (twin_first + twin_last) / 2
    return "" if worse or case.label == "borderline" else "NOT WORSE THAN ITS TWIN"


def main(wanted: list[str], seed: int) -> int:
    """Run the wanted cases or files of cases (by default all) with their twins and print a table."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    chosen = [
        case
        for file in FILES
        for case in file.CASES
        if not wanted or case.name in wanted or file.__name__.split(".")[-1] in wanted
    ]
    runs: dict[str, tuple[Losses, float]] = {}
    objections = 0
    for case in chosen:
        for name in filter(None, (case.name, case.twin)):
            if name not in runs:
                runs[name] = train(CASES[name], seed)
        objection = verdict(case, runs)
        objections += bool(objection)
        (first, last), seconds = ends(runs[case.name][0]), runs[case.name][1]
        twin = "{:.4g} -> {:.4g}".format(*ends(runs[case.twin][0])) if case.twin else "-"
        line = f"{case.name:28} {case.label:10} {first:10.4g} -> {last:<10.4g} twin {twin:24} {seconds:4.1f} s"
        print(line, objection, flush=True)
    print(Counter(c.label for c in chosen), f"{sum(s for _, s in runs.values()):.0f} s, {objections} objections")
    return int(objections > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="cases or files; by default all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(main(arguments.names, arguments.seed))
