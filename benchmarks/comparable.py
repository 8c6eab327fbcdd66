"""Which way of showing a layer's gradient norm is calm for a healthy network, and still shows a sick one?

Ten architectures and some sick networks train a few steps under GradWatch, in a real ``Trainer`` on the CPU. What was
recorded is shown in several ways, and described by three figures, in decades (orders of magnitude) of the second half
of the run:

- ``spread``: between the 5th and the 95th percentile of the layers;
- ``zigzag``: between neighbouring layers, on average;
- ``sick``: from the median of the sick layers to that of the others; of a trend with depth, from the median of the
  first quarter of the layers to that of the last.

The last table sets what is sick against what healthy networks show of themselves: a trend with depth against the
largest ``spread`` of a healthy network, a block against the largest ``zigzag``. Above 1, a stranger sees it; a way that
hides what is sick comes near 0.

    python -m benchmarks.comparable [--steps 30] [--only NAME...]

It needs `pip install transformers`.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.optim import Optimizer

from benchmarks.architectures import ARCHITECTURES
from benchmarks.architectures import Task as Training
from benchmarks.zoo import CASES
from benchmarks.zoo.run import prepare
from lightning_gradwatch import GradWatch

Array = npt.NDArray[np.float64]

HEALTHY = ("resnet-18", "mobilenet-v2", "convnext", "vit", "swin", "bert", "gpt-2", "llama", "t5", "whisper")
BLOCK, SCALE = 6, 1e-2
"""The block of a GPT-2 whose branches hardly count, and what they are multiplied by."""


@dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        fit: Trains it for so many steps under callbacks.
        is_sick: Tells of the names of layers which ones are sick; None for a trend with depth.
        is_healthy: Whether it is.
    """

    fit: Callable[[int, list[Callback]], LightningModule]
    is_healthy: bool = True
    is_sick: Callable[[str], bool] | None = None


class MatrixNorms(Callback):
    """Norms of the gradients of every module's own matrices, which no record tells apart from those of its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: dict[str, list[float]] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read them."""
        for name, module in pl_module.named_modules():
            matrices = [p.grad for p in module.parameters(recurse=False) if p.ndim > 1 and p.grad is not None]
            if matrices:
                total = torch.stack([grad.norm() for grad in matrices]).norm()
                self.norms.setdefault(name, []).append(float(total))


def _quiet(steps: int, callbacks: list[Callback], **arguments: Any) -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    given = {"accelerator": "cpu", "devices": 1, "max_epochs": -1, **dict.fromkeys(off, False), **arguments}
    return Trainer(max_steps=steps, callbacks=callbacks, **given)


def _architecture(
    name: str, steps: int, callbacks: list[Callback], change: Callable[[nn.Module], None] | None = None
) -> LightningModule:
    architecture = ARCHITECTURES[name]
    task = Training(architecture.build().train(), architecture.warm_up)
    if change is not None:
        change(task.network)
    _quiet(steps, callbacks).fit(task, architecture.data())
    return task


def _case(name: str, steps: int, callbacks: list[Callback]) -> LightningModule:
    task = CASES[name].build()
    _quiet(steps, callbacks, **task.trainer).fit(task.module, task.data)
    return task.module


def _starve(network: nn.Module) -> None:
    """Have one block of a GPT-2 hardly count, as by a badly chosen layer scale: its gradient is 100 times too small."""
    for name, module in network.named_modules():
        if name.endswith((f".h.{BLOCK}.attn", f".h.{BLOCK}.mlp")):
            module.register_forward_hook(_scaled)


def _scaled(module: nn.Module, args: Any, output: Any) -> Any:
    return (output[0] * SCALE, *output[1:]) if isinstance(output, tuple) else output * SCALE


NETWORKS: dict[str, Network] = {
    **{name: Network(partial(_architecture, name)) for name in HEALTHY},
    "efficientnet-b0": Network(partial(_architecture, "efficientnet-b0"), False),
    "sigmoid_mlp20_sgd": Network(partial(_case, "sigmoid_mlp20_sgd"), False),
    "relu_smallinit_mlp20_sgd": Network(partial(_case, "relu_smallinit_mlp20_sgd"), False),
    "plain_cnn20_default_sgd": Network(partial(_case, "plain_cnn20_default_sgd"), False),
    "vit_without_skip": Network(partial(_case, "vit_without_skip"), False),
    "standard_normal_tanh14": Network(partial(_case, "standard_normal_tanh14"), False),
    "tanh_largeinit_mlp20": Network(partial(_case, "tanh_largeinit_mlp20"), False),
    "gpt-2, block starved": Network(
        partial(_architecture, "gpt-2", change=_starve), False, lambda name: f".h.{BLOCK}." in name
    ),
}


@dataclass(frozen=True)
class Record:
    """What was recorded of a network.

    Attributes:
        layers: Names in running order.
        norms: Gradient norms, shape ``(steps, layers)``; NaN for none.
        weights: Norm of the weights at the newest sample, shape ``(layers,)``.
        elements: Number of parameters, same shape.
        has_matrix: Whether one of them has two dimensions or more, same shape.
        matrix_norms: As ``norms``, of these alone.
    """

    layers: tuple[str, ...]
    norms: Array
    weights: Array
    elements: Array
    has_matrix: Array
    matrix_norms: Array


def record(network: Network, steps: int) -> Record:
    """Train a network, and read back what was recorded."""
    seed_everything(0, verbose=False)
    watch, matrices = GradWatch(), MatrixNorms()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = network.fit(steps, [watch, matrices])
    history = watch.history
    norms = history.quantities["grad_norm"].values.astype(np.float64)
    weights = history.quantities["weight_norm"].values[-1].astype(np.float64)
    own = dict(module.named_modules())
    parameters = [list(own.get(name, module).parameters(recurse=False)) for name in history.layers]
    nothing = [np.nan] * len(norms)
    return Record(
        history.layers,
        np.where(norms < 0, np.nan, norms),
        np.where(weights < 0, np.nan, weights),
        np.array([sum(p.numel() for p in found) for found in parameters], float),
        np.array([any(p.ndim > 1 for p in found) for found in parameters], bool),
        np.array([_fitted(matrices.norms.get(name, nothing), len(norms)) for name in history.layers]).T,
    )


def _fitted(numbers: list[float], count: int) -> Array:
    return np.array([part.mean() for part in np.array_split(np.array(numbers), count)])


def _only_matrices(values: Array, found: Record) -> Array:
    return np.where(found.has_matrix, values, np.nan)


WAYS: dict[str, Callable[[Record], Array]] = {
    "total": lambda found: found.norms,
    "RMS": lambda found: found.norms / np.sqrt(found.elements),
    "per weight": lambda found: found.norms / found.weights,
    "own median": lambda found: found.norms / np.nanmedian(found.norms, axis=0),
    "matrices": lambda found: found.matrix_norms,
    "total, 1-D hidden": lambda found: _only_matrices(found.norms, found),
    "RMS, 1-D hidden": lambda found: _only_matrices(found.norms / np.sqrt(found.elements), found),
}


def shown(way: Callable[[Record], Array], found: Record) -> Array:
    """Logarithm of what a way shows of each layer in the second half of the run; NaN for what has no colour."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        logs = np.log10(way(found)[len(found.norms) // 2 :])
        return np.nanmedian(np.where(np.isfinite(logs), logs, np.nan), axis=0)


def spread(logs: Array) -> float:
    """Decades from the 5th to the 95th percentile."""
    low, high = np.nanpercentile(logs, [5, 95])
    return float(high - low)


def zigzag(logs: Array) -> float:
    """Mean distance between neighbours, in decades."""
    return float(np.abs(np.diff(logs[~np.isnan(logs)])).mean())


def trend(logs: Array) -> float:
    """Decades between the medians of the first and of the last quarter."""
    known = logs[~np.isnan(logs)]
    quarter = max(len(known) // 4, 1)
    return float(abs(np.median(known[-quarter:]) - np.median(known[:quarter])))


def sickness(network: Network, found: Record, logs: Array) -> float:
    """Decades between the sick layers and the others; of a trend, between its ends."""
    if network.is_sick is None:
        return trend(logs)
    is_sick = np.array([network.is_sick(name) for name in found.layers])
    return float(abs(np.nanmedian(logs[is_sick]) - np.nanmedian(logs[~is_sick])))


def main(names: Iterable[str], steps: int) -> None:
    """Train, and print the tables."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare()
    figures: dict[str, dict[str, tuple[float, ...]]] = {way: {} for way in WAYS}
    print(f"{'spread zigzag sick':26}{'layers':>7}" + "".join(f"{way:>20}" for way in WAYS))
    for name in names:
        found = record(NETWORKS[name], steps)
        line = f"{name:26}{len(found.layers):>7}"
        for way, show in WAYS.items():
            logs = shown(show, found)
            numbers = figures[way][name] = spread(logs), zigzag(logs), sickness(NETWORKS[name], found, logs)
            unknown = int(np.isnan(logs).sum())
            cell = " ".join(f"{number:.2f}" for number in numbers) + (f" ({unknown})" if unknown else "")
            line += f"{cell:>20}"
        print(line, flush=True)
    healthy = [name for name in names if NETWORKS[name].is_healthy]
    print(f"\nIn brackets: layers without a colour.\n{'':46}" + "".join(f"{way:>20}" for way in WAYS))
    for place, title in enumerate(("spread", "zigzag", "trend")):
        for what, pick in (("median", np.median), ("largest", np.max)):
            values = [pick([figures[way][name][place] for name in healthy]) for way in WAYS]
            print(f"{f'healthy, {title}, {what}':46}" + "".join(f"{value:>20.2f}" for value in values))
    for name in (name for name in names if not NETWORKS[name].is_healthy):
        base = 0 if NETWORKS[name].is_sick is None else 1
        values = [figures[way][name][2] / max(figures[way][one][base] for one in healthy) for way in WAYS]
        title = f"{name}, sick / {('spread', 'zigzag')[base]}"
        print(f"{title:46}" + "".join(f"{value:>20.2f}" for value in values))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(NETWORKS), metavar="NAME", help="by default all")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    main(arguments.only or list(NETWORKS), arguments.steps)
