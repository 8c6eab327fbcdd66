"""Compares each contestant with the bare Trainer: both take turns, block by block, within one and the same training."""

from __future__ import annotations

import logging
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

ON_STEPS = 50
"""Steps of a block of a small training: as many as the default cadence has between two publications."""
_TRAINER = {"gradient_clip_val": None, "log_every_n_steps": 50}


@dataclass
class Block:
    """Some steps in a row.

    Attributes:
        wall: Seconds of a step, the mean; by events of the device where that is a GPU.
        cpu: Seconds that the process computed in a step, all threads together: what else the machine does is not in it.
        own: Seconds of a step that GradWatch says it took; 0 for others.
    """

    wall: float
    cpu: float
    own: float


class Turns(pl.Callback):
    """Puts a contestant into the Trainer and takes it out again, and times the blocks between: off, on, off, on, off.

    Args:
        contestant: How it is set up.
        callbacks: Its callbacks.
        block_steps: Steps of a block.
    """

    def __init__(self, contestant: Contestant, callbacks: Sequence[pl.Callback], block_steps: int) -> None:
        self._contestant = contestant
        self._callbacks = list(callbacks)
        self._watches = [c for c in callbacks if isinstance(c, GradWatch)]
        self._block_steps = block_steps
        self._is_on = True
        self._num_steps = 0
        self._before = (0.0, 0.0, 0.0)
        self.blocks: list[Block] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Take the time when a block is over, and change places."""
        self._num_steps += 1
        if self._num_steps % self._block_steps:
            return
        after = self._now(pl_module)
        if self.blocks or self._num_steps > self._block_steps:
            wall, cpu, own = (b - a for a, b in zip(self._before, after, strict=True))
            self.blocks.append(Block(wall / self._block_steps, cpu / self._block_steps, own / self._block_steps))
        if trainer.global_step < trainer.max_steps:
            self._change(trainer, pl_module)
        self._before = self._now(pl_module)

    def _change(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_on = not self._is_on
        trainer.callbacks = [*(self._callbacks if self._is_on else []), self]  # type: ignore[attr-defined]
        for name, value in _TRAINER.items():
            setattr(trainer, name, self._contestant.trainer.get(name, value) if self._is_on else value)
        for callback in self._callbacks:
            if hasattr(callback, "switch"):
                callback.switch(pl_module, self._is_on)
        trainer.logger.experiment.flush()  # type: ignore[union-attr]

    def _now(self, pl_module: pl.LightningModule) -> tuple[float, float, float]:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        own = sum(session.guard.cost.spent for watch in self._watches if (session := watch._session) is not None)
        return time.perf_counter(), time.process_time(), own


@dataclass
class Times:
    """What a contestant took.

    Attributes:
        blocks: Off and on by turns, off first and last.
        told: What GradWatch itself says, in percent.
    """

    blocks: list[Block] = field(default_factory=list)
    told: float | None = None


def run(workload: Workload, contestant: Contestant, device: str) -> Times:
    """Train once."""
    is_short = workload.is_large or contestant.is_dear
    block_steps = workload.num_dear_steps if is_short else ON_STEPS
    num_pairs = workload.num_pairs
    torch.set_num_threads(workload.num_threads)
    with TemporaryDirectory() as directory, quiet():
        callbacks = contestant.make(Path(directory))
        turns = Turns(contestant, callbacks, block_steps)
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            max_epochs=-1,
            max_steps=block_steps * (2 * num_pairs + 3),  # an on block to warm up, and one to end in
            logger=TensorBoardLogger(directory, name="", version=""),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, turns],
            **{**_TRAINER, **contestant.trainer},
        )
        batch = tuple(part.to(device) for part in workload.make_batch())
        trainer.fit(Task(workload), Repeat(batch))  # type: ignore[arg-type]
    told = [c._session.guard.cost.percent for c in callbacks if isinstance(c, GradWatch) and c._session is not None]
    return Times(turns.blocks[: 2 * num_pairs + 1], told[0] if told else None)


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
        ms: Milliseconds of a bare step, the median of the blocks without the contestant.
        percent: By how much more a step with it computed than without, in percent: the median over its blocks, each
            against the mean of the blocks before and behind it, so that a drift of the machine cancels out.
        spread: Half the width of the 95 % interval of that median.
        wall_percent: The same by the clock on the wall.
        wall_spread: Of that.
        own_percent: Time inside GradWatch's own hooks, in percent of the bare step; None for others.
        told_percent: What GradWatch itself says; None for others.
    """

    workload: str
    contestant: str
    family: str
    is_ours: bool
    ms: float
    percent: float
    spread: float
    wall_percent: float
    wall_spread: float
    own_percent: float | None
    told_percent: float | None


def race(workload: Workload, contestants: Sequence[Contestant], device: str, tick: Any) -> list[Result]:
    """All of them, one after the other, each by turns with the bare Trainer."""
    results = []
    for contestant in (BARE, *contestants):
        if contestant.takes_many_steps and workload.is_large:
            continue
        results.append(_compare(workload, contestant, run(workload, contestant, device)))
        tick()
    return results


def _compare(workload: Workload, contestant: Contestant, times: Times) -> Result:
    wall, wall_spread = _longer([block.wall for block in times.blocks])
    cpu, cpu_spread = _longer([block.cpu for block in times.blocks])
    bare = statistics.median(block.wall for block in times.blocks[::2])
    own = statistics.median(block.own for block in times.blocks[1::2])
    return Result(
        workload=workload.title,
        contestant=contestant.name,
        family=contestant.family,
        is_ours=contestant.is_ours,
        ms=1000 * bare,
        percent=cpu,
        spread=cpu_spread,
        wall_percent=wall,
        wall_spread=wall_spread,
        own_percent=100 * own / bare if contestant.is_ours else None,
        told_percent=times.told,
    )


def _longer(seconds: Sequence[float]) -> tuple[float, float]:
    """Percent by which every second number exceeds its neighbours: the median, and 1.57 IQR / sqrt(n) (McGill 1978)."""
    triples = zip(seconds[::2], seconds[1::2], seconds[2::2], strict=False)
    percents = [100 * (2 * on / (before + after) - 1) for before, on, after in triples]
    if len(percents) < 2:
        return percents[0], 0.0
    low, middle, high = statistics.quantiles(percents, n=4, method="inclusive")
    return middle, 1.57 * (high - low) / len(percents) ** 0.5
