"""What the remedies share: one look at a running model, and changes that every reference to a module sees."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.account import MIN_SEQUENCE
from lightning_gradwatch.core.tensors import tensors_in
from lightning_gradwatch.trials.model import CannotApply, TrialModel

CONVOLUTION = nn.modules.conv._ConvNd
MATRIX = (nn.Linear, CONVOLUTION)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_PRODUCTS = ("addmm", "mm", "linear", "convolution", "mkldnnlinear", "cudnnrnn", "mkldnnrnnlayer")
_ACTIVATIONS = (
    "sigmoid", "tanh", "relu", "threshold", "hardtanh", "clampmin", "gelu", "silu", "elu", "mish", "softplus",
    "leakyrelu", "hardswish", "hardsigmoid", "prelukernel", "logsigmoid",
    "mul", "div", "abs", "pow", "exp", "erf", "where", "neg", "clamp",
)  # fmt: skip
_SHAPES = (
    "view", "unsafeview", "reshape", "reshapealias", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t",
    "alias", "clone", "nativedropout", "tocopy",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        given: Its first floating tensor; None without one.
        made: Its first output; None if that is no tensor.
        before: Where ``given`` came from in the graph; None for data.
        after: The node of ``made``.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: Tensor | None
    made: Tensor | None
    before: Any
    after: Any


class Trace:
    """The calls of a forward pass in the order of their ends, and the graph behind its outputs.

    Attributes:
        calls: The calls.
        tail: Nodes that reach the loss without another linear layer or convolution between: those of the output.
        consumers: For each node those that read it.
    """

    def __init__(self, calls: list[Call], roots: list[Any]) -> None:
        self.calls = calls
        self._of: dict[nn.Module, list[Call]] = {}
        for call in calls:
            self._of.setdefault(call.module, []).append(call)
        self.consumers: dict[Any, list[Any]] = {}
        self.tail = set(roots)
        stack, seen = list(roots), set(roots)
        while stack:
            node = stack.pop()
            for before, _ in node.next_functions:
                if before is None:
                    continue
                self.consumers.setdefault(before, []).append(node)
                if before not in seen:
                    seen.add(before)
                    stack.append(before)
        stack = list(roots)
        while stack:
            node = stack.pop()
            follow = [] if kind_of(node) in _PRODUCTS else [n for n, _ in node.next_functions if n is not None]
            stack.extend(n for n in follow if n not in self.tail)
            self.tail.update(follow)

    def of(self, module: nn.Module) -> list[Call]:
        """The calls of a module."""
        return self._of.get(module, [])

    def is_loop(self, module: nn.Module) -> bool:
        """Whether a module runs so often that it reads a sequence."""
        return len(self.of(module)) >= MIN_SEQUENCE

    def ran(self, kinds: tuple[type, ...]) -> list[nn.Module]:
        """The modules of some classes, in the order in which they ran."""
        return [module for module in self._of if isinstance(module, kinds)]

    def readers(self, node: Any) -> list[Any]:
        """The nodes that read what a node made, changes of shape and dropout left out."""
        found: list[Any] = []
        for reader in self.consumers.get(node, ()):
            found += self.readers(reader) if kind_of(reader) in _SHAPES else [reader]
        return found

    @property
    def num_skips(self) -> int:
        """Additions and concatenations of two computed tensors."""
        return sum(
            kind_of(node) in ("add", "cat") and joins(node) for node in {n for c in self.consumers.values() for n in c}
        )


def kind_of(node: Any) -> str:
    """What a node of the graph computes, such as ``"addmm"``."""
    name: str = node.name()
    return name.partition("Backward")[0].lower()


def is_product(node: Any) -> bool:
    """Whether a node multiplies by a matrix."""
    return kind_of(node) in _PRODUCTS


def is_activation(node: Any) -> bool:
    """Whether a node is an activation, or the start of one that is spelt out."""
    return kind_of(node) in _ACTIVATIONS


def joins(node: Any) -> bool:
    """Whether a node has two computed operands; parameters and constants are none."""
    return sum(f is not None and bool(f.next_functions) for f, _ in node.next_functions) >= 2


def refuse_closed(model: nn.Module) -> None:
    """Refuse models whose modules are not what runs.

    Raises:
        CannotApply: If a part is compiled, scripted, wrapped or lazy.
    """
    for module in model.modules():
        name = type(module).__name__
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise CannotApply("compiled: prescribe before torch.compile")
        if isinstance(module, torch.jit.ScriptModule):
            raise CannotApply("scripted: prescribe before torch.jit")
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or "FullySharded" in name:
            raise CannotApply(f"wrapped in {name}: prescribe for the model inside")
    if any(is_lazy(p) for p in model.parameters()):
        raise CannotApply("lazy layers: run one batch first")


def trace(trial_model: TrialModel) -> Trace:
    """Run the model once and write down what ran; buffers and the state of the random numbers stay as they are.

    Raises:
        CannotApply: If the model cannot be run or changed.
    """
    refuse_closed(trial_model.model)
    calls: list[Call] = []
    befores: dict[int, list[Any]] = {}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = first_float((args, kwargs))
        befores.setdefault(id(module), []).append((given, None if given is None else given.grad_fn))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given, before = befores[id(module)].pop()
        made = next(tensors_in(output), None)
        calls.append(Call(module, args, kwargs, given, made, before, None if made is None else made.grad_fn))

    handles = []
    for module in trial_model.model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with _undone(trial_model.model), torch.enable_grad():
            result = _run(trial_model)
    except CannotApply:
        raise
    except Exception as error:
        if is_the_users(error):
            raise
        raise CannotApply(f"it could not be run for its shapes ({type(error).__name__})") from error
    finally:
        for handle in handles:
            handle.remove()
    return Trace(calls, [t.grad_fn for t in tensors_in(result) if t.grad_fn is not None])


def _run(trial_model: TrialModel) -> Any:
    if trial_model.loss is not None:
        return trial_model.loss(trial_model.model, trial_model.batch)
    if trial_model.example is not None:
        return trial_model.model(*trial_model.example)
    if isinstance(trial_model.batch, Tensor):
        return trial_model.model(trial_model.batch)
    if isinstance(trial_model.batch, (tuple, list)) and trial_model.batch and isinstance(trial_model.batch[0], Tensor):
        return trial_model.model(trial_model.batch[0])
    raise CannotApply("it is not known how its forward is called")


@contextmanager
def _undone(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass changes: buffers, random numbers."""
    owned = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng([d.index or 0 for d in devices]):
            yield
    finally:
        for module, own in owned:
            module._buffers.update(own)  # some are replaced, not written to
        with torch.no_grad():
            for buffer, was in buffers:
                buffer.copy_(was)


def first_float(container: object) -> Tensor | None:
    """The first floating tensor among arguments."""
    return next((t for t in tensors_in(container) if t.is_floating_point()), None)


def become(module: nn.Module, other: nn.Module) -> None:
    """Turn a module into another one in place: whoever holds it, in however many places, holds the other one now."""
    hooks = {name: value for name, value in vars(module).items() if "_hooks" in name}
    other.train(module.training)
    module.__class__ = type(other)
    vars(module).clear()
    vars(module).update(vars(other), **hooks)


def paths(model: nn.Module, modules: Collection[nn.Module], with_aliases: bool = False) -> str:
    """The names of modules as a tuple in code, over several lines if need be."""
    named = model.named_modules(remove_duplicate=not with_aliases)
    names = [name for name, m in named if any(m is other for other in modules)]
    if len(names) < 5:
        return "(" + ", ".join(map(repr, names)) + ",)"
    return "(\n" + fill(", ".join(map(repr, names)) + ",", 96, initial_indent="    ", subsequent_indent="    ") + "\n)"


def perform(trial_model: TrialModel, code: str) -> None:
    """Apply the very lines that are shown: what is tried is what is prescribed."""
    exec(code, {"model": trial_model.model, "nn": nn, "torch": torch})
    trial_model.code = code


def is_trained(module: nn.Module) -> bool:
    """Whether any of its parameters is trained."""
    return any(p.requires_grad for p in module.parameters())
