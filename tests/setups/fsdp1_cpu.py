"""FSDP1 on the CPU: each piece undoes one thing that only a GPU can do, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.strategies import fsdp as home
from torch import nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh


class CPUStrategy(FSDPStrategy):
    """FSDP1 without a GPU: Lightning asks for one only of the class itself, and torch for a device that is named."""

    def setup_environment(self) -> None:
        sizes = self.kwargs.pop("device_mesh", None)
        super().setup_environment()
        if sizes is not None:  # of which Lightning makes a mesh of GPUs
            self.kwargs["device_mesh"] = init_device_mesh("cpu", sizes)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return on_cpu(lambda: super(CPUStrategy, self)._setup_model(model))


def on_cpu(make: Callable[[], nn.Module]) -> nn.Module:
    original = fsdp.FullyShardedDataParallel

    class Named(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "device_id": torch.device("cpu")})

    fsdp.FullyShardedDataParallel = Named  # type: ignore[misc]
    try:
        return make()
    finally:
        fsdp.FullyShardedDataParallel = original  # type: ignore[misc]


def pretend_pinned_memory() -> None:
    """Parameters that are offloaded are pinned, and their gradients waited for on a stream that can be waited for."""
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[assignment, method-assign]
    torch.cpu.Stream.synchronize = lambda self: None  # type: ignore[attr-defined]


def gather_without_offload() -> None:
    """Torch (2.13) crashes as it copies from the CPU to the CPU what it has gathered for a checkpoint in one file."""

    def whole(module: nn.Module, world_size: int, rank0_only: bool = True) -> Any:
        options = {"offload_to_cpu": False, "rank0_only": rank0_only}
        state, optimizer = fsdp.FullStateDictConfig(**options), fsdp.FullOptimStateDictConfig(**options)
        which = fsdp.StateDictType.FULL_STATE_DICT
        return fsdp.FullyShardedDataParallel.state_dict_type(module, which, state, optimizer)

    home._get_full_state_dict_context = whole  # type: ignore[attr-defined]
