"""Every task with every method and seed; what is done already is not done again."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.clipping.methods import HABIT, NONE, POLICIES, STABILIZER, SWEEP, Clipping
from benchmarks.clipping.tasks import TASKS

Key = tuple[str, str, str, int]
"""Task, case, method, seed."""
FIRST_SEED = 100  # the policies' defaults were chosen on others
FIRST = frozenset((NONE, *SWEEP, "band (the default)", "percentile (AutoClip)", "zscore (ZClip)"))
"""Methods without which there is no table."""
EARLY = 100
"""Steps after which the clipped ones count."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        first: The loss at its first step.
        final: Mean loss of its last tenth; the first where that is worse or no number, so that means exist.
        is_lost: Whether it was worse or no number.
        clipped: Share of the steps after the first hundred that were clipped.
    """

    first: float
    final: float
    is_lost: bool
    clipped: float


def train(task_name: str, case: str, method: str, seed: int) -> Run:
    """Train once; the seed decides the first weights and the batches, whatever the method."""
    torch.set_num_threads(1)
    task = next(task for task in TASKS if task.name == task_name).case(case)
    if task is None:
        raise ValueError(f"{task_name} has no {case} case")
    clipping = Clipping(method)
    losses = task[1](seed, clipping)
    final = statistics.fmean(losses[-max(1, len(losses) // 10) :])
    late = clipping.is_clipped[EARLY:]
    is_lost = not final < losses[0] or not math.isfinite(losses[-1])
    return Run(losses[0], losses[0] if is_lost else final, is_lost, statistics.fmean(late) if late else 1.0)


def methods(case: str) -> list[str]:
    """What is compared in a case: the sweep is for those at the edge."""
    own = [name for name in POLICIES if name not in SWEEP]
    return [NONE, *(SWEEP if case == "edge" else (HABIT,)), *own, STABILIZER]


def jobs(seeds: int, held_out: bool | None) -> Iterator[Key]:
    """All runs, seed by seed, so that what is cut short is whole for the first ones; what matters most comes first."""
    for group in (FIRST, frozenset(methods("edge")) - FIRST):
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            for task in TASKS:
                for case in ("healthy", "edge"):
                    if task.case(case) is not None and held_out in (None, task.is_held_out):
                        yield from ((task.name, case, method, seed) for method in methods(case) if method in group)


def run_all(seeds: int, workers: int, file: Path | None, held_out: bool | None) -> dict[Key, Run]:
    """Train whatever ``file`` does not hold yet, in processes of one thread each, and keep it there."""
    done = read(file) if file is not None and file.exists() else {}
    missing = [key for key in jobs(seeds, held_out) if key not in done]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for key, run in zip(missing, pool.map(train, *zip(*missing, strict=True)) if missing else (), strict=True):
            done[key] = run
            if file is not None:
                write(file, done)
    return done


def read(file: Path) -> dict[Key, Run]:
    """What an earlier call has left."""
    return {tuple(key): Run(**run) for key, run in json.loads(file.read_text(encoding="utf-8"))}


def write(file: Path, runs: dict[Key, Run]) -> None:
    """Replace the file in one go."""
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps([[key, asdict(run)] for key, run in runs.items()]), encoding="utf-8")
    os.replace(beside, file)
