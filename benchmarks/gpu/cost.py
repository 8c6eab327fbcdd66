"""What watching and clipping cost beside what people use instead, each by turns with the bare loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

from lightning_gradwatch.core.watcher import Settings, Watcher

from .models import DRY, FULL, Workload
from .pieces import Piece, Row, Setting, release
from .training import NEVER, Training, settings

MIN_PAIRS = 3


@dataclass(frozen=True)
class Contestant:
    """One way to watch or to clip.

    Attributes:
        name: For the table.
        watch: What GradWatch does; None for others.
        before_step: Makes what is called between the backward pass and the optimizer's step; None for nothing.
        publishes: Whether every step is published.
        is_dear: Whether few steps must do.
    """

    name: str
    watch: Settings | None = None
    before_step: Callable[[nn.Module], Callable[[], object]] | None = None
    publishes: bool = False
    is_dear: bool = False


def _clip(model: nn.Module) -> Callable[[], object]:
    return partial(torch.nn.utils.clip_grad_norm_, list(model.parameters()), 1.0)


def _read(model: nn.Module) -> Callable[[], object]:
    """The least: read every gradient once, in one call."""
    parameters = list(model.parameters())
    return lambda: torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))


def _grad_norm(model: nn.Module) -> Callable[[], object]:
    """As ``lightning.pytorch.utilities.grad_norm`` does: one norm after the other, then read by the logger."""

    def read() -> dict[str, float]:
        norms = {name: p.grad.norm(2) for name, p in model.named_parameters() if p.grad is not None}
        return {name: float(norm) for name, norm in norms.items()}

    return read


def _add_histogram(model: nn.Module) -> Callable[[], object]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(mkdtemp())

    def write() -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                writer.add_histogram(name, parameter.grad)

    return write


def _wandb_watch(model: nn.Module) -> Callable[[], object]:
    import wandb

    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(mode="offline", dir=mkdtemp(), settings=quiet)
    run.watch(model, log="gradients", log_freq=1)
    return lambda: run.log({})


def contestants() -> Iterator[Contestant]:
    """Those that can be run here, the most telling first."""
    yield Contestant("at least: read every gradient once", None, _read)
    yield Contestant("GradWatch, an ordinary step", settings())
    yield Contestant("GradWatch, its defaults", settings(0, 10))
    yield Contestant("clip_grad_norm_(1.0)", None, _clip)
    yield Contestant("GradWatch(auto_clip=1.0)", settings(clip=1.0))
    yield Contestant("GradWatch(auto_clip=True)", settings(clip=True))
    yield Contestant("GradWatch, every step sampled", settings(NEVER, 1))
    yield Contestant("GradWatch, norms and histograms at every step", settings(histogram_every=1), publishes=True)
    yield Contestant("Lightning's grad_norm, read", None, _grad_norm, is_dear=True)
    if find_spec("tensorboard") is not None:
        yield Contestant("add_histogram for each parameter", None, _add_histogram, is_dear=True)
    if find_spec("wandb") is not None:  # the last: its hooks stay
        yield Contestant("wandb.watch", None, _wandb_watch, is_dear=True)


def race(workload: Workload, seconds: float, setting: Setting) -> Iterator[Row]:
    """Each contestant by turns with the bare loop, in one and the same training.

    Args:
        workload: What is trained.
        seconds: For all of it.
        setting: Where.
    """
    training = _build(workload, setting)
    step_seconds = _warm_up(training, setting)
    yield Row("a bare step", "measured", {"ms": 1000 * step_seconds})
    entries = list(contestants())
    for entry in entries:
        share = seconds / (len(entries) + 2)
        yield _against_bare(training, entry, share, step_seconds, setting)
        release(setting)


def _build(workload: Workload, setting: Setting) -> Training:
    torch.manual_seed(0)
    model = workload.model().to(setting.device)
    inputs, targets = (part.to(setting.device) for part in workload.batch())
    if workload.is_channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.to(memory_format=torch.channels_last)
    if workload.compile and setting.is_gpu:
        for block in model.blocks:  # type: ignore[union-attr]  # a list of modules
            block.compile()
    return Training(model, (inputs, targets), None, workload.dtype, partial(torch.optim.AdamW, fused=True))


def _warm_up(training: Training, setting: Setting) -> float:
    """Seconds of a bare step, once everything is compiled and allocated."""
    for _ in range(5):
        training.step()
    _wait(setting)
    start = time.perf_counter()
    for _ in range(5):
        training.step()
    _wait(setting)
    return (time.perf_counter() - start) / 5


def _against_bare(training: Training, entry: Contestant, share: float, step: float, setting: Setting) -> Row:
    num_steps = max(3 if entry.is_dear else 10, min(50, int(share / (2 * MIN_PAIRS + 2) / step)))
    watcher = None if entry.watch is None else Watcher(training.model, training.optimizer, entry.watch)
    call = None if entry.before_step is None else entry.before_step(training.model)
    with_it = partial(_block, training, num_steps, setting, watcher, call, entry.publishes)
    without = partial(_block, training, num_steps, setting, None, None, False)
    with_it()  # once, to warm up
    end = time.perf_counter() + share
    blocks = [without()]
    while len(blocks) < 2 * MIN_PAIRS + 1 or time.perf_counter() < end:
        blocks += [with_it(), without()]
        if time.perf_counter() > end + share:  # far dearer than it was given time for
            break
    middle, spread = _longer(blocks)
    figures: dict[str, Any] = {"percent": middle, "spread": spread, "blocks": len(blocks), "steps": num_steps}
    if setting.is_gpu:
        figures["kernels"] = _kernels(training, watcher, call, entry.publishes)
    if watcher is not None:
        watcher.flush(publish=False)
    return Row(entry.name, "measured", figures)


def _block(
    training: Training, num_steps: int, setting: Setting, watcher: Watcher | None, call: Any, publishes: bool
) -> float:
    """Seconds of some steps in a row."""
    training.watcher, training.before_step = watcher, call
    _wait(setting)
    start = time.perf_counter()
    for step in range(num_steps):
        training.step(publish=publishes or (watcher is not None and step == num_steps - 1))
    _wait(setting)
    seconds = time.perf_counter() - start
    training.watcher = training.before_step = None
    return seconds


def _kernels(training: Training, watcher: Watcher | None, call: Any, publishes: bool) -> int:
    """Kernels that it launches in a step, beyond those of the bare loop."""
    from .correct import _profile

    bare = _profile(training.step)["cudaLaunchKernel"]
    training.watcher, training.before_step = watcher, call
    launched = _profile(partial(training.step, publishes))["cudaLaunchKernel"]
    training.watcher = training.before_step = None
    return launched - bare


def _longer(seconds: list[float]) -> tuple[float, float]:
    """Percent by which every second number exceeds its neighbours: the median, and 1.57 IQR / sqrt(n) (McGill 1978)."""
    triples = zip(seconds[::2], seconds[1::2], seconds[2::2], strict=False)
    percents = [100 * (2 * on / (before + after) - 1) for before, on, after in triples]
    if len(percents) < 2:
        return (percents or [float("nan")])[0], float("nan")
    low, middle, high = statistics.quantiles(percents, n=4, method="inclusive")
    return middle, 1.57 * (high - low) / len(percents) ** 0.5


def _wait(setting: Setting) -> None:
    if setting.is_gpu:
        torch.cuda.synchronize()


def _piece(name: str, seconds: float) -> Piece:
    def rows(setting: Setting) -> Iterator[Row]:
        workload = (DRY if setting.is_dry else FULL).get(name)
        if workload is None:
            yield Row("everything", "not run", note="too large for a dry run")
            return
        yield from race(workload, 1.0 if setting.is_dry else seconds, setting)

    return Piece(name.replace(" ", "_"), FULL[name].title, seconds, rows)


PIECES = tuple(
    _piece(name, seconds)
    for name, seconds in (
        ("mlp", 20), ("gpt", 40), ("resnet", 40), ("gpt compiled", 50), ("small", 30), ("vit", 30), ("1.3B", 40),
    )
)  # fmt: skip
