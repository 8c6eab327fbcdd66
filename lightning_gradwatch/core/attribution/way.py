"""The way of the gradient from the loss to a layer, and what is lost on it by which kind of operation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_gradwatch.core.attribution.graph import Operation
from lightning_gradwatch.core.attribution.operations import Group
from lightning_gradwatch.core.saved import Saved, State

STRONG = 8.0
"""A norm that is no farther than this from 1, in decades, can be taken in float32 the next time."""


class _Kept(NamedTuple):
    """What a checkpoint holds of an operation."""

    group: Group
    layer: str
    arrival: int
    consumers: tuple[tuple[int, int], ...]

    def is_sound(self, number: int, num_norms: int) -> bool:
        """Whether it can be the operation with a number: its gradient comes from those before it, with known norms."""
        norms = (self.arrival, *(norm for _, norm in self.consumers))
        has_norm = self.arrival >= 0 or len(self.consumers) == 1
        return (
            has_norm
            and all(0 <= source < number for source, _ in self.consumers)
            and all(-1 <= norm < num_norms for norm in norms)
        )


class Link(NamedTuple):
    """What one operation does to the norm of the gradient.

    Attributes:
        group: What the operation is.
        layer: The layer whose output the gradient has passed last on its way from the loss; ``""`` before the first.
        lost: Decades by which the norm falls; negative if it grows.
    """

    group: Group
    layer: str
    lost: float


@dataclass(frozen=True)
class Share:
    """What all operations of a group do to it together.

    Attributes:
        group: What they are.
        count: How many.
        lost: Decades by which they make the norm fall; negative if they let it grow.
    """

    group: Group
    count: int
    lost: float

    @property
    def factor(self) -> float:
        """What each lets through, the geometric mean: 0.25 of a sigmoid at best."""
        return float(10 ** (-self.lost / self.count))


class Attribution:
    """A measured backward pass.

    Along every way the links' decades add up to those between its ends. Where branches meet, the way goes on along
    that which brought most, and what the others brought is a link of its own.

    Args:
        operations: From the loss on.
        logs: log10 of the norms.
    """

    def __init__(self, operations: Sequence[Operation], logs: Sequence[float]) -> None:
        self._operations = operations
        self._logs = logs
        self._place = {operation.layer: number for number, operation in enumerate(operations) if operation.layer}

    @classmethod
    def load(cls, saved: Saved) -> Attribution | None:
        """What ``state_dict`` gave; None if that was nothing, or cannot be one."""
        logs = saved.take("logs", list[float], [])
        kept = saved.take(
            "operations",
            list[_Kept],
            [],
            lambda kept: all(one.is_sound(number, len(logs)) for number, one in enumerate(kept)),
        )
        operations = [Operation(one.group, (), one.consumers, one.arrival, one.layer) for one in kept]
        return cls(operations, logs) if operations else None

    def state_dict(self) -> State:
        """Primitives that ``load`` takes back."""
        kept = [(one.group, one.layer, one.arrival, one.consumers) for one in self._operations]
        return {"operations": kept, "logs": list(self._logs)}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that a gradient has reached, the loss end first."""
        return tuple(self._place)

    @property
    def is_strong(self) -> bool:
        """Whether no norm was so small or so large that its squares could leave the range of float32."""
        return all(abs(log) <= STRONG for log in self._logs)

    def norm_at(self, layer: str) -> float:
        """log10 of the norm of the gradient at a layer's output: at its last use on the way; NaN if it was not seen."""
        return self._arrival(self._place[layer]) if layer in self._place else math.nan

    def stopped(self) -> tuple[str, Group] | None:
        """Whether the loss's gradient becomes exactly zero before it reaches any layer.

        Returns:
            The first layer on the way, and the operation before it that passes nothing on; None where a gradient comes,
            and where the loss sends none.
        """
        layer, number = next(iter(self._place.items()), ("", 0))
        while self._operations[number].consumers and self._arrival(number) == -math.inf:
            source, _ = self._strongest(number)
            if self._arrival(source) > -math.inf:
                return layer, self._operations[source].group
            number = source
        return None

    def starved(self) -> frozenset[str]:
        """Layers whose gradient is exactly zero, though one between them and the loss gets a gradient.

        So a branch is dead, and not merely left out of the loss.
        """
        if -math.inf not in self._logs:
            return frozenset()
        zero = (layer for layer, number in self._place.items() if self._arrival(number) == -math.inf)
        return frozenset(layer for layer in zero if self._is_within(self._place[layer]))

    def _is_within(self, number: int) -> bool:
        """Whether an operation has a layer with a gradient on its way to the loss."""
        passed = self._towards_loss(number)
        return any(self._operations[source].layer and self._arrival(source) > -math.inf for source in passed)

    def head(self) -> tuple[str, frozenset[Group], float] | None:
        """What stands between the loss and the first layer on the gradient's way.

        Returns:
            That layer, the groups of the operations before it, and log10 of the gradient's norm at its output; None if
            no gradient has reached one.
        """
        layer = next(iter(self._place), "")
        log = self.norm_at(layer)
        if not math.isfinite(log):
            return None
        passed = self._towards_loss(self._place[layer])
        return layer, frozenset(self._operations[source].group for source in passed), log

    def lost_before(self, group: Group) -> dict[str, float]:
        """Decades that a group of operations loses on the way from the loss to each layer; a gain counts for 0."""
        lost = [0.0] * len(self._operations)
        for number, operation in enumerate(self._operations):  # each stands behind those that its gradient comes from
            if operation.consumers:
                source, sent = self._strongest(number)
                there = self._arrival(source) - sent if self._operations[source].group == group else 0.0
                lost[number] = lost[source] + (there if 0 < there < math.inf else 0.0)
        return {layer: lost[number] for layer, number in self._place.items()}

    def branches(self) -> list[tuple[str, ...]]:
        """The layers of each branch along the ways of most gradient, from its input end to where it meets another.

        Returns:
            Names, the input end first; a network without branches is a single one.
        """
        following, passed = dict[str, str](), [""] * len(self._operations)
        for number, operation in enumerate(self._operations):  # each stands behind those that its gradient comes from
            if operation.consumers:
                source, _ = self._strongest(number)
                passed[number] = self._operations[source].layer or passed[source]
            if operation.layer and self._place[operation.layer] == number:
                following[operation.layer] = passed[number]
        uses = Counter(following.values())
        return [tuple(self._branch(layer, following, uses)) for layer in following if layer not in uses]

    @staticmethod
    def _branch(layer: str, following: Mapping[str, str], uses: Mapping[str, int]) -> Iterator[str]:
        """The layers from one at an input end on, for as long as no other branch leads there."""
        seen = set[str]()
        while layer and layer not in seen and uses.get(layer, 0) < 2:
            yield layer
            seen.add(layer)  # a layer that is used at several places may stand in front of itself
            layer = following[layer]

    def way(self, layer: str) -> list[Link]:
        """From the loss to the output of a layer; empty if not every norm on it is known, or one is zero."""
        if layer not in self._place:
            return []
        number, back = self._place[layer], list[tuple[Group, int, float]]()
        while self._operations[number].consumers:
            source, sent = self._strongest(number)
            if len(self._operations[number].consumers) > 1:
                back.append(("joins", source, sent - self._arrival(number)))
            back.append((self._operations[source].group, source, self._arrival(source) - sent))
            number = source
        links, passed = list[Link](), ""
        for group, source, lost in reversed(back):
            passed = self._operations[source].layer or passed
            if lost:  # else it has only moved the gradient
                links.append(Link(group, passed, lost))
        return links if all(math.isfinite(link.lost) for link in links) else []

    def _towards_loss(self, number: int) -> Iterator[int]:
        """The operations between one and the loss, along that which brought most."""
        while self._operations[number].consumers:
            number, _ = self._strongest(number)
            yield number

    def _strongest(self, number: int) -> tuple[int, float]:
        """The operation from which most of the gradient comes to one, and log10 of the norm of what it sends."""
        sent = [(source, self._sent(source, norm)) for source, norm in self._operations[number].consumers]
        known = [one for one in sent if not math.isnan(one[1])]
        return max(known or sent, key=lambda one: one[1])

    def _sent(self, source: int, norm: int) -> float:
        return self._logs[norm] if norm >= 0 else self._arrival(source)

    def _arrival(self, number: int) -> float:
        while self._operations[number].arrival < 0:
            ((source, norm),) = self._operations[number].consumers
            if norm >= 0:
                return self._logs[norm]
            number = source
        return self._logs[self._operations[number].arrival]


def shares(links: Iterable[Link]) -> list[Share]:
    """What each group of operations loses, those that lose most first."""
    found: dict[Group, list[float]] = {}
    for link in links:
        found.setdefault(link.group, []).append(link.lost)
    return sorted((Share(group, len(lost), sum(lost)) for group, lost in found.items()), key=lambda share: -share.lost)
