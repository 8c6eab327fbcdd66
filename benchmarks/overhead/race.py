"""Runs contestants in turns, each in a Trainer of its own, and compares their steps with those of the bare Trainer."""

from __future__ import annotations

import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_gradwatch import GradWatch

from .contestants import BARE, Contestant
from .workloads import Repeat, Task, Workload

_HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
          "on_train_batch_end")  # fmt: skip


class Stopwatch(pl.Callback):
    """Takes the time at the end of each step; with events of the device where that is a GPU."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Take the time."""
        if pl_module.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(pl_module.device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of each step but the first."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if pairs and not isinstance(pairs[0][0], float):
            torch.cuda.synchronize()
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


@dataclass
class Times:
    """What a contestant took, round by round.

    Attributes:
        steps: Mean seconds of a step in each round.
        own: Mean seconds of a step inside the contestant's own hooks.
        told: What GradWatch itself says, in percent.
    """

    steps: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)


def time_hooks(callback: pl.Callback, spent: list[float]) -> None:
    """Add up the time inside a callback's hooks, step by step; a step begins with its first hook."""

    def timed(name: str, hook: Any) -> Any:
        def wrapper(*args: Any, **options: Any) -> None:
            watch = callback if name == "on_train_batch_end" and isinstance(callback, GradWatch) else None
            probe = watch._run.probe if watch is not None else None
            in_torch = probe.seconds if probe is not None else 0.0  # in the hooks on the layers
            start = time.perf_counter()
            hook(*args, **options)
            if name == "on_train_batch_start":
                spent.append(0.0)
            spent[-1] += time.perf_counter() - start + in_torch

        return wrapper

    for name in _HOOKS:
        setattr(callback, name, timed(name, getattr(callback, name)))


def trim(times: Sequence[float]) -> float:
    """The mean without the slowest hundredth, which is the machine's; samples and publications are more than that."""
    return statistics.fmean(sorted(times)[: math.ceil(len(times) * 0.99)]) if times else 0.0


def run(workload: Workload, contestant: Contestant, num_steps: int, device: str, times: Times) -> None:
    """Train once, and add what it took."""
    stopwatch, spent = Stopwatch(), [0.0]
    torch.set_num_threads(workload.num_threads)
    with TemporaryDirectory() as directory, quiet():
        callbacks = contestant.make(Path(directory))
        for callback in callbacks:
            time_hooks(callback, spent)
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            max_epochs=-1,
            max_steps=num_steps + 1,
            logger=TensorBoardLogger(directory, name="", version=""),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, stopwatch],
            **contestant.trainer,
        )
        batch = tuple(part.to(device) for part in workload.make_batch())
        trainer.fit(Task(workload), Repeat(batch))  # type: ignore[arg-type]
    num_warm = min(50, num_steps // 3)
    times.steps.append(trim(stopwatch.steps()[num_warm:]))
    times.own.append(trim(spent[2 + num_warm :]))
    told = [c._run.cost.percent for c in callbacks if isinstance(c, GradWatch)]
    times.told += [percent for percent in told if percent is not None]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the words of Lightning and its loggers."""
    for namespace in ("lightning.pytorch", "pytorch_lightning"):
        for name in (namespace, f"{namespace}.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Result:
    """A contestant in a workload.

    Attributes:
        ms: Milliseconds of a step, the median of the rounds.
        percent: By how much a step was longer than the bare Trainer's of the same round, in percent; the median.
        spread: Half the distance between the largest and the smallest of these.
        own_percent: Time inside its own hooks, in percent of the bare step.
        told_percent: What GradWatch itself says; None for others.
    """

    workload: str
    contestant: str
    family: str
    is_ours: bool
    ms: float
    percent: float
    spread: float
    own_percent: float
    told_percent: float | None


def race(workload: Workload, contestants: Sequence[Contestant], device: str, tick: Any) -> list[Result]:
    """All of them in turns, the bare Trainer first and again after every third."""
    times = {contestant.name: Times() for contestant in (BARE, *contestants)}
    for round_ in range(workload.num_rounds + 1):  # the first one warms up
        is_warm_up = round_ == 0
        if is_warm_up and workload.is_large:
            continue
        for contestant in (BARE, *contestants):
            num_steps = workload.num_dear_steps if contestant.is_dear or is_warm_up else workload.num_steps
            into = Times() if is_warm_up else times[contestant.name]
            run(workload, contestant, num_steps, device, into)
            tick()
    return [_compare(workload, contestant, times) for contestant in (BARE, *contestants)]


def _compare(workload: Workload, contestant: Contestant, times: dict[str, Times]) -> Result:
    own, bare = times[contestant.name], times[BARE.name]
    base = statistics.median(bare.steps)
    percents = [100 * (mine / other - 1) for mine, other in zip(own.steps, bare.steps, strict=True)]
    return Result(
        workload=workload.title,
        contestant=contestant.name,
        family=contestant.family,
        is_ours=contestant.is_ours,
        ms=1000 * statistics.median(own.steps),
        percent=statistics.median(percents),
        spread=(max(percents) - min(percents)) / 2,
        own_percent=100 * statistics.median(own.own) / base,
        told_percent=statistics.median(own.told) if own.told else None,
    )
