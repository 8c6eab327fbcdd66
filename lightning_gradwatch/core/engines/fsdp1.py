"""FSDP1: torch lays the parameters of a module end to end in one flat tensor, of which each rank holds a part.

With ``use_orig_params=True`` the optimizer has the parameters as they were registered, and each holds what this rank
has of it: a flat piece, which may be empty. Only the wrapper knows the shape that it was cut from.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.engines.engine import Engine
from lightning_gradwatch.core.modules import modules
from lightning_gradwatch.core.shards import Cut


def is_wrapper(module: object) -> bool:
    """Whether this is a ``FullyShardedDataParallel``; costs no import where nobody has asked for one."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def is_piece(tensor: Tensor) -> bool:
    """Whether torch has laid a parameter end to end with others."""
    return getattr(tensor, "_fsdp_flattened", False) is True


def refuse_flat_parameters(use_orig_params: object) -> None:
    """Refuse to watch flat tensors, of which nobody knows which part is whose.

    Raises:
        ValueError: If the optimizer gets nothing else.
    """
    if not use_orig_params:
        cure = "FSDPStrategy(use_orig_params=True), which is Lightning's default"
        raise refuse("strategy", "one that keeps the model's own parameters", "use_orig_params=False", cure)


def cuts(model: nn.Module) -> dict[int, Cut]:
    """How the parameters of a model were cut, by their ids; the outermost wrapper must be part of the model.

    Raises:
        ValueError: If a wrapper gives the optimizer nothing but the flat tensor.
    """
    found: dict[int, Cut] = {}
    for handle in _handles(model):
        flat = handle.flat_param
        refuse_flat_parameters(flat._params is not None)
        num_shards = handle.world_size if handle.uses_sharded_strategy else 1
        pieces = zip(flat._params, flat._shapes, strict=True)
        found.update((id(piece), Cut(shape, num_shards, flat)) for piece, shape in pieces)
    return found


def _handles(model: nn.Module) -> list[Any]:
    """What a wrapper knows about its flat tensor; wrappers without parameters of their own have none."""
    handles = [getattr(module, "_handle", None) for module in modules(model) if is_wrapper(module)]
    return [handle for handle in handles if handle is not None]


def _check(strategy: object) -> None:
    """Refuse what would give the optimizer nothing but flat tensors.

    Raises:
        ValueError: If the strategy's options say so.
    """
    options: dict[str, Any] = getattr(strategy, "kwargs", None) or getattr(strategy, "_fsdp_kwargs", {})  # of Fabric
    refuse_flat_parameters(options.get("use_orig_params"))


FSDP1 = Engine(("FSDPStrategy",), check=_check, cuts=cuts, is_piece=is_piece, is_wrapper=is_wrapper)
