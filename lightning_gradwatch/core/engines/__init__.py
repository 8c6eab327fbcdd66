"""Engines under which gradients are not whole: what a rank holds, and how the parts become the numbers of the whole.

A new engine is a file like ``fsdp1.py``, with all that is known of it, and its place in ``ENGINES``.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.core.engines.deepspeed import DEEPSPEED
from lightning_gradwatch.core.engines.engine import Access as Access
from lightning_gradwatch.core.engines.engine import Direct as Direct
from lightning_gradwatch.core.engines.engine import Driver as Driver
from lightning_gradwatch.core.engines.engine import Engine
from lightning_gradwatch.core.engines.engine import reaching as reaching
from lightning_gradwatch.core.engines.fsdp1 import FSDP1
from lightning_gradwatch.core.shards import Cut

WHOLE = Engine(("SingleDeviceStrategy", "DDPStrategy"))
DTENSOR = Engine(("ModelParallelStrategy",))
"""FSDP2 and tensor parallelism: a ``DTensor`` says itself what it is a part of."""
ENGINES = (WHOLE, DTENSOR, FSDP1, DEEPSPEED)
UNKNOWN = ("XLAStrategy", "SingleDeviceXLAStrategy")
"""Strategies that are refused though they descend from one that is not."""


def check_strategy(strategy: object) -> None:
    """Refuse strategies under which gradients are hidden, or sharded in a way that cannot be added up.

    Raises:
        ValueError: If none of the engines serves it, or its engine refuses its options.
    """
    by_name = {name: engine for engine in ENGINES for name in engine.strategies}
    names = [base.__name__ for base in type(strategy).__mro__]
    known = next((name for name in names if name in by_name or name in UNKNOWN), None)
    if known is None or known in UNKNOWN:
        raise ValueError(
            "GradWatch: the Trainer's `strategy` must be a single device, DDP, FSDP, ModelParallelStrategy (FSDP2, "
            f"tensor parallelism) or DeepSpeed, but {names[0]} came, which hides the gradients or holds shards of "
            'which nobody knows the whole: their norms would be wrong. To cure it: strategy="ddp" or, where the model '
            'does not fit, with strategy="fsdp", or without GradWatch.'
        )
    by_name[known].check(strategy)


def check_run(model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Refuse a model, or optimizers, of which nobody knows which part is whose.

    Raises:
        ValueError: If an engine does.
    """
    cuts(model)
    for optimizer in optimizers:
        for engine in ENGINES:
            engine.check_optimizer(optimizer)


def cuts(model: nn.Module) -> dict[int, Cut]:
    """How the parameters of a model are cut, by their ids; a wrapper that alone knows it must be part of the model.

    Raises:
        ValueError: If nobody knows which part is whose.
    """
    return {place: cut for engine in ENGINES for place, cut in engine.cuts(model).items()}


def is_piece(parameter: Tensor) -> bool:
    """Whether a registered parameter is not the whole, or not what the optimizer changes."""
    return any(engine.is_piece(parameter) for engine in ENGINES)


def is_wrapper(model: object) -> bool:
    """Whether only this wrapper around a model knows how its parameters are cut."""
    return any(engine.is_wrapper(model) for engine in ENGINES)


def access_to(optimizer: Optimizer) -> Access:
    """How the gradients of an optimizer are reached; to be closed."""
    found = (engine.access(optimizer) for engine in ENGINES)
    return next((access for access in found if access is not None), None) or Direct(optimizer)


def driver_of(model: object) -> Driver | None:
    """The wrapper around a model that steps by itself; None where the training loop does."""
    found = (engine.driver(model) for engine in ENGINES)
    return next((driver for driver in found if driver is not None), None)
