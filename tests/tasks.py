"""Small real training tasks that the tests share."""

from __future__ import annotations

import contextlib
import math
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.given import Given
from lightning_gradwatch.loop_host import LoopHost
from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.schema import Description, UnreadableError
from lightning_gradwatch.session import Session


def digits(batch_size: int = 64) -> DataLoader[tuple[Tensor, ...]]:
    """Scikit-learn's digits, standardised, always in the same order."""
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32)
    pixels = (pixels - pixels.mean()) / pixels.std()
    return DataLoader(TensorDataset(pixels, torch.tensor(data.target)), batch_size=batch_size, drop_last=True)


def deep_net(activation: type[nn.Module] = nn.Sigmoid, depth: int = 20, he_init: bool = False) -> nn.Sequential:
    """``depth`` linear layers, named 0, 2, 4, ..."""
    torch.manual_seed(0)
    net = nn.Sequential()
    for i in range(depth):
        linear = nn.Linear(64, 64 if i < depth - 1 else 10)
        if he_init:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        net.append(linear)
        if i < depth - 1:
            net.append(activation())
    return net


def make_classifier_class(namespace: Any) -> Any:
    """A classifier for one of the two Lightning namespaces."""

    class _Classifier(namespace.LightningModule):  # type: ignore[misc]
        def __init__(self, net: nn.Module, lr: float = 0.1, optimizer: Any = torch.optim.SGD, **options: Any) -> None:
            super().__init__()
            self.net = net
            self.make_optimizer = lambda: optimizer(self.parameters(), lr=lr, **options)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]).float(), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return self.make_optimizer()

    return _Classifier


Classifier = make_classifier_class(pl)


def small_net() -> nn.Sequential:
    """Three linear layers, named 0, 2 and 4."""
    return deep_net(nn.ReLU, depth=3, he_init=True)


def quiet_trainer(*callbacks: Any, directory: Path | None = None, **options: Any) -> pl.Trainer:
    """A Trainer on the CPU that writes nothing but (if there is a directory) TensorBoard logs."""
    settings: dict[str, Any] = {
        "max_steps": 10,
        "max_epochs": -1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": TensorBoardLogger(directory, name="", version="") if directory else False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if options.get("logger") and "default_root_dir" not in options:
        settings["default_root_dir"] = tempfile.mkdtemp()  # a logger without a directory gets one there, not here
    return pl.Trainer(callbacks=list(callbacks), **{**settings, **options})


def fit(watch: GradWatch | None, model: Any = None, data: Any = None, **options: Any) -> pl.Trainer:
    """Train; a small classifier on the digits unless told otherwise."""
    pl.seed_everything(1, verbose=False)
    trainer = quiet_trainer(*([watch] if watch else []), *options.pop("callbacks", ()), **options)
    trainer.fit(Classifier(small_net()) if model is None else model, data or digits())
    return trainer


def with_gradients(*gradients: Tensor | None) -> list[nn.Parameter]:
    """A parameter of ones for each gradient; of two elements for one that has none."""
    parameters = []
    for gradient in gradients:
        like = torch.zeros(2) if gradient is None else gradient
        parameters.append(nn.Parameter(torch.ones(like.shape, dtype=like.dtype)))
        parameters[-1].grad = gradient
    return parameters


def read_events(directory: Path) -> EventAccumulator:
    """Read a run with TensorBoard's own reader, every point of it."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    events.Reload()
    return events


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    """Values of a scalar tag by step."""
    return {event.step: event.value for event in events.Scalars(tag)}


def tensors(events: EventAccumulator, tag: str) -> dict[int, Any]:
    """Values of a tensor tag by step, as nested lists."""
    return {event.step: make_ndarray(event.tensor_proto).tolist() for event in events.Tensors(tag)}


def recorded(events: EventAccumulator, tag: str = "gradwatch/layers/grad_norm_steps") -> Bins:
    """The bins of steps in a record."""
    known = Description.decode(events.SummaryMetadata(tag).plugin_data.content)
    found = []
    for content in [make_ndarray(event.tensor_proto).tobytes() for event in events.Tensors(tag)]:
        with contextlib.suppress(UnreadableError):  # of another model, fitted into the same directory
            found.append(Bins.decode(content, len(known.layers), len(known.lines)))
    bins = Bins.joined(found)
    return bins.merged(bins.starts())  # several backward passes of one step are one bin


def norms_by_step(events: EventAccumulator, tag: str = "gradwatch/layers/grad_norm_steps") -> dict[int, list[float]]:
    """Gradient norms of the layers at each step, good to 0.15 %."""
    bins = recorded(events, tag)
    return dict(zip(bins.last.tolist(), bins.high.tolist(), strict=True))


class Clock:
    """Seconds that pass only where a test lets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Poison(pl.Callback):
    """Makes one layer's gradient non-finite at chosen steps."""

    def __init__(self, *steps: int, value: float = math.nan) -> None:
        self.steps, self.value = steps, value

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step in self.steps:
            pl_module.net[2].weight.grad.view(-1)[0] = self.value


class Sponge(pl.Callback):
    """Takes bad gradients away again after GradWatch has seen them."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for p in pl_module.parameters():
            p.grad.nan_to_num_(0.0, 0.0, 0.0)


def loop_host(directory: Path | None = None) -> LoopHost:
    """A host without a training."""
    return LoopHost(Given(nn.Linear(1, 1)), [], directory)


def session_of(watch: GradWatch) -> Session:
    """The session behind a GradWatch that has been in a fit."""
    assert watch._session is not None
    return watch._session


def watchers_of(watch: GradWatch) -> list[Watcher]:
    """Its watchers, one for each optimizer."""
    return [one.watcher for one in session_of(watch).watches]
