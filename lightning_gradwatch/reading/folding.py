"""Which layers share a row if there are many: along the tree of modules, and along repetition. Pure.

The tab, the page and the terminal all fold as told here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.reading.modules import Branch, repetitions, tree_of
from lightning_gradwatch.reading.schema import Array
from lightning_gradwatch.reading.spans import spans

MOST_ROWS = 50
"""More than these can hardly be told apart by their names on one screen."""
MOST_ALONE = 12
"""So many layers have rows of their own whatever they resemble: those that are sick."""
ALIKE = 0.25
"""Decades (root of the mean square) by which repetitions may differ within a row: hardly seen in colour."""
_PARTS = 16
"""A row of very many layers opens into so many rows first."""


@dataclass(frozen=True)
class Row:
    """Layers that share a row.

    Attributes:
        path: What they are called together; of a single layer its name.
        layers: Their places in running order, rising.
        parts: What the row opens into; empty where that is its layers.
    """

    path: str
    layers: tuple[int, ...]
    parts: tuple[Row, ...] = ()

    def among(self, places: Sequence[int]) -> Row:
        """The same among more layers: each layer is told by its place there."""
        return Row(self.path, tuple(places[layer] for layer in self.layers), tuple(p.among(places) for p in self.parts))


def fold(layers: Sequence[str], values: Array, sick: Iterable[str] = (), most: int = MOST_ROWS) -> list[Row]:
    """Rows for all layers, the input end first.

    Rows are opened one after the other, always the one whose layers differ most for each row that this adds. A module
    opens into what it consists of; blocks that repeat open into the same part of each of them, or into the first and
    the last half of them, whichever tells more.

    Args:
        layers: Names in running order.
        values: A number for each, such as its gradient norm: rows are chosen by how these differ in their logarithm.
            Shape ``(layers,)``; what is not positive and finite is left out.
        sick: Layers that have a row of their own, the most important first; of very many only the first.
        most: Rows at most, unless what is sick needs more.
    """
    if len(layers) <= most:
        return [Row(name, (place,)) for place, name in enumerate(layers)]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(np.asarray(values, np.float64))
    places = {name: place for place, name in enumerate(layers)}
    alone = [places[name] for name in dict.fromkeys(sick) if name in places][:MOST_ALONE]
    branches = _outermost(Branch(tree_of(tuple(layers))), most)
    # what is sick needs some of the rows: its own, and what is left before and behind it
    branches = _Chooser(np.where(np.isfinite(logs), logs, np.nan)).opened(branches, most - 2 * len(alone))
    for place in alone:
        branches = [part for branch in branches for part in _isolated(branch, place)]
    return list(map(_row, branches))


class _Chooser:
    """Chooses by how much the layers of a branch differ.

    Args:
        logs: Logarithm of the value of each layer, NaN for none; shape ``(layers,)``.
    """

    def __init__(self, logs: Array) -> None:
        self._logs = logs
        self._spreads: dict[Branch, float] = {}

    def opened(self, branches: list[Branch], most: int) -> list[Branch]:
        """The branches, opened until there are as many as may be."""
        gains = [self._gain(branch) for branch in branches]
        while True:
            able = [i for i, (_, _, parts) in enumerate(gains) if parts and len(branches) + len(parts) - 1 <= most]
            if not able:
                return branches
            best = max(able, key=lambda i: gains[i][:2])
            parts = gains[best][2]
            branches[best : best + 1] = parts
            gains[best : best + 1] = [self._gain(part) for part in parts]

    def _gain(self, branch: Branch) -> tuple[float, int, list[Branch]]:
        """What opening a branch tells for each row that it adds, how many layers it holds, and its parts.

        Repetitions that are alike stay together, unless one half of them clearly differs from the other.
        """
        ways, spread = _ways(branch), self._spread(branch)
        if spread <= ALIKE**2 * len(branch.layers):
            is_trend = spread > (ALIKE / 5) ** 2 * len(branch.layers)
            ways = [p for p in ways if not _is_cut(branch, p) or (is_trend and self._told(branch, p) > spread / 2)]
        parts = max(ways, key=lambda parts: self._told(branch, parts), default=list[Branch]())
        return self._told(branch, parts), len(branch.layers), parts

    def _told(self, branch: Branch, parts: list[Branch]) -> float:
        spread = self._spread(branch) - sum(map(self._spread, parts))
        return spread / (len(parts) - 1) if len(parts) > 1 else 0.0

    def _spread(self, branch: Branch) -> float:
        """Sum of the squared deviations from the mean."""
        if branch not in self._spreads:
            logs = self._logs[np.array(branch.layers)]
            logs = logs[~np.isnan(logs)]
            self._spreads[branch] = float(((logs - logs.mean()) ** 2).sum()) if len(logs) else 0.0
        return self._spreads[branch]


def _row(branch: Branch) -> Row:
    """The row of a branch, with what a person opens it into."""
    ways = _ways(branch)
    parts = _pieces(branch) if ways and _is_cut(branch, ways[0]) else [part for way in ways[:1] for part in way]
    are_layers = len(parts) == len(branch.layers)
    return Row(branch.path, branch.layers, () if are_layers else tuple(map(_row, parts)))


def _outermost(whole: Branch, most: int) -> list[Branch]:
    """The modules of the model itself; neighbours together where they are too many."""
    branches = repetitions(whole.modules)
    if len(branches) > most:
        return _pieces(whole)
    return _ways(branches[0])[0] if len(branches) == 1 else branches


def _ways(branch: Branch) -> list[list[Branch]]:
    """What a branch can be opened into."""
    modules = branch.modules
    if len(branch.layers) == 1:
        return []
    if len(modules) == 1:
        inner = repetitions(modules[0].children)
        if len(inner) > _PARTS:
            return [_halves(Branch(modules[0].children))]
        return [inner] if len(inner) > 1 else _ways(inner[0])
    if not branch.is_repetition or not modules[0].children:
        return [_halves(branch)]
    roles = branch.roles()
    return [roles, _halves(branch)] if len(roles) > 1 else _ways(roles[0])


def _halves(branch: Branch) -> list[Branch]:
    return branch.cut((len(branch.modules) + 1) // 2)


def _is_cut(branch: Branch, parts: list[Branch]) -> bool:
    """Whether parts consist of the same modules as a branch."""
    return len(branch.modules) > 1 and bool(parts) and parts[0].modules[0] is branch.modules[0]


def _pieces(branch: Branch) -> list[Branch]:
    """Module by module, or in pieces of equal size where they are very many."""
    count = len(branch.modules)
    pieces = count if count <= 4 * _PARTS else _PARTS
    return branch.cut(*(piece * count // pieces for piece in range(1, pieces)))


def _isolated(branch: Branch, layer: int) -> list[Branch]:
    """A branch in pieces, one of which is a layer in it."""
    if layer not in branch.layers or len(branch.layers) == 1:
        return [branch]
    if len(branch.modules) == 1:
        parts = repetitions(branch.modules[0].children)
    else:
        place = next(i for i, module in enumerate(branch.modules) if layer in module.layers)
        parts = branch.cut(place, place + 1)
    return [piece for part in parts for piece in _isolated(part, layer)]


def places_of(rows: Sequence[Row]) -> tuple[Array, Array]:
    """Places of the layers, row by row, shape ``(layers,)``; and where in them each row begins, shape ``(rows,)``."""
    sizes = [len(row.layers) for row in rows]
    return np.concatenate([row.layers for row in rows]), np.cumsum([0, *sizes[:-1]])


def plain(rows: Iterable[Row]) -> list[object]:
    """Rows as plain JSON: a layer as its place; a group as its name, its layers and its parts."""
    return [row.layers[0] if len(row.layers) == 1 else _plain(row) for row in rows]


def _plain(row: Row) -> dict[str, object]:
    parts = {"parts": plain(row.parts)} if row.parts else {}
    return {"path": row.path, "layers": spans(row.layers), **parts}
