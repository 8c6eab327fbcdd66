"""A copy of a model in training, with everything that belongs to it, that shares nothing with the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from copy import deepcopy
from inspect import isroutine
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.shards import is_spread

_CONTAINERS = (tuple, list, set, deque)
_SHARED = (ModuleType, type(threading.Lock()), type(threading.RLock()))
_PLAIN = (bool, int, float, str, bytes, type(None), torch.device, torch.dtype)
_COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")
MAX_NESTING = 4


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of ``torch.compile``, DataParallel and DistributedDataParallel.

    Raises:
        ValueError: If it is no module, its parameters are spread over ranks, or it has not run yet and is lazy.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, nn.Module) and (hasattr(model, "_orig_mod") or isinstance(model, wrappers)):
        model = model.module if isinstance(model, wrappers) else model._orig_mod  # type: ignore[assignment]
    if not isinstance(model, nn.Module):
        raise refuse("model", "a torch module or a LightningModule", model, "give the model itself")
    names = {type(module).__name__ for module in model.modules()}
    if "FullyShardedDataParallel" in names or any(is_spread(p) for p in model.parameters()):
        cure = "prescribe for the model before it is sharded"
        raise refuse("model", "whole on this rank, to be copied", "one that is spread over ranks", cure)
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise refuse("model", "one whose lazy layers know their shape", type(model).__name__, "run a forward pass once")
    return model


def copy_of(model: nn.Module, *others: Any) -> list[Any]:
    """Copies of a model and of what refers to it: its optimizer, its loss function, a batch.

    The copies of compiled modules are not compiled, and those of synchronised batch normalisation do not synchronise. A
    copied LightningModule logs nothing, and what it asks of its Trainer is answered where it is a plain fact.

    Functions among the attributes and the hooks that close over the model close over its copy in the copy.

    Raises:
        RuntimeError: If something in the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    trainer = vars(model).get("_trainer")
    try:
        for module in reversed(list(model.modules())):  # children first
            _prepare(vars(module), memo)
            _leave_out(module, memo)
        _prepare(others, memo)
        copies = [deepcopy(part, memo) for part in (model, *others)]
    except Exception as failure:
        if is_the_users(failure):
            raise
        raise RuntimeError(
            f"GradWatch: no remedy can be tried, because {type(model).__name__} cannot be copied: {failure}. To cure "
            "it: keep what is named there out of the module's attributes."
        ) from failure
    _rebind(copies, memo)
    for module in copies[0].modules():
        _rebind(vars(module), memo)
        _make_harmless(module, trainer)
    return copies


def _prepare(container: object, memo: dict[int, Any]) -> None:
    """Tell ``deepcopy`` what to put in the place of what it cannot or must not copy."""
    for part in _parts(container):
        if isinstance(part, Tensor) and not part.is_leaf:
            memo[id(part)] = part.detach().clone()
        elif isinstance(part, torch.Generator):
            memo[id(part)] = torch.Generator(part.device).set_state(part.get_state())
        elif isinstance(part, _SHARED):
            memo[id(part)] = part


def _leave_out(module: nn.Module, memo: dict[int, Any]) -> None:
    """The same for what a module belongs to, and for the compiler's wrapper."""
    for name in ("_trainer", "_fabric"):
        if vars(module).get(name) is not None:
            memo[id(vars(module)[name])] = None
    if "_orig_mod" in module._modules:
        memo[id(module)] = deepcopy(module._modules["_orig_mod"], memo)


def _rebind(container: Any, memo: Mapping[int, Any], nesting: int = MAX_NESTING) -> None:
    """Let the functions in a copied container close over copies, where ``deepcopy`` takes functions as they are."""
    pairs = container.items() if isinstance(container, dict) else enumerate(container)
    for key, part in list(pairs):
        if isinstance(part, FunctionType) and any(id(cell) in memo for cell in _closed_over(part)):
            cells = tuple(CellType(memo.get(id(cell), cell)) for cell in _closed_over(part))
            container[key] = FunctionType(part.__code__, part.__globals__, part.__name__, part.__defaults__, cells)
            container[key].__kwdefaults__ = part.__kwdefaults__
        elif isinstance(part, (dict, list)) and nesting:
            _rebind(part, memo, nesting - 1)


def _closed_over(function: FunctionType) -> list[Any]:
    try:
        return [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # a variable that has no value yet
        return []


def _parts(container: object, nesting: int = MAX_NESTING) -> Iterator[object]:
    """Everything in a container and in the containers in it."""
    parts = list(container.values()) if isinstance(container, Mapping) else container
    for part in parts if isinstance(parts, _CONTAINERS) else ():
        yield part
        if nesting:
            yield from _parts(part, nesting - 1)


def _make_harmless(module: nn.Module, trainer: object) -> None:
    """Cut what still leads from a copied module to the outside."""
    own = vars(module)
    if isinstance(module, nn.SyncBatchNorm):
        module.__class__ = _LonelyBatchNorm  # type: ignore[assignment]
    if own.get("_compiler_ctx") is not None:  # set by Lightning for a module that came through torch.compile
        own["_compiler_ctx"] = None
        for name in _COMPILED:
            own.pop(name, None)
    if "_trainer" in own:
        own.update(_trainer=trainer and _View(trainer), log=_nothing, log_dict=_nothing)


class _LonelyBatchNorm(_BatchNorm):
    """Batch normalisation over any dimensions, for a single rank."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        pass


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of what must not act."""


class _View:
    """Read-only: plain facts are answered, methods do nothing, so that no copy acts on the real Trainer."""

    def __init__(self, of: object) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        return _seen(getattr(self._of, name))

    def __deepcopy__(self, _: dict[int, Any]) -> _View:
        return self


def _seen(fact: Any) -> Any:
    if isinstance(fact, _PLAIN):
        return fact
    if isinstance(fact, Tensor):
        return fact.detach().clone()
    if isinstance(fact, (tuple, list)):
        return [_seen(part) for part in fact]
    if isinstance(fact, dict):
        return {key: _seen(part) for key, part in fact.items()}
    return _nothing if isroutine(fact) else _View(fact)
