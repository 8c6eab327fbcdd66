"""A plain loop under torch's own wrappers, alone and as one rank of several, on the same data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lightning_gradwatch import watch
from tests.setups.processes import tell

KINDS = ("ddp", "fsdp1", "fsdp2")
NUM_STEPS, EVERY, BATCH = 8, 2, 8


def _shard(net: nn.Module) -> nn.Module:
    for layer in net.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(net)
    return net


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "alone": lambda net: net,
    "ddp": DistributedDataParallel,
    "fsdp1": lambda net: FullyShardedDataParallel(net, device_id=torch.device("cpu"), use_orig_params=True),
    "fsdp2": _shard,
}


def train(kind: str, directory: Path, **arguments: Any) -> dict[str, Any]:
    """Train with accumulation; what this rank knows at the end."""
    torch.manual_seed(0)
    net = nn.Sequential()
    for here, there in pairwise((6, 16, 9, 16, 3)):
        net.extend([nn.Linear(here, there), nn.Tanh()])
    num_ranks, rank = (1, 0) if kind == "alone" else (distributed.get_world_size(), distributed.get_rank())
    model = WRAPPERS[kind](net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watched = watch(model, optimizer, directory, log_every_n_steps=2, **arguments)
    random = torch.Generator().manual_seed(1)
    for _ in range(NUM_STEPS):
        losses = []
        for place in range(EVERY):
            own = torch.randn(BATCH, 6, generator=random).chunk(num_ranks)[rank]
            with _without_sync(model, place < EVERY - 1):
                loss = model(own).square().mean() / EVERY
                loss.backward()
            losses.append(loss.detach())
        watched.step(torch.stack(losses).sum())
        optimizer.step()
        optimizer.zero_grad()
    probe = model(torch.ones(2, 6)).detach().flatten().tolist()  # says what the weights are, wherever they lie
    watched.close()
    return {"probe": probe, "profile": watched.profile, "steps": watched.state_dict()["num_steps"]}


def _without_sync(model: nn.Module, is_wanted: bool) -> AbstractContextManager[Any]:
    return model.no_sync() if is_wanted and isinstance(model, DistributedDataParallel) else nullcontext()


def run() -> None:
    """As a rank."""
    distributed.init_process_group("gloo")
    directory = Path(sys.argv[1])
    told = {}
    for kind in KINDS:
        plain = train(kind, directory / kind)
        clipped = train(kind, directory / f"{kind}-clipped", auto_clip=1e-3)
        told[kind] = {"plain": plain, "clipped": clipped["probe"]}
    tell(told)
