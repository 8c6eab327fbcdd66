"""What a network is made of, read off the autograd graph of its loss: functional calls are seen as modules are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn
from torch.autograd.graph import Node

from lightning_gradwatch.core.modules import modules
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.records import Architecture

MAX_NODES = 50_000
MAX_SURVEYS = 4
"""Losses after which all paths through a network are taken for seen."""
_ACTIVATIONS = {
    "sigmoid": ("sigmoid",),
    "tanh": ("tanh",),
    "relu": ("relu", "threshold", "hardtanh", "clampmin"),
    "smooth": ("gelu", "silu", "elu", "mish", "softplus", "leakyrelu", "hardswish"),
}


def survey(loss: Tensor, model: nn.Module) -> Architecture:
    """Count activations, normalisations and skip connections on the way from the loss to the parameters.

    A skip connection is an addition or concatenation of two computed tensors. What runs inside a compiled or
    checkpointed region leaves no trace in the graph; there the modules' class names stand in.

    Args:
        loss: The loss, attached to its graph.
        model: The model.

    Returns:
        The counts.
    """
    nodes = _walk(loss.grad_fn)
    kinds: Counter[str] = Counter()
    skips = norms = 0
    for node in nodes:
        name = node.name().removesuffix("Backward0").removesuffix("Backward1").lower()
        kinds[_activation(name)] += 1
        norms += _normalises(name)
        skips += name in ("add", "cat") and _joins_computed(node)
    parts = modules(model)
    names = Counter(_activation(type(module).__name__.lower()) for module in parts)
    num_norm_modules = sum(_normalises(type(module).__name__.lower()) for module in parts)
    if any(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in parts):
        kinds["sigmoid"] = kinds["tanh"] = skips = 0  # gates and sums of every time step: the modules stand in
    activations = {kind: max(kinds[kind], names[kind]) for kind in _ACTIVATIONS}
    return Architecture(tuple(activations.items()), max(norms, num_norm_modules), skips)


def merge(first: Architecture | None, second: Architecture) -> Architecture:
    """The larger count of each kind: several losses of one model, or several passes."""
    if first is None:
        return second
    counts = dict(second.activations)
    merged = tuple((kind, max(count, counts[kind])) for kind, count in first.activations)
    return Architecture(merged, max(first.norms, second.norms), max(first.skips, second.skips))


def _walk(root: Node | None) -> list[Node]:
    seen: set[Node] = set()
    stack = [root] if root is not None else []
    found: list[Node] = []
    while stack and len(found) < MAX_NODES:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        found.append(node)
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return found


def _activation(name: str) -> str:
    name = name.replace("_", "")
    if "logsigmoid" in name or "withlogits" in name:
        return ""
    exact: Mapping[str, tuple[str, ...]] = _ACTIVATIONS
    return next((kind for kind, names in exact.items() if name in names or name in {f"{n}6" for n in names}), "")


def _normalises(name: str) -> bool:
    """Whether it normalises a signal: weight and spectral normalisation only rescale weights."""
    return "norm" in name and not any(other in name for other in ("linalg", "weight", "spectral"))


def _joins_computed(node: Node) -> bool:
    computed = [f for f, _ in node.next_functions if f is not None and f.next_functions]
    return len(computed) >= 2


class Surveyor:
    """Reads the architecture off the first few losses.

    Args:
        model: The model.
        optional: Leaves the architecture out if it cannot be read.

    Attributes:
        architecture: What is known so far; None before the first loss.
    """

    def __init__(self, model: nn.Module, optional: OptionalFigures) -> None:
        self._model = model
        self._optional = optional
        self._num_surveys = 0
        self.architecture: Architecture | None = None

    @property
    def is_done(self) -> bool:
        """Whether further losses tell nothing new."""
        return self._num_surveys >= MAX_SURVEYS

    def inspect(self, loss: Tensor) -> None:
        """Take in a loss, attached to its graph; only the first few calls do anything."""
        if not self.is_done and loss.grad_fn is not None:
            self._num_surveys += 1
            self.architecture = self._optional.take("architecture", self.architecture, self._survey, loss)

    def _survey(self, loss: Tensor) -> Architecture:
        return merge(self.architecture, survey(loss, self._model))
