"""The models that a loop is given to watch: what stands around them, and when their forward passes begin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lightning_gradwatch.asking import ask
from lightning_gradwatch.core import engines
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.batch import Inputs
from lightning_gradwatch.core.hooks import ModuleHooks

_WRAPPERS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "_FabricModule": "_forward_module"}
"""What is put around a model by class, with the attribute that holds the model."""


class Given:
    """The model of a loop, as it was given: the user's own, or one with wrappers around it, or several by their names.

    Args:
        model: A model, or several by names of the user's choice.

    Attributes:
        model: The user's own, whose module paths name the layers; of several, one module that has them as children.
        whole: The same, or the wrapper around it that alone knows how its parameters are cut.
        is_compiled: Whether all of it is compiled, so that no layer can be hooked.

    Raises:
        ValueError: If it is no model.
    """

    def __init__(self, model: nn.Module | Mapping[str, nn.Module]) -> None:
        named = {"": model} if isinstance(model, nn.Module) else dict(model) if isinstance(model, Mapping) else {}
        if not named or not all(isinstance(each, nn.Module) for each in named.values()):
            raise refuse("model", "a torch module, or a dict of them by name", model, "pass what the loop calls")
        layers = {name: _layers_around(each) for name, each in named.items()}
        self._called = [around[0] for around in layers.values()]
        self.is_compiled = all(_is_compiled(around) for around in layers.values())
        own = {name: around[-1] for name, around in layers.items()}
        whole = {name: next(filter(engines.is_wrapper, around), around[-1]) for name, around in layers.items()}
        self.model = own[""] if "" in own else nn.ModuleDict(own)
        self.whole = whole[""] if "" in whole else nn.ModuleDict(whole)
        self._hooks = ModuleHooks()

    def before_forward(self, call: Callable[[object], None]) -> None:
        """Call back whenever a forward pass with gradients begins, with what the model is given.

        The hook is on what the loop calls alone: torch (2.13) fails on any hook on a model within Fabric's wrapper
        where that is compiled in place.

        Args:
            call: It may raise what the user asked for.
        """

        def begins(_: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
            # within compiled code this must come to nothing; without a gradient it is no training
            if not torch.compiler.is_compiling() and torch.is_grad_enabled():
                call(Inputs([*args, *kwargs.values()]))

        self._hooks.hang(((each, begins) for each in self._called), before=True)

    def close(self) -> None:
        """Leave nothing on the model."""
        self._hooks.close()


def _layers_around(model: nn.Module) -> list[nn.Module]:
    """The model with all that stands around it, the outermost first."""
    around = [model]
    while (inner := _inner(around[-1])) is not None:
        around.append(inner)
    return around


def _inner(model: nn.Module) -> nn.Module | None:
    """The model within a wrapper; None for what is none."""
    if engines.is_wrapper(model):  # of FSDP1
        return model.module if isinstance(model.module, nn.Module) else None
    name = next((_WRAPPERS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in _WRAPPERS), None)
    inner = None if name is None else ask(model, name)
    return inner if isinstance(inner, nn.Module) else None


def _is_compiled(around: Sequence[nn.Module]) -> bool:
    """Whether all of a model is compiled; torch.compile itself need not have been imported."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and any(isinstance(each, dynamo.OptimizedModule) for each in around)
