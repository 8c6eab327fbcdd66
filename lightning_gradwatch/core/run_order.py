"""In which order layers run, and whose outputs nobody wants."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class RunOrder:
    """Follows the layers as their forward calls end.

    Attributes:
        names: Names of the layers in the order in which their first forward call ended.
        ran: Names of the layers that ran since ``start``.
        fed: Of these the ones whose input was part of the graph, where that was looked at.
        spare: Those of them whose output was gone before the last backward pass that was looked at.
        reached: Layers at whose output a gradient has ever arrived.
        followed: What is followed of the others' outputs.
        enclosed: Of these the layers whose enclosing module still runs, by its name.
        placed: Those that have their place.
        previous: The one that ran last; ``""`` at the start.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.placed: set[str] = set()
        self.reached: set[str] = set()
        self.spare: frozenset[str] = frozenset()
        self.start()

    def start(self) -> None:
        """A new step begins."""
        self.ran: set[str] = set()
        self.fed: set[str] = set()
        self.followed: dict[str, list[StorageWeakRef]] = {}
        self.enclosed: dict[str, list[str]] = {}
        self.previous = ""

    def place(self, name: str) -> None:
        """Give a layer its place: behind the one that ran before it, also if it first runs late."""
        names, previous = self.names, self.previous
        if names and names[-1] == previous:  # nearly always: no look at all the others
            names.append(name)
        else:
            names.insert(names.index(previous) + 1 if previous in self.placed else 0, name)
        self.placed.add(name)

    def follow(self, name: str, outputs: Iterable[Tensor]) -> None:
        """Follow what a layer has put out, without keeping it.

        What a layer behind it needs for its gradient is kept until then, also if it was detached in between.
        """
        if name not in self.followed:
            self.enclosed.setdefault(name.rpartition(".")[0], []).append(name)
        kept = self.followed.setdefault(name, [])
        for output in outputs:
            try:
                kept.append(StorageWeakRef(output.untyped_storage()))
            except RuntimeError:  # sparse, batched by vmap: what cannot be followed is not called spare
                self.fed.discard(name)

    def leave(self, name: str) -> None:
        """A layer runs: the modules that it is not part of have ended.

        What such a module has used up itself has steered it, as a router does that chooses the expert: not a head.
        """
        for module in [module for module in self.enclosed if module and not name.startswith(f"{module}.")]:
            self.fed -= {inside for inside in self.enclosed.pop(module) if _is_gone(self.followed[inside])}

    def begin_backward(self) -> None:
        """The first gradient of a backward pass has come: what is not there any more, nobody has kept."""
        gone = (name for name, kept in self.followed.items() if kept and _is_gone(kept))
        self.spare, self.followed, self.enclosed = frozenset(gone) & self.fed, {}, {}


def _is_gone(kept: list[StorageWeakRef]) -> bool:
    """Whether nobody has kept any of these outputs."""
    return all(output.expired() for output in kept)
