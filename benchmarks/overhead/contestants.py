"""Who watches or clips: GradWatch in its ways, and what people use instead, each as callbacks of a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import grad_norm

from lightning_gradwatch import GradWatch

NEVER = 10**6
Family = Literal["watching", "norms", "histograms", "clipping"]


@dataclass(frozen=True)
class Contestant:
    """One way to watch or to clip.

    Attributes:
        name: For the table.
        family: What it is compared with: ``watching`` at the usual cadence; norms, or norms and histograms, of every
            tensor published at every step (histograms by GradWatch at every fifth); clipping.
        make: Makes the callbacks, given a directory to write to.
        trainer: Further arguments of the Trainer.
        is_dear: Whether a step takes many times as long as the training itself.
        takes_many_steps: Whether a few steps say nothing about it.
        is_ours: Whether it is GradWatch.
    """

    name: str
    family: Family
    make: Callable[[Path], list[pl.Callback]]
    trainer: dict[str, Any] = field(default_factory=dict)
    is_dear: bool = False
    is_ours: bool = False
    takes_many_steps: bool = False


class Hook(pl.Callback):
    """Calls a function before each optimizer step."""

    def __init__(self, call: Callable[[pl.Trainer, pl.LightningModule], None]) -> None:
        self._call = call

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Call it."""
        self._call(trainer, pl_module)


def log_grad_norm(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Lightning's own: ``grad_norm`` and ``log_dict``."""
    pl_module.log_dict(grad_norm(pl_module, norm_type=2))


def log_items(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """The loop that people write by hand."""
    writer = trainer.logger.experiment  # type: ignore[union-attr]
    total = 0.0
    for name, parameter in pl_module.named_parameters():
        if parameter.grad is not None:
            norm = parameter.grad.norm().item()
            total += norm**2
            writer.add_scalar(f"grad_norm/{name}", norm, trainer.global_step)
    writer.add_scalar("grad_norm/total", total**0.5, trainer.global_step)


def add_histograms(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """TensorBoard's own histogram of each gradient."""
    writer = trainer.logger.experiment  # type: ignore[union-attr]
    for name, parameter in pl_module.named_parameters():
        if parameter.grad is not None:
            writer.add_histogram(name, parameter.grad, trainer.global_step)


class Norms(pl.Callback):
    """The least that norms can cost: read every gradient once, in one call, and keep the numbers on the device."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look up the parameters."""
        self._parameters = list(pl_module.parameters())

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Read them."""
        self.norms = torch.stack(torch._foreach_norm([p.grad for p in self._parameters if p.grad is not None]))


class OutputNorms(Norms):
    """The least that a sample can cost: a hook on each layer, one on its output, the norm of the gradient there.

    Nothing is told apart, kept or judged.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int) -> None:
        """Put the hooks in place."""
        layers = [m for m in pl_module.modules() if next(m.parameters(recurse=False), None) is not None]
        self._handles = [layer.register_forward_hook(self._see) for layer in layers]

    def _see(self, layer: torch.nn.Module, inputs: Any, output: Any) -> None:
        output.register_hook(self._measure)

    def _measure(self, gradient: torch.Tensor) -> None:
        self.norm = torch.linalg.vector_norm(gradient)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


class WandbWatch(pl.Callback):
    """``wandb.watch`` with gradients at every step, offline."""

    def __init__(self, directory: Path) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
        self._run = wandb.init(mode="offline", dir=str(directory), settings=settings)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hook every parameter."""
        self.switch(pl_module, True)

    def switch(self, pl_module: pl.LightningModule, is_on: bool) -> None:
        """Hook every parameter, or let go of them."""
        if is_on:
            self._run.watch(pl_module, log="gradients", log_freq=1)
        else:
            self._run.unwatch(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Write the row of the step."""
        self._run.log({})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of the parameters."""
        self._run.unwatch(pl_module)
        self._run.finish()


def clip_by(make: Callable[[list[torch.nn.Parameter], torch.nn.Module], Callable[[], object]]) -> Hook:
    """Clips with what ``make`` returns for the parameters and the module."""
    found: list[Callable[[], object]] = []

    def clip(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not found:
            found.append(make(list(pl_module.parameters()), pl_module))
        found[0]()

    return Hook(clip)


def _autoclip() -> Hook:
    quantile = import_module("autoclip.torch").QuantileClip
    return clip_by(lambda parameters, _: quantile(parameters, global_threshold=True).step)


def _zclip() -> Hook:
    def make(_: Any, module: torch.nn.Module) -> Callable[[], object]:
        zclip = import_module("zclip").ZClip()
        return lambda: zclip.step(module)

    return clip_by(make)


def _ours(name: str, family: Family, **arguments: Any) -> Contestant:
    return Contestant(name, family, lambda _: [GradWatch(**arguments)], is_ours=True)


BARE = Contestant("nothing, to show the noise", "watching", lambda _: [])
EMPTY = Contestant("a callback that does nothing", "watching", lambda _: [pl.Callback()], takes_many_steps=True)
ORDINARY = _ours(
    "GradWatch, steps without a sample", "watching", dense_steps=0, sample_every_n_steps=NEVER, log_every_n_steps=NEVER
)
EVERY_STEP = _ours(
    "GradWatch, every step sampled, as in its dense start", "watching", sample_every_n_steps=1, log_every_n_steps=NEVER
)
DEFAULTS = Contestant(
    "GradWatch(), after its dense start",
    "watching",  # half of the steps are not its own
    lambda _: [GradWatch(dense_steps=0, log_every_n_steps=100)],
    is_ours=True,
    takes_many_steps=True,
)
CONTESTANTS = [
    EMPTY,
    Contestant("at least: to read every gradient once", "watching", lambda _: [Norms()], takes_many_steps=True),
    Contestant("at least: to read layers' outputs, too", "watching", lambda _: [OutputNorms()], takes_many_steps=True),
    ORDINARY,
    DEFAULTS,
    EVERY_STEP,
    _ours("GradWatch, norms", "norms", log_every_n_steps=1, histogram_every=0, dense_steps=0,
          sample_every_n_steps=NEVER),
    Contestant("grad_norm + log_dict", "norms", lambda _: [Hook(log_grad_norm)], {"log_every_n_steps": 1},
               is_dear=True),
    Contestant(".item() + add_scalar per parameter", "norms", lambda _: [Hook(log_items)], is_dear=True),
    _ours("GradWatch, samples, norms; histograms every 5th", "histograms", log_every_n_steps=1, histogram_every=1,
          sample_every_n_steps=1),
    Contestant("add_histogram per parameter", "histograms", lambda _: [Hook(add_histograms)], is_dear=True),
    Contestant("wandb.watch, offline", "histograms", lambda directory: [WandbWatch(directory)], is_dear=True),
    Contestant("Trainer(gradient_clip_val=1.0)", "clipping", lambda _: [], {"gradient_clip_val": 1.0}),
    _ours("GradWatch(auto_clip=1.0), no samples", "clipping", auto_clip=1.0, dense_steps=0, sample_every_n_steps=NEVER),
    _ours("GradWatch(auto_clip=True), no samples", "clipping", auto_clip=True, dense_steps=0,
          sample_every_n_steps=NEVER),
    Contestant("autoclip (registry)", "clipping", lambda _: [_autoclip()]),
    Contestant("zclip (registry)", "clipping", lambda _: [_zclip()]),
]  # fmt: skip
_NEEDS = {"wandb.watch, offline": "wandb", "autoclip (registry)": "autoclip", "zclip (registry)": "zclip"}


def available() -> tuple[list[Contestant], list[str]]:
    """Those that can be run here, and why the others cannot."""
    missing = {name: package for name, package in _NEEDS.items() if find_spec(package) is None}
    left_out = [f"{name}: not installed (pip install {package})" for name, package in missing.items()]
    if find_spec("composer") is None:
        left_out.append("Composer's OptimizerMonitor: mosaicml 0.32 asks for torch below 2.7.1 and takes no newer one")
    return [c for c in CONTESTANTS if c.name not in missing], left_out
