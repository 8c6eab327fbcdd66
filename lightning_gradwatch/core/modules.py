"""Walks through a model by what torch itself keeps of each module, past whatever its class overrides.

A class may override ``parameters`` with another signature, give a property the name of a submodule, or raise in
``__getattr__``; a user's modules may compare, hash and print in any way. So nothing here calls a method of a module,
and modules are told apart by identity. Names and order are those of torch's own ``named_modules`` and
``named_parameters``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def facts_of(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes: its ``__dict__``."""
    return module.__dict__


def children_of(module: nn.Module) -> dict[str, nn.Module]:
    """The modules directly inside a module, by their names."""
    return _registered(module, "_modules")


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that a module registers itself, by their names."""
    return _registered(module, "_parameters")


def _registered(module: nn.Module, kind: str) -> dict[str, Any]:
    """What is registered under names, without the names that stand for nothing."""
    own = facts_of(module)
    if "_actual_script_module" in own:  # what torch.jit.trace returns is but a cover
        own = facts_of(own["_actual_script_module"])
    registered = own.get(kind)
    return {} if registered is None else {name: part for name, part in registered.items() if part is not None}


def named_modules(model: nn.Module, with_aliases: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Every module by its path, the model first as ``""``, parents before children.

    Args:
        model: The model.
        with_aliases: Whether a module that is registered in several places comes once for each; otherwise it comes
            under its first path. A module inside itself comes once in either case.
    """
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", model, ())]
    while stack:
        path, module, above = stack.pop()
        if id(module) in (above if with_aliases else seen):
            continue
        seen.add(id(module))
        yield path, module
        prefix = f"{path}." if path else ""
        below = [(prefix + name, child, (*above, id(module))) for name, child in children_of(module).items()]
        stack.extend(reversed(below))


def modules(model: nn.Module) -> list[nn.Module]:
    """Every module once, in the order of ``named_modules``."""
    return [module for _, module in named_modules(model)]


def named_parameters(model: nn.Module, with_aliases: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by its path; one that is registered in several places once for each if that is asked for."""
    return _named(model, "_parameters", with_aliases)


def parameters(model: nn.Module) -> list[Tensor]:
    """Every parameter once."""
    return [parameter for _, parameter in named_parameters(model)]


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every buffer by its first path."""
    return _named(model, "_buffers", with_aliases=False)


def buffers(model: nn.Module) -> list[Tensor]:
    """Every buffer once."""
    return [buffer for _, buffer in named_buffers(model)]


def _named(model: nn.Module, kind: str, with_aliases: bool) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for path, module in named_modules(model, with_aliases):
        for name, tensor in _registered(module, kind).items():
            if with_aliases or id(tensor) not in seen:
                seen.add(id(tensor))
                yield (f"{path}.{name}" if path else name), tensor


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has taken this module over: as its wrapper, or in place."""
    return "_orig_mod" in children_of(module) or facts_of(module).get("_compiled_call_impl") is not None
