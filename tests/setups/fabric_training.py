"""Trainings with Fabric, alone and as one rank of several, on the same data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.strategies.fsdp import FSDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_gradwatch.fabric import GradWatch
from tests.setups.fsdp1_cpu import on_cpu
from tests.setups.processes import tell

KINDS = ("ddp", "fsdp1", "fsdp2")
NUM_STEPS, EVERY, BATCH = 8, 2, 8


class CPUStrategy(FSDPStrategy):
    """FSDP1 without a GPU."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        return on_cpu(lambda: super(CPUStrategy, self).setup_module(module))


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    for layer in module.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


STRATEGIES: dict[str, Callable[[], Any]] = {
    "alone": lambda: "auto",
    "ddp": lambda: "ddp",
    "fsdp1": lambda: CPUStrategy(auto_wrap_policy={nn.Linear}),
    "fsdp2": lambda: ModelParallelStrategy(_shard, data_parallel_size=2, tensor_parallel_size=1),
}


def train(kind: str, directory: Path, **arguments: Any) -> dict[str, Any]:
    """Train with accumulation; what this rank knows at the end."""
    torch.manual_seed(0)
    sizes = (6, 16, 9, 16, 3)
    net = nn.Sequential()
    for here, there in pairwise(sizes):
        net.extend([nn.Linear(here, there), nn.Tanh()])
    num_ranks = 1 if kind == "alone" else 2
    logger = TensorBoardLogger(directory, name="", version="")
    fabric = Fabric(accelerator="cpu", devices=num_ranks, strategy=STRATEGIES[kind](), loggers=logger)
    fabric.launch()
    model: Any = fabric.setup_module(net)
    optimizer: Any = fabric.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.5))
    watch = GradWatch(fabric, model, optimizer, log_every_n_steps=2, **arguments)
    random = torch.Generator().manual_seed(1)
    for place in range(1, NUM_STEPS * EVERY + 1):
        batch = torch.randn(BATCH, 6, generator=random)
        own = batch.chunk(num_ranks)[fabric.global_rank]
        with fabric.no_backward_sync(model, enabled=place % EVERY != 0):
            fabric.backward(model(own).square().mean() / EVERY)
        if place % EVERY == 0:
            optimizer.step()
            optimizer.zero_grad()
    fabric.save(directory / "end.ckpt", {"model": model, "optimizer": optimizer, "watch": watch})
    probe = model(torch.ones(2, 6)).detach().flatten().tolist()  # says what the weights are, wherever they lie
    watch.close()
    return {"probe": probe, "profile": watch.profile, "steps": watch.state_dict()["num_steps"]}


def run() -> None:
    """As a rank."""
    directory = Path(sys.argv[1])
    told = {}
    for kind in KINDS:
        (directory / kind).mkdir(exist_ok=True)
        plain = train(kind, directory / kind)
        clipped = train(kind, directory / f"{kind}-clipped", auto_clip=1e-3)
        told[kind] = {"plain": plain, "clipped": clipped["probe"]}
    tell(told)
