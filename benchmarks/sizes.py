"""What watching costs as a model grows, from 10 to 100,000 tensors.

Run ``python -m benchmarks.sizes`` (ten minutes on two CPU cores; ``--largest 10000`` takes two). The tensors are tiny,
two for each layer, so that what is measured is what each tensor costs, and not how large it is. Each row is a training
by Lightning with the defaults and a ``TensorBoardLogger``, in a process of its own. Time is the median of that in
GradWatch's own hooks: now and then Python's garbage collector comes on top, as in any training. Bytes are of the event
file, alerts and flight record; memory is what the process held at most beyond a bare training.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.operators import Operators
from benchmarks.overhead.race import quiet
from benchmarks.overhead.report import table
from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.detector import Detector

SIZES = (10, 100, 1_000, 10_000, 100_000)
DENSE, STEPS = 5, 45
"""Steps of the dense start, and of the training."""


class Tiny(pl.LightningModule):
    """Layers of two units side by side, two tensors each."""

    def __init__(self, num_tensors: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(num_tensors // 2)])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """A sum over all layers."""
        outputs = torch.stack([layer(batch) for layer in self.layers])
        return outputs.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Times(pl.Callback):
    """Own seconds of GradWatch in each step."""

    def __init__(self) -> None:
        self.own: list[float] = []
        self.sampled: list[bool] = []
        self.detector = 0.0
        self._spent, self._num_samples = 0.0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Read what the watch says of itself."""
        (watch,) = [callback for callback in trainer.callbacks if isinstance(callback, GradWatch)]  # type: ignore[attr-defined]
        session = watch._session
        assert session is not None
        (inner,) = session.watches
        spent, num_samples = session.guard.cost.spent, inner.watcher.sampling.num_samples
        self.own.append(spent - self._spent)
        self.sampled.append(num_samples > self._num_samples)
        self._spent, self._num_samples = spent, num_samples


class Counted(GradWatch):
    """Counts the operators of each step's look at the gradients."""

    counts: list[int]

    def on_before_optimizer_step(self, *args: Any, **options: Any) -> None:
        """Count."""
        with Operators() as operators:
            super().on_before_optimizer_step(*args, **options)
        self.counts.append(operators.seen.total())


def batches_of(num_steps: int) -> DataLoader[Any]:
    """One small batch for each step."""
    batches: Any = [torch.ones(1, 2)] * num_steps
    return DataLoader(batches, batch_size=None)


def trainer_of(directory: str, num_steps: int, *callbacks: Any) -> pl.Trainer:
    """With the defaults, but for what else would write or print."""
    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, max_steps=num_steps, callbacks=list(callbacks),
        logger=TensorBoardLogger(directory, name="", version=""), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def train(num_tensors: int, is_watched: bool) -> dict[str, float]:
    """One training; what it took."""
    torch.set_num_threads(1)
    batches = batches_of(STEPS)
    found: dict[str, float] = {}
    update = Detector.update
    times = Times()

    def timed(self: Detector, *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return update(self, *args, **options)
        finally:
            times.detector += time.perf_counter() - start

    Detector.update = timed  # type: ignore[method-assign]
    with TemporaryDirectory() as directory, quiet():
        callbacks = [GradWatch(dense_steps=DENSE), times] if is_watched else []
        start = time.perf_counter()
        trainer_of(directory, STEPS, *callbacks).fit(Tiny(num_tensors), batches)
        found["seconds"] = time.perf_counter() - start
        found["bytes"] = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if not is_watched:
        return found
    pairs = list(zip(times.own, times.sampled, strict=True))[DENSE:]
    found["first"] = times.own[0]
    for name, wanted in (("ordinary", False), ("sampled", True)):
        taken = [own for own, is_sampled in pairs if is_sampled is wanted]
        found[name] = statistics.median(taken)
    found["detector"] = times.detector / STEPS
    return found


def count(num_tensors: int) -> int:
    """Operators of an ordinary step."""
    torch.set_num_threads(1)
    watch = Counted(dense_steps=1, sample_every_n_steps=10**6)
    watch.counts = []
    with TemporaryDirectory() as directory, quiet():
        trainer_of(directory, 8, watch).fit(Tiny(num_tensors), batches_of(8))
    return watch.counts[5]


def in_a_process(*arguments: str) -> Any:
    """What this module prints for these arguments in a process of its own."""
    return json.loads(subprocess.check_output([sys.executable, "-m", "benchmarks.sizes", *arguments]))


def row_of(num_tensors: int) -> dict[str, Any]:
    """One row of the table."""
    bare = in_a_process("--train", str(num_tensors), "--bare")
    ours = in_a_process("--train", str(num_tensors))
    step = bare["seconds"] / STEPS
    return {
        "tensors": num_tensors,
        "bare step, ms": round(1e3 * step, 2),
        "ordinary step, us": round(1e6 * ours["ordinary"]),
        "per tensor, us": round(1e6 * ours["ordinary"] / num_tensors, 2),
        "operators": in_a_process("--count", str(num_tensors)),
        "sampled step, us": round(1e6 * ours["sampled"]),
        "sampled, per tensor, us": round(1e6 * ours["sampled"] / num_tensors, 1),
        "detector, us a step": round(1e6 * ours["detector"]),
        "first step, ms": round(1e3 * ours["first"], 1),
        "bytes a step": round((ours["bytes"] - bare["bytes"]) / STEPS),
        "memory, MB": round((ours["memory"] - bare["memory"]) / 1e6, 1),
    }


def main() -> None:
    """Read the arguments, measure, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--largest", type=int, default=max(SIZES), help="tensors of the largest model")
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(arguments.train, not arguments.bare)))
    elif arguments.count:
        print(count(arguments.count))
    else:
        print(table([row_of(size) for size in SIZES if size <= arguments.largest]))


if __name__ == "__main__":
    main()
