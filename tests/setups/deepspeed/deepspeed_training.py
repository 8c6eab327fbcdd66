"""Trains under DeepSpeed, one process per rank, and tells what GradWatch saw; run by its tests."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from tests.setups.deepspeed.cpu import CPUStrategy
from tests.setups.processes import tell
from tests.setups.sharded_training import BATCH, EVERY, NUM_STEPS, make_data, make_loss, make_net
from tests.tasks import quiet_trainer

STAGES = (1, 2, 3)
WATCH: dict[str, Any] = {"max_overhead": None, "dense_steps": 4, "sample_every_n_steps": 5, "histogram_every": 1}
ACCUMULATING: dict[str, Any] = {"accumulate_grad_batches": 4, "max_steps": 12}
SMALL: dict[str, Any] = {"allgather_bucket_size": 2e6, "reduce_bucket_size": 2e6}


class Regression(pl.LightningModule):
    """The regression of the other sharded strategies, with an optimizer that has moments.

    Under DeepSpeed both Lightning and the engine divide the loss by the number of accumulated batches.
    """

    def __init__(self, net: Callable[[], nn.Sequential], make_optimizer: Callable[[Any], Any], divisor: int) -> None:
        super().__init__()
        self.net = net()
        self.make_optimizer = make_optimizer
        self.divisor = divisor

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return make_loss(self.net, batch) / self.divisor

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Its ``eps`` is large, so that rounding moves no weight by much."""
    return torch.optim.Adam(parameters, lr=1e-2, eps=1e-2)


def train(
    stage: int,
    *callbacks: Any,
    directory: Path | None = None,
    resume: Any = None,
    net: Callable[[], nn.Sequential] = lambda: make_net("fsdp"),
    make_optimizer: Callable[[Any], Any] = adam,
    strategy: dict[str, Any] | None = None,
    data: Tensor | None = None,
    **options: Any,
) -> pl.Trainer:
    """Train on this rank's half of every batch; at ``stage`` 0 on the whole of it, in one process without DeepSpeed."""
    defaults: dict[str, Any] = {"max_steps": NUM_STEPS, "log_every_n_steps": EVERY, "use_distributed_sampler": False}
    data = make_data() if data is None else data
    num_ranks, divisor = (2, 1) if stage else (1, options.get("accumulate_grad_batches", 1))
    if stage:
        data = data[int(os.environ["RANK"]) :: num_ranks]
        how = {"stage": stage, **SMALL, **(strategy or {})}
        defaults.update(devices=num_ranks, strategy=CPUStrategy(process_group_backend="gloo", **how))
    trainer = quiet_trainer(*callbacks, directory=directory, **{**defaults, **options})
    samples: Any = data
    loader: Any = torch.utils.data.DataLoader(samples, batch_size=BATCH // num_ranks)
    trainer.fit(Regression(net, make_optimizer, divisor), loader, ckpt_path=resume)
    return trainer


def measure(stage: int, directory: Path, **options: Any) -> dict[str, Any]:
    """What was seen in one run; its numbers are in the directory."""
    watch = GradWatch(**WATCH)
    train(stage, watch, directory=directory, **options)
    alerts = [(alert.kind, alert.step, alert.layer, alert.cause) for alert in watch.alerts]
    assert watch._session is not None
    return {"alerts": alerts, "profile": watch.profile, "is_off": watch._session.is_off}


def measure_one(directory: Path) -> dict[str, Any]:
    """The most usual kind."""
    return {"2": measure(2, directory / "2")}


def measure_all(directory: Path) -> dict[str, Any]:
    """The other stages, and all of them where batches are accumulated."""
    told = {str(stage): measure(stage, directory / str(stage)) for stage in (1, 3)}
    for stage in STAGES:
        name = f"{stage} accumulating"
        told[name] = measure(stage, directory / name, **ACCUMULATING)
    return told


def run(script: Callable[[Path], Any]) -> None:
    """Call on every rank."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tell(script(Path(sys.argv[1])))
