"""What watching and clipping cost beside what people use instead, each by turns with the bare loop."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher

from .correct import cannot_compile
from .models import DRY, FULL, Workload
from .pieces import Piece, Row, Setting, release, tried
from .traces import profile
from .training import NEVER, Training, settings

MIN_PAIRS = 3
MAX_STEPS = 50
"""Most steps between two readings of the clock."""
EVERY = 10
"""Steps between two of GradWatch's samples; a block holds a multiple, so that all blocks hold as many."""
MAX_READ, MAX_WRITTEN = 3e7, 1000
"""Parameters, and tensors, up to which those take part that read every element on the host: seconds a step beyond."""


class AtWork(NamedTuple):
    """A contestant at work: what is called before each optimizer step, and what is entered around a block of steps."""

    before_step: Callable[[], object] | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def _nothing(model: nn.Module, stack: ExitStack) -> AtWork:
    return AtWork()


@dataclass(frozen=True)
class Contestant:
    """One way to watch or to clip.

    Attributes:
        name: For the table.
        watch: What GradWatch does; None for others.
        start: Puts others to work; what they leave behind goes onto the stack.
        publishes: Which steps of a block are published.
        reads_all: Whether it reads every element on the host.
        package: What it needs besides torch.
    """

    name: str
    watch: Settings | None = None
    start: Callable[[nn.Module, ExitStack], AtWork] = _nothing
    publishes: Literal["none", "the last", "all"] = "none"
    reads_all: bool = False
    package: str = ""


def _clip(model: nn.Module, stack: ExitStack) -> AtWork:
    return AtWork(partial(torch.nn.utils.clip_grad_norm_, list(model.parameters()), 1.0))


def _read(model: nn.Module, stack: ExitStack) -> AtWork:
    """The least: read every gradient once, in one call."""
    parameters = list(model.parameters())
    return AtWork(lambda: torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None])))


def _grad_norm(model: nn.Module, stack: ExitStack) -> AtWork:
    """As ``lightning.pytorch.utilities.grad_norm`` does: one norm after the other, then read by the logger."""

    def read() -> dict[str, float]:
        norms = {name: p.grad.norm(2) for name, p in model.named_parameters() if p.grad is not None}
        return {name: float(norm) for name, norm in norms.items()}

    return AtWork(read)


def _add_histogram(model: nn.Module, stack: ExitStack) -> AtWork:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(stack.enter_context(TemporaryDirectory()))
    stack.callback(writer.close)

    def write() -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                writer.add_histogram(name, parameter.grad)

    return AtWork(write)


def _wandb_watch(model: nn.Module, stack: ExitStack) -> AtWork:
    """Its hooks are on the model in its own blocks alone: in those of the bare loop they would make it look free."""
    import wandb

    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(mode="offline", dir=stack.enter_context(TemporaryDirectory()), settings=quiet)
    stack.callback(run.finish)

    @contextmanager
    def hooked() -> Iterator[None]:
        run.watch(model, log="gradients", log_freq=1)
        try:
            yield
        finally:
            run.unwatch(model)

    return AtWork(lambda: run.log({}), hooked)


def contestants() -> Iterator[Contestant]:
    """The most telling first."""
    defaults = settings(0, EVERY)
    yield Contestant("at least: read every gradient once", start=_read)
    yield Contestant("GradWatch, norms only", settings())
    yield Contestant("GradWatch, its defaults", defaults, publishes="the last")
    yield Contestant("clip_grad_norm_(1.0)", start=_clip)
    yield Contestant("GradWatch(auto_clip=1.0)", settings(clip=1.0))
    yield Contestant("GradWatch, the dense phase: every step sampled", settings(NEVER, 1))
    yield Contestant("GradWatch(auto_clip=True)", settings(clip=True))
    everything = settings(NEVER, 1, histogram_every=1)
    yield Contestant("GradWatch, norms at every step, histograms at every 5th", everything, publishes="all")
    yield Contestant("Lightning's grad_norm, read", start=_grad_norm)
    yield Contestant("add_histogram for each parameter", start=_add_histogram, reads_all=True, package="tensorboard")
    yield Contestant("wandb.watch", start=_wandb_watch, reads_all=True, package="wandb")


def _missing(entry: Contestant, sizes: list[int]) -> str | None:
    """Why a contestant takes no part."""
    if entry.package and find_spec(entry.package) is None:
        return f"{entry.package} is not installed"
    if entry.reads_all and (sum(sizes) > MAX_READ or len(sizes) > MAX_WRITTEN):
        numbers = f"{sum(sizes) / 1e6:.1f} million numbers in {len(sizes)} tensors"
        return f"it would read {numbers} on the host; see the smaller networks"
    return None


def race(workload: Workload, seconds: float, setting: Setting) -> Iterator[Row]:
    """Each contestant by turns with the bare loop, in one and the same training.

    Args:
        workload: What is trained.
        seconds: For all of it.
        setting: Where.
    """
    end = time.perf_counter() + seconds
    if workload.compile and (why := cannot_compile(setting)) is not None:
        yield Row("everything", "not run", note=f"torch.compile does not work here: {why}")
        return
    training = _build(workload, setting)
    step_seconds = _warm_up(training, setting)
    sizes = [p.numel() for p in training.model.parameters()]
    figures: dict[str, Any] = {"ms": 1000 * step_seconds, "million_parameters": sum(sizes) / 1e6, "tensors": len(sizes)}
    bare = _traced(training) if setting.is_gpu else None
    if bare is not None:
        figures.update(kernels=bare["kernels"])
    if setting.is_gpu:
        figures.update(peak_gib=torch.cuda.max_memory_allocated() / 2**30)
    yield Row("a bare step", "measured", figures)
    missing = {entry.name: _missing(entry, sizes) for entry in contestants()}
    present = [entry for entry in contestants() if missing[entry.name] is None]
    for place, entry in enumerate(present):
        share = max(end - time.perf_counter(), 0.0) / (len(present) - place + 1)
        run = partial(_against_bare, training, entry, share, step_seconds, setting, bare)
        yield tried(entry.name, run, "not run" if entry.watch is None else "WRONG")
        release(setting)
    yield from (Row(name, "not run", note=why) for name, why in missing.items() if why is not None)


def _build(workload: Workload, setting: Setting) -> Training:
    torch.manual_seed(0)
    if setting.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    with torch.device(setting.device):  # billions of random numbers take half a minute on a host
        model = workload.model()
        inputs, targets = workload.batch()
    if workload.is_channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.to(memory_format=torch.channels_last)
    if workload.compile and setting.is_gpu:
        for block in model.blocks:  # type: ignore[union-attr]  # a list of modules
            block.compile()
    optimizer = partial(torch.optim.AdamW, fused=True)
    # a rate at which hundreds of steps on one batch stay sound: alerts ask for samples out of turn
    return Training(model, (inputs, targets), None, workload.dtype, optimizer, lr=1e-5)


def _warm_up(training: Training, setting: Setting) -> float:
    """Seconds of a bare step, once everything is compiled and allocated."""
    for _ in range(5):
        training.step()
    return _block(training, 5, setting, None, AtWork(), "none") / 5


def _traced(training: Training, publish: bool = False) -> Counter[str] | None:
    """What the device does in a step; None where that cannot be seen."""
    try:
        return profile(partial(training.step, publish))
    except RuntimeError:
        return None


def _against_bare(
    training: Training, entry: Contestant, share: float, step: float, setting: Setting, bare: Counter[str] | None
) -> Row:
    with ExitStack() as stack:
        training.left_out = []
        watcher = None if entry.watch is None else training.make_watcher(entry.watch)
        if watcher is not None:
            stack.callback(watcher.close)
        at_work = entry.start(training.model, stack)
        with_it = partial(_block, training, setting=setting, watcher=watcher, at_work=at_work)
        without = partial(_block, training, setting=setting, watcher=None, at_work=AtWork(), publishes="none")
        with_it(num_steps=1, publishes="none")  # the first one makes the plan
        once = with_it(num_steps=2, publishes=entry.publishes) / 2
        num_steps = _block_steps(share, once, step, 1 if entry.publishes != "the last" else EVERY)
        blocks = _by_turns(partial(with_it, num_steps, publishes=entry.publishes), partial(without, num_steps), share)
        middle, spread = _longer(blocks)
        figures: dict[str, Any] = {"percent": middle, "spread": spread, "us": 1e6 * middle / 100 * step}
        figures.update(blocks=len(blocks), steps=num_steps)
        if watcher is not None:
            figures.update(samples=watcher.sampling.num_samples, of_steps=watcher.sampling.num_steps)
        if bare is not None:
            figures.update(_more_launched(training, watcher, at_work, entry, bare))
        if watcher is not None:
            watcher.flush(publish=False)
    return Row(entry.name, "WRONG" if training.left_out else "measured", figures, "; ".join(training.left_out))


def _block_steps(share: float, once: float, step: float, least: int) -> int:
    """Steps of a block so that a share holds the pairs that are needed; the least of what is far dearer than it has."""
    each = share / (2 * MIN_PAIRS + 1)
    if once > each:
        return least
    return min(MAX_STEPS, max(EVERY, int(each / max(once, step)) // EVERY * EVERY))


def _by_turns(with_it: Callable[[], float], without: Callable[[], float], share: float) -> list[float]:
    """Seconds of blocks, every second one with it; as many as the share holds, and twice that at the utmost."""
    start = time.perf_counter()
    blocks = [without()]
    while len(blocks) < 2 * MIN_PAIRS + 1 or time.perf_counter() < start + share:
        blocks += [with_it(), without()]
        if time.perf_counter() > start + 2 * share:
            break
    return blocks


def _block(
    training: Training, num_steps: int, setting: Setting, watcher: Watcher | None, at_work: AtWork, publishes: str
) -> float:
    """Seconds of some steps in a row."""
    with _employed(training, watcher, at_work):
        _wait(setting)
        start = time.perf_counter()
        for step in range(num_steps):
            training.step(publish=publishes == "all" or (publishes == "the last" and step == num_steps - 1))
        _wait(setting)
        seconds = time.perf_counter() - start
    training.observations.clear()
    return seconds


@contextmanager
def _employed(training: Training, watcher: Watcher | None, at_work: AtWork) -> Iterator[None]:
    training.watcher, training.before_step = watcher, at_work.before_step
    try:
        with at_work.around():
            yield
    finally:
        training.watcher = training.before_step = None


def _more_launched(
    training: Training, watcher: Watcher | None, at_work: AtWork, entry: Contestant, bare: Counter[str]
) -> dict[str, int]:
    """Kernels that it launches in a step, copies and waits, beyond those of the bare loop."""
    with _employed(training, watcher, at_work):
        counts = _traced(training, entry.publishes == "all")
    if counts is None:
        return {}
    counts.subtract(bare)
    return {name: counts[name] for name in ("kernels", "to the host", "waits")}


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
        ("mlp", 15), ("gpt", 35), ("resnet", 35), ("gpt compiled", 45), ("small", 25), ("vit", 25), ("1.3B", 35),
    )
)  # fmt: skip
