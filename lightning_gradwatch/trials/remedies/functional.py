"""Activations that a ``forward`` calls as functions, rewritten by ``torch.fx`` where it traces."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.trials.remedies.surgery import Trace, kind_of

_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
FUNCTIONS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.ReLU: F.relu,
    nn.SiLU: F.silu,
    nn.Tanh: torch.tanh,
    nn.LeakyReLU: F.leaky_relu,
    nn.GELU: F.gelu,
}
Rewritten = list[tuple[nn.Module, Callable[..., Any]]]


class _Flat(fx.Tracer):
    """Looks into one ``forward`` only."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


def rewritten(seen: Trace, old: Collection[str], new: type[nn.Module]) -> Rewritten:
    """Modules that call an old activation on a hidden tensor, each with a ``forward`` that calls the new one.

    A recurrence and what cannot be traced stays as it is.
    """
    found: Rewritten = []
    of_modules = {call.after for call in seen.calls if type(call.module).__module__.startswith("torch.nn")}
    kinds = {*old, *("hardtanh" for name in old if name == "relu6"), *("abs" for name in old if name == "softsign")}
    if not any(kind_of(node) in kinds for node in seen.consumers.keys() - of_modules):
        return found  # and spare the tracing
    for module in seen.ran((nn.Module,)):
        # the user's own modules alone, each that is no loop
        calls = seen.of(module)
        if type(module).__module__.startswith("torch.nn") or seen.is_loop(module):
            continue
        try:
            graph = _Flat().trace(module)
        except Exception as failure:  # whatever a user's forward raises when it meets a symbol
            if is_the_users(failure):
                raise
            continue
        # replace each call of an old activation on a hidden tensor
        at_output = any(call.after is None or call.after in seen.tail for call in calls)
        parts = dict(module.named_modules())
        nodes = [n for n in graph.nodes if _name(n) in old and _is_hidden(n, parts, at_output)]
        if nodes:
            for node in nodes:
                node.op, node.target, node.args, node.kwargs = "call_function", FUNCTIONS[new], node.args[:1], {}
            found.append((module, _bound(graph, module)))
    return found


def _name(node: fx.Node) -> str:
    """Name of the activation that a node calls."""
    if node.op == "call_method" and isinstance(node.target, str):
        return node.target.rstrip("_")
    if node.op == "call_function":
        name: str = getattr(node.target, "__name__", "")
        return name.rstrip("_")
    return ""


def _is_hidden(node: fx.Node, modules: dict[str, nn.Module], at_output: bool) -> bool:
    if all(u.target in _PRODUCTS and len(u.all_input_nodes) > 1 for u in node.users):
        return False  # it gates
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            if user.op == "output" and at_output:
                return False
            is_matrix = user.op == "call_module" and any(p.ndim > 1 for p in modules[str(user.target)].parameters())
            if not is_matrix and user not in seen:
                seen.add(user)
                stack.append(user)
    return True


def _bound(graph: fx.Graph, module: nn.Module) -> Callable[..., Any]:
    code = graph.python_code("self")
    names: dict[str, Any] = dict(code.globals)
    exec(code.src, names)
    return MethodType(names["forward"], module)
