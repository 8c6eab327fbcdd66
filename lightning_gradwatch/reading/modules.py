"""The tree of modules behind the names of layers, and which of its branches repeat. Pure; no numpy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby, pairwise

_NUMBERED = re.compile(r"(.*?)([0-9]+)", re.DOTALL)
_DEEPEST = 32
"""Names have more parts only where something is wrong."""


Path = tuple[str, ...]
Shape = tuple[Path, ...]
Shapes = dict[Shape, Shape]


@dataclass(frozen=True, eq=False)
class Module:
    """Neighbouring layers that share the beginning of their names; or a single layer.

    Attributes:
        name: Its path; of a single layer all of it.
        depth: Which part of the path tells it from its siblings.
        layers: Places of its layers, in running order.
        children: What it consists of; empty for a single layer.
        shape: What its layers are called behind that part: modules of the same shape may be repetitions of each other.
    """

    name: Path
    depth: int
    layers: range
    children: tuple[Module, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Branch:
    """A module, or modules that follow each other: numbered ones of the same shape, or any where they are very many."""

    modules: tuple[Module, ...]

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Places of all its layers."""
        return tuple(layer for module in self.modules for layer in module.layers)

    @cached_property
    def is_repetition(self) -> bool:
        """Whether its modules consist of the same."""
        return all(module.shape == self.modules[0].shape for module in self.modules)

    @property
    def path(self) -> str:
        """Its name, with a range where its modules differ: ``layers.0-31.attn.q_proj``."""
        if not self.is_repetition:
            return f"{'.'.join(self.modules[0].name)} … {'.'.join(self.modules[-1].name)}"
        return ".".join(_range(parts) for parts in zip(*(module.name for module in self.modules), strict=True))

    def roles(self) -> list[Branch]:
        """What all its modules consist of: one branch for what has the same place in each of them."""
        positions = zip(*(module.children for module in self.modules), strict=True)
        kinds = [branch.modules for branch in repetitions(self.modules[0].children)]
        found, together = list[Branch](), list(positions)
        for kind in kinds:
            taken, together = together[: len(kind)], together[len(kind) :]
            # block by block, so that the places rise
            found.append(Branch(tuple(module for block in zip(*taken, strict=True) for module in block)))
        return found

    def cut(self, *places: int) -> list[Branch]:
        """The same modules as several branches, cut before these places."""
        edges = [0, *places, len(self.modules)]
        parts = [self.modules[start:end] for start, end in pairwise(edges)]
        return [Branch(part) for part in parts if part]


@lru_cache(maxsize=8)
def tree_of(layers: tuple[str, ...]) -> tuple[Module, ...]:
    """The outermost modules.

    Args:
        layers: Names in running order.
    """
    return _children([tuple(layer.split(".")) for layer in layers], range(len(layers)), 0, {})


def repetitions(modules: Sequence[Module]) -> list[Branch]:
    """Siblings as branches: numbered neighbours of the same shape share one."""

    def key(item: tuple[int, Module]) -> tuple[object, ...]:
        place, module = item
        stem = _stem(module)
        return place if stem is None else stem, module.shape

    return [Branch(tuple(module for _, module in group)) for _, group in groupby(enumerate(modules), key)]


def _children(paths: list[Path], layers: range, depth: int, known: Shapes) -> tuple[Module, ...]:
    """Neighbours that share the part of their path at this depth; a layer whose path ends before stands for itself."""

    def key(layer: int) -> object:
        return paths[layer][depth] if depth < min(len(paths[layer]), _DEEPEST) else layer

    groups = [list(group) for _, group in groupby(layers, key)]
    return tuple(_module(paths, range(group[0], group[-1] + 1), depth, known) for group in groups)


def _module(paths: list[Path], layers: range, depth: int, known: Shapes) -> Module:
    shape = tuple(paths[layer][depth + 1 :] for layer in layers)
    shape = known.setdefault(shape, shape)  # the same object for all repetitions, which are compared often
    if len(layers) == 1:
        return Module(paths[layers[0]], depth, layers, (), shape)
    children = _children(paths, layers, depth + 1, known)
    while len(children) == 1:  # what holds all there is says nothing and is passed through
        children = children[0].children
    return Module(paths[layers[0]][: depth + 1], depth, layers, children, shape)


def _stem(module: Module) -> str | None:
    """What the names of numbered siblings begin with; None where it is not numbered."""
    numbered = _NUMBERED.fullmatch(module.name[module.depth]) if module.depth < len(module.name) else None
    return numbered and numbered[1]


def _range(parts: Sequence[str]) -> str:
    """Parts of a path as one: the same, or from the first to the last number."""
    first, last = parts[0], parts[-1]
    if first == last:
        return first
    numbered = _NUMBERED.fullmatch(last)
    return f"{first}-{numbered[2]}" if numbered else f"{first}…{last}"
