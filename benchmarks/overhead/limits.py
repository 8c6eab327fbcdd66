"""What cannot be seen in a race: the physical limit, growth with the model and with time, memory, disk, imports."""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.clip import make_policies
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher

from ..operators import Operators
from .race import quiet
from .workloads import WORKLOADS, Repeat, Task, mlp

NEVER = 10**6
Row = dict[str, Any]


def in_turns(calls: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of each call, made in turns; the first two rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ > 1:
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def with_gradients(shapes: Sequence[tuple[int, ...]]) -> nn.ParameterList:
    """Parameters of these shapes with random gradients."""
    torch.manual_seed(0)
    parameters = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return parameters


def watcher_of(model: nn.Module, policy: Any = None, every: int = NEVER) -> Watcher:
    """A watcher with an optimizer; no sample is due unless asked for."""
    settings = Settings(Schedule(0, every), policies=make_policies(policy))
    return Watcher(model, torch.optim.SGD(model.parameters(), 0.0), settings)


def bandwidth(millions: Sequence[int]) -> list[Row]:
    """The norms of every step beside the time in which the memory can be read once, and clipping beside torch's."""
    rows = []
    for size in millions:
        model = with_gradients([(1024, 1024)] * size)
        flat = torch.randn(size * 1024 * 1024)
        watch, clip = watcher_of(model), watcher_of(model, 1.0)
        parameters = list(model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        ms = in_turns(
            {
                "read once": flat.sum,
                "GradWatch, an ordinary step": watch.observe,
                "get_total_norm": partial(torch.nn.utils.get_total_norm, gradients),
                "clip_grad_norm_": partial(torch.nn.utils.clip_grad_norm_, parameters, 1.0, foreach=True),
                "GradWatch(auto_clip=1.0)": clip.observe,
            }
        )
        gigabytes = 4 * flat.numel() / 1e9
        rows.append(
            {
                "parameters": f"{flat.numel() / 1e6:.0f}M",
                "GB/s": round(gigabytes / ms["read once"] * 1000, 1),
                **{name: round(number, 3) for name, number in ms.items()},
                "to reading": round(ms["GradWatch, an ordinary step"] / ms["read once"], 2),
                "clipping to torch's": round(ms["GradWatch(auto_clip=1.0)"] / ms["clip_grad_norm_"], 2),
            }
        )
    return rows


def layers(depths: Sequence[int]) -> list[Row]:
    """Microseconds of a step's parts as the number of layers grows (32 units, in a hand-written loop)."""
    rows = []
    for depth in depths:
        model, x = mlp(depth, 32), torch.randn(16, 32)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)
        ordinary, sampled = watcher_of(model), watcher_of(model, every=1)

        def step(watcher: Watcher | None, model: nn.Module = model, x: Tensor = x, opt: Any = optimizer) -> None:
            if watcher is not None:
                watcher.arm()
            loss = model(x).square().mean()
            opt.zero_grad()
            loss.backward()
            if watcher is not None:
                watcher.observe(loss=loss.detach())
            opt.step()

        watchers = {"bare": None, "ordinary": ordinary, "sampled": sampled}
        ms = in_turns({name: partial(step, watcher) for name, watcher in watchers.items()}, max(8, 1000 // depth))
        us = {name: 1000 * number for name, number in ms.items()}
        rows.append(
            {
                "layers": depth,
                "bare step, us": round(us["bare"]),
                "ordinary, us more": round(us["ordinary"] - us["bare"]),
                "sampled, us more": round(us["sampled"] - us["bare"]),
                "ordinary, us per layer": round((us["ordinary"] - us["bare"]) / depth, 2),
                "sampled, us per layer": round((us["sampled"] - us["bare"]) / depth, 1),
            }
        )
    return rows


class _Reads(Operators):
    """Counts operators that make the host wait for a number."""

    @property
    def total(self) -> int:
        """How many there were."""
        return sum(self.seen[f"aten::{name}"] for name in ("_local_scalar_dense", "equal", "nonzero", "is_nonzero"))


def syncs(depth: int = 20) -> list[Row]:
    """Numbers that the host reads before the one copy of a step, and copies, by the kind of step."""
    rows = []
    for kind, every, publish in (("ordinary", NEVER, False), ("sampled", 1, False), ("published", NEVER, True)):
        model = mlp(depth, 32)
        watcher = watcher_of(model, every=every)
        reads = _Reads()
        at_copies: list[int] = []
        send = watcher._sender._transfer.send

        def counted(
            label: Any, tensors: Any, reads: _Reads = reads, found: list[int] = at_copies, to: Any = send
        ) -> Any:
            found.append(reads.total)
            return to(label, tensors)

        for is_counted in (False, False, True):
            watcher.arm()
            loss = model(torch.ones(4, 32)).square().mean()
            model.zero_grad()
            loss.backward()
            with reads if is_counted else nullcontext():
                watcher._sender._transfer.send = counted if is_counted else send  # type: ignore[method-assign]
                watcher.observe(loss=loss.detach(), publish=publish and is_counted)
        waits = at_copies[0] if at_copies else reads.total
        rows.append({"step": kind, "numbers read by the host": waits, "copies": len(at_copies)})
    return rows


def memory() -> list[Row]:
    """Bytes that GradWatch holds on the device between two steps, beside those of the parameters."""
    rows = []
    for key in ("mlp", "small", "cnn"):
        workload = WORKLOADS[key]
        model = workload.make_model()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        watcher = watcher_of(model, every=1)
        before = _held_bytes()
        watcher.observe()
        watcher.observe()
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        extra = _held_bytes() - before
        bound = max(size // 100, 10**6)
        rows.append(
            {
                "model": workload.title,
                "parameters, MB": round(size / 1e6, 2),
                "extra, MB": round(extra / 1e6, 2),
                "bound, MB": round(bound / 1e6, 2),
                "within": extra <= bound,
            }
        )
    return rows


def _held_bytes() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def fit(
    num_steps: int, num_layers: int, width: int, logger_directory: Path | None, *callbacks: Any, **trainer: Any
) -> None:
    """Train a small MLP in a Trainer."""
    workload = WORKLOADS["mlp"]
    logger = TensorBoardLogger(logger_directory, name="", version="") if logger_directory else False
    task = Task(workload)
    task.model = mlp(num_layers, width)
    inputs = torch.randn(16, width), torch.randint(0, 10, (16,))
    with quiet():
        pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=-1,
            max_steps=num_steps,
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **trainer,
        ).fit(task, Repeat(inputs))


class _Sizes(pl.Callback):
    """Notes how large the event files are at some steps."""

    def __init__(self, directory: str, *steps: int) -> None:
        self._directory, self._steps = Path(directory), steps
        self.bytes: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        if trainer.global_step in self._steps:
            trainer.logger.experiment.flush()  # type: ignore[union-attr]
            self.bytes.append(sum(file.stat().st_size for file in self._directory.rglob("*tfevents*")))


def disk(early: int = 400, late: int = 800) -> list[Row]:
    """Bytes in TensorBoard's files, for 20 and for 200 layers; from two sizes, as the first publications are fuller."""
    rows = []
    for num_layers in (20, 200):
        row: Row = {"layers": num_layers}
        for name, histogram_every in (("with", 10), ("without", 0)):
            with TemporaryDirectory() as directory:
                sizes = _Sizes(directory, 200, early, late)
                watch = GradWatch(histogram_every=histogram_every)
                fit(late, num_layers, 16, Path(directory), watch, sizes, log_every_n_steps=1)
            if histogram_every:
                row["MB per 10,000 steps, published every 50"] = round(sizes.bytes[0] / 1e6, 2)
            growth = (sizes.bytes[2] - sizes.bytes[1]) / (late - early)
            megabytes = (sizes.bytes[1] + (10_000 - early) * growth) / 1e6
            row[f"MB per 10,000 publications, {name} histograms"] = round(megabytes, 1)
        rows.append(row)
    return rows


class _Marks(pl.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []
        self.resident: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) % 1000 == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc").exists() else 0
            fallback = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self.resident.append(pages * os.sysconf("SC_PAGE_SIZE") or fallback)


def soak(num_steps: int = 20_000) -> Row:
    """A long run: step time and resident memory in its second and in its last quarter."""
    marks = _Marks()
    with TemporaryDirectory() as directory:
        fit(num_steps, 5, 32, Path(directory), GradWatch(), marks)
    steps = [after - before for before, after in zip(marks.times, marks.times[1:], strict=False)]
    quarter = len(steps) // 4
    early, late = (statistics.median(part) for part in (steps[quarter : 2 * quarter], steps[-quarter:]))
    place = len(marks.resident) // 4
    return {
        "steps": num_steps,
        "median step in the second quarter, us": round(early * 1e6),
        "in the last quarter, us": round(late * 1e6),
        "ratio": round(late / early, 3),
        "resident memory after the first quarter, MB": round(marks.resident[place] / 1e6, 1),
        "at the end, MB": round(marks.resident[-1] / 1e6, 1),
    }


def imports() -> Row:
    """Milliseconds of importing GradWatch: alone, and where torch and Lightning are there already."""
    alone = "import time; t = time.perf_counter(); import lightning_gradwatch; print(time.perf_counter() - t)"
    beside = (
        "import time, torch, lightning.pytorch, pytorch_lightning, torch.utils.tensorboard; t = time.perf_counter(); "
        "from lightning_gradwatch import GradWatch; print(time.perf_counter() - t)"
    )
    row: Row = {}
    for name, code in (("import lightning_gradwatch, ms", alone), ("GradWatch beside Lightning, ms", beside)):
        times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
        row[name] = round(1000 * min(times), 1)
    return row
