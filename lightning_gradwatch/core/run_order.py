"""In which order layers run."""

from __future__ import annotations


class RunOrder:
    """Follows the layers as their forward calls end.

    Attributes:
        names: Names of the layers in the order in which their first forward call ended.
        ran: Names of the layers that ran since :meth:`start`.
        fed: Of these the ones whose input was part of the graph, where that was looked at.
        placed: Those that have their place.
        previous: The one that ran last; ``""`` at the start.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.placed: set[str] = set()
        self.start()

    def start(self) -> None:
        """A new step begins."""
        self.ran: set[str] = set()
        self.fed: set[str] = set()
        self.previous = ""

    def place(self, name: str) -> None:
        """Give a layer its place: behind the one that ran before it, also if it first runs late."""
        self.placed.add(name)
        place = self.names.index(self.previous) + 1 if self.previous in self.names else 0
        self.names.insert(place, name)
