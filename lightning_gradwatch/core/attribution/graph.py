"""The operations between a loss and the layers, read off the loss's graph: what is to be measured, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.core.attribution.operations import Group, begins_a_signal, group_of, plain_name, preserves

if TYPE_CHECKING:
    from torch.autograd.graph import Node

MAX_NODES = 10_000
"""Nodes of a graph that are looked at; one that has more is not read."""
MAX_HOOKS = 1_000
MAX_DEPTH = 6
"""Operations between a matrix and its parameter: transposes, a cast, weight normalisation."""


@dataclass(frozen=True)
class Operation:
    """An operation of the forward pass that handles a signal.

    Attributes:
        group: What it is to a reader.
        parameters: ``id`` of the parameters with two or more dimensions that it is given and that want gradients.
        layer: Name of the layer that owns one of these; ``""`` until it is known, and where there is none.
        consumers: The operations that use its result: the place of each among the operations, and the number of the
            norm of the gradient that comes from there; -1 where that is the norm that has arrived there.
        arrival: Number of the norm of the gradient that arrives in all; -1 where it is that of the only consumer.
    """

    group: Group
    parameters: tuple[int, ...]
    consumers: tuple[tuple[int, int], ...]
    arrival: int
    layer: str = ""

    def named(self, names: Mapping[int, str]) -> Operation:
        """The same with the name of its layer, given those of the parameters' layers by ``id``."""
        layer = next((names[parameter] for parameter in self.parameters if parameter in names), "")
        return replace(self, layer=layer) if layer else self


class Spot(NamedTuple):
    """What is measured when autograd has passed a node.

    Attributes:
        arrival: Number of the norm of what arrives; -1 for none.
        edges: Place of each measured input among the node's, and number of the norm of what is sent there.
    """

    arrival: int
    edges: tuple[tuple[int, int], ...]


class HookedNode(NamedTuple):
    """A node, and what is measured there."""

    node: Node
    of: Spot


@dataclass(frozen=True)
class Graph:
    """The operations of a graph, from the loss on: each stands behind those that use its result.

    Attributes:
        operations: Plain numbers and names, which keep no graph alive.
        spots: Where to measure; the nodes keep the graph alive.
        num_norms: Number of norms.
    """

    operations: tuple[Operation, ...]
    spots: tuple[HookedNode, ...]
    num_norms: int


def read(root: Node) -> Graph | None:
    """Read the graph of a loss.

    Args:
        root: The node of the loss.

    Returns:
        Its operations; None if it is too large to be measured.
    """
    order = _in_order(root)
    if order is None:
        return None
    signals = _signals(order)
    place = {node: number for number, node in enumerate(node for node in order if node in signals)}
    consumers: list[list[tuple[int, int]]] = [[] for _ in place]
    operations, spots, num_norms = [], [], 0
    for node, number in place.items():
        name = plain_name(node.name())
        inputs = [(i, place[other]) for i, (other, _) in enumerate(node.next_functions) if other in place]
        # what arrives has to be measured where several branches meet, and at the loss
        arrival = -1
        if len(consumers[number]) != 1:
            arrival, num_norms = num_norms, num_norms + 1
        # what is sent on has a norm of its own, unless the operation only moves it
        edges = []
        for i, other in inputs:
            sent = -1
            if not preserves(name):
                sent, num_norms = num_norms, num_norms + 1
                edges.append((i, sent))
            consumers[other].append((number, sent))
        if edges or arrival >= 0:
            spots.append(HookedNode(node, Spot(arrival, tuple(edges))))
        group = group_of(node.name(), len(inputs))
        operations.append(Operation(group, tuple(_parameters(node, signals)), tuple(consumers[number]), arrival))
    return None if len(spots) > MAX_HOOKS else Graph(tuple(operations), tuple(spots), num_norms)


def _in_order(root: Node) -> list[Node] | None:
    """Every node behind all that use it; None if there are too many."""
    done: dict[Node, None] = {}
    seen, stack = {root}, [(root, iter(root.next_functions))]
    while stack:
        node, rest = stack[-1]
        following = next((other for other, _ in rest if other is not None and other not in seen), None)
        if following is None:
            done[node] = None
            stack.pop()
        elif len(seen) >= MAX_NODES:
            return None
        else:
            seen.add(following)
            stack.append((following, iter(following.next_functions)))
    return list(reversed(done))


def _signals(order: list[Node]) -> set[Node]:
    """The nodes that handle signals, and not what parameters are made into before they meet one."""
    found: set[Node] = set()
    for node in reversed(order):
        follows = any(other in found for other, _ in node.next_functions)
        if follows or begins_a_signal(plain_name(node.name())):
            found.add(node)
    return found


def _parameters(node: Node, signals: set[Node]) -> Iterator[int]:
    """The matrices that a node is given, through what only reshapes them."""
    stack = [(other, 1) for other, _ in node.next_functions if other is not None and other not in signals]
    while stack:
        other, depth = stack.pop()
        variable = getattr(other, "variable", None)
        if variable is not None and variable.ndim >= 2:
            yield id(variable)
        if depth < MAX_DEPTH:
            stack.extend((one, depth + 1) for one, _ in other.next_functions if one is not None)
