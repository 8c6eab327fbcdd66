"""What the rows of the gallery share: data, training under GradWatch, the verdict in words, the picture."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import matplotlib as mpl
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import Alert, GradWatch, GradWatchWarning

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

SICK_COLOUR = "#c0392b"
CURED_COLOURS = ("#1f77b4", "#2ca02c", "#17becf", "#9467bd", "#7f7f7f")
CHARACTERS = 96  # printable ASCII and one for the rest


# --- what a row is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One training run, freshly built after seeding.

    Attributes:
        module: Logs ``loss`` at every step.
        data: Batches.
        trainer: Further arguments of the Trainer.
        gradwatch: Arguments of GradWatch.
    """

    module: pl.LightningModule
    data: DataLoader[Any]
    trainer: dict[str, Any] = field(default_factory=dict)
    gradwatch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A network by a name of a few words, and how to build and train it."""

    name: str
    build: Callable[[], Task]


@dataclass(frozen=True)
class Pair:
    """A sick network, what is right to say of it, and the networks that cure it.

    Attributes:
        sick: Trains measurably worse than the cured ones.
        kinds: Alert kinds of which one must be raised, separated by spaces.
        causes: Causes that are right, separated by spaces.
        cures: GradWatch stays silent on these.
    """

    sick: Network
    kinds: str
    causes: str
    cures: tuple[Network, ...]


@dataclass(frozen=True)
class Row:
    """One system of the gallery.

    Attributes:
        name: Name of its script.
        title: What people call it.
        steps: Optimizer steps of each training run.
        pairs: Its pathologies with their cures.
        profile: Draws these norms, from a trained module and a batch, instead of the gradients at layer outputs.
        axis: What the profile runs along.
        measure: What ``loss`` is.
    """

    name: str
    title: str
    steps: int
    pairs: tuple[Pair, ...]
    profile: Callable[[Any, Any], list[float]] | None = None
    axis: str = "layer, from the input to the loss"
    measure: str = "training loss"

    @property
    def networks(self) -> list[Network]:
        """All networks in order, each once: pairs may share a cure."""
        return list({network.name: network for pair in self.pairs for network in (pair.sick, *pair.cures)}.values())


@dataclass(frozen=True)
class Outcome:
    """What one training run came to."""

    name: str
    alerts: list[Alert]
    losses: list[float]
    profile: list[float]
    seconds: float

    @property
    def final_loss(self) -> float:
        """Median of the last tenth of the steps."""
        return statistics.median(self.losses[-max(1, len(self.losses) // 10) :])

    @property
    def first_alert(self) -> Alert | None:
        """The first alert; the first notice only if there is no alert."""
        return min(self.alerts, key=lambda alert: (alert.level != "alert", alert.step), default=None)

    @property
    def verdict(self) -> str:
        """The first alert in a few words."""
        first = self.first_alert
        return f"{first.level} {first.kind}, {first.cause}, at step {first.step}" if first else "silent"

    def objections(self, pair: Pair) -> list[str]:
        """What GradWatch should have said otherwise, the network being what the pair says it is."""
        loud = [alert for alert in self.alerts if alert.level == "alert"]
        if self.name != pair.sick.name:
            return [f"{self.name}: false {alert.kind} at step {alert.step}" for alert in loud]
        right = [alert for alert in loud if alert.kind in pair.kinds.split()]
        if not right:
            return [f"{self.name}: no {' or '.join(pair.kinds.split())}"]
        named = sorted({alert.cause for alert in right})
        return [] if {*named} & {*pair.causes.split()} else [f"{self.name}: {named} instead of {pair.causes}"]


def objections(pair: Pair, outcomes: dict[str, Outcome]) -> list[str]:
    """What GradWatch should have said otherwise of a pair."""
    return [text for network in (pair.sick, *pair.cures) for text in outcomes[network.name].objections(pair)]


# --- training --------------------------------------------------------------------------------------------------------


class Learner(pl.LightningModule):
    """Trains a network on pairs of inputs and targets.

    Args:
        net: The network.
        optimizer: Makes the optimizer from the parameters that are trained.
        loss: The loss of output and target.
        warmup: Steps over which the learning rate rises from zero.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.optimizer, self.warmup = net, loss, optimizer, warmup

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        inputs, target = batch
        loss = self.loss(self.net(inputs), target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer, warmed up if it is to be."""
        return warmed_up(self.optimizer([p for p in self.parameters() if p.requires_grad]), self.warmup)


def warmed_up(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """What ``configure_optimizers`` returns for a learning rate that rises from zero over so many steps."""
    if not steps:
        return optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def adam(lr: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Adam at a learning rate."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def sgd(lr: float, momentum: float = 0.9) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Gradient descent with momentum."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


class _Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Read what the module has logged."""
        self.values.append(float(trainer.callback_metrics["loss"]))


def train(row: Row, network: Network, directory: Path, steps: int | None = None, progress: bool = False) -> Outcome:
    """Train one network under GradWatch; its curves go to TensorBoard files in the directory."""
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    for name in (
        "pytorch_lightning",
        "lightning.pytorch",
    ):  # where both are installed, either may be the one that speaks
        logging.getLogger(name).setLevel(logging.ERROR)
    task, losses = network.build(), _Losses()
    gradwatch = GradWatch(**task.gradwatch)
    arguments: dict[str, Any] = {
        "max_steps": steps or row.steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        **task.trainer,
    }
    trainer = pl.Trainer(
        callbacks=[gradwatch, losses],
        logger=TensorBoardLogger(directory / row.name, name=network.name.replace(" ", "_"), version=""),
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        **arguments,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", "GradWatch, ", GradWatchWarning)  # its alerts are told by whoever called
        trainer.fit(task.module, task.data)
    seconds = time.perf_counter() - start
    profile = list(gradwatch.profile.values())
    if row.profile is not None:
        profile = row.profile(task.module, next(iter(task.data)))
    return Outcome(network.name, gradwatch.alerts, losses.values, profile, seconds)


def load(name: str) -> Row | str:
    """The row of a script, or what it lacks."""
    try:
        row: Row = importlib.import_module(name).ROW
    except ModuleNotFoundError as missing:
        return f"no module named {missing.name}: pip install -c constraints.txt '.[gallery]'"
    except FileNotFoundError as missing:
        return str(missing)
    return row


def train_by_name(row_name: str, index: int, directory: Path, steps: int | None) -> Outcome:
    """Train one network of a row; for processes of their own, which cannot be handed a network."""
    row = load(row_name)
    assert isinstance(row, Row)
    return train(row, row.networks[index], directory, steps)


# --- telling and showing ---------------------------------------------------------------------------------------------


def tell(row: Row, outcomes: dict[str, Outcome]) -> str:
    """The verdict on every network in plain words."""
    lines = [row.title]
    sick = {pair.sick.name for pair in row.pairs}
    for outcome in outcomes.values():
        label = "sick" if outcome.name in sick else "cured"
        lines.append(f"\n{label}: {outcome.name}: {row.measure} {outcome.final_loss:.3g} ({outcome.seconds:.0f} s)")
        lines += [f"  {alert.level.upper()} {alert.kind}: {alert.message}" for alert in outcome.alerts]
        lines += [] if outcome.alerts else ["  GradWatch has nothing to complain about."]
    found = [text for pair in row.pairs for text in objections(pair, outcomes)]
    return "\n".join([*lines, *(f"\nNot as it should be: {text}" for text in dict.fromkeys(found))])


def draw(row: Row, outcomes: dict[str, Outcome], path: Path) -> None:
    """A line of two plots per pair: where the gradient goes, and what comes of the loss."""
    size = (12, 3.2 * len(row.pairs))
    figure, axes = plt.subplots(len(row.pairs), 2, figsize=size, layout="constrained", squeeze=False)
    for pair, (left, right) in zip(row.pairs, axes, strict=True):
        _draw_outcome(left, right, outcomes[pair.sick.name], "sick", SICK_COLOUR)
        for cure, colour in zip(pair.cures, CURED_COLOURS, strict=False):
            _draw_outcome(left, right, outcomes[cure.name], "cured", colour)
        left.set(yscale="log", xlabel=row.axis, ylabel="gradient norm")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(xlabel="step", ylabel=row.measure)
        for plot in (left, right):
            plot.grid(alpha=0.3)
        right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes[0, 0].set_title("The gradient at the end of training", fontsize=10)
    axes[0, 1].set_title("Learning", fontsize=10)
    figure.suptitle(row.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_outcome(left: Axes, right: Axes, outcome: Outcome, label: str, colour: str) -> None:
    profile = [norm if norm > 0 else math.nan for norm in outcome.profile]  # a logarithmic axis has no zero
    left.plot(range(1, len(profile) + 1), profile, marker=".", color=colour)
    if not any(0 < norm < math.inf for norm in outcome.profile):
        left.text(0.03, 0.9, f"{outcome.name}: zero or not finite", color=colour, fontsize=8, transform=left.transAxes)
    losses = torch.tensor(outcome.losses)
    width = max(1, len(losses) // 20)
    smooth = losses.unfold(0, width, 1).mean(1)  # the mean of the last steps: batches differ
    text = f"{label}: {outcome.name}\n{outcome.verdict}"
    right.plot(range(width, len(losses) + 1), smooth, color=colour, label=text)


def show(row: Row) -> None:
    """What the script of a row does: train its networks, tell the verdicts, save the picture."""
    parser = argparse.ArgumentParser(description=f"{row.title}: sick and cured, under GradWatch")
    parser.add_argument("--directory", type=Path, default=Path("gallery_logs"), help="where logs and picture go")
    parser.add_argument("--steps", type=int, default=row.steps, help="optimizer steps of each training")
    arguments = parser.parse_args()
    outcomes = {
        network.name: train(row, network, arguments.directory, arguments.steps, progress=sys.stderr.isatty())
        for network in row.networks
    }
    picture = arguments.directory / f"{row.name}.png"
    draw(row, outcomes, picture)
    print(f"{tell(row, outcomes)}\n\nPicture: {picture}")


# --- data ------------------------------------------------------------------------------------------------------------


def batches(*tensors: Tensor, size: int = 64) -> DataLoader[Any]:
    """Shuffled batches."""
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=True, drop_last=True)


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits of scikit-learn as standardised vectors of 64 pixels, and their labels."""
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32)
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(data.target)


def text(length: int, count: int = 2048) -> tuple[Tensor, Tensor]:
    """Windows of Python's own reference manual as character codes, and the same windows one character on."""
    manual = "\n".join(topics[name] for name in sorted(topics))[: count * length + 1]
    codes = torch.tensor([ord(c) - 32 if 32 <= ord(c) < 127 else CHARACTERS - 1 for c in manual])
    return codes[:-1].reshape(count, length), codes[1:].reshape(count, length)


def per_token(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all places of a sequence."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())
