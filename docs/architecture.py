"""Draws the house: which module imports which, as a picture for `docs/architecture.md`.

Use: `python docs/architecture.py`. It reads the imports and needs nothing but the standard library.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import lightning_gradwatch

PACKAGE = Path(lightning_gradwatch.__file__).parent
PICTURE = Path(__file__).parent / "pictures" / "architecture.svg"
NAME = "lightning_gradwatch"
TOGETHER = (
    *("cli", "outputs", "reading", "tensorboard", "trials"),
    *(f"core/{folder}" for folder in ("alerts", "clip", "history", "quantities")),
)
"""Folders that are drawn as one box."""
LEAVES_OUT = tuple(
    f"core/{name}" for name in ("records", "_check", "_guard", "saved", "modules", "modes", "devices", "optional")
)
"""Small things that nearly all others use; and what only holds names."""
WIDTH, HEIGHT, GAP, SPACE = 118, 22, 10, 30
COLOURS = {"core": "#dbe9f6", "": "#f3e3cf"}

Graph = dict[str, set[str]]


def boxes(package: Path = PACKAGE) -> Graph:
    """Each module, or folder that is drawn as one, with those that it imports when it is loaded or run."""
    found: Graph = {}
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).with_suffix("").as_posix().removesuffix("/__init__")
        box = _box(module)
        if box:
            found.setdefault(box, set()).update(filter(None, map(_box, _imports(path))))
    known = set(found)
    return {box: (others & known) - {box} for box, others in found.items()}


def _imports(path: Path) -> Iterator[str]:
    for node in _run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME):
            inside = (node.module or "").removeprefix(NAME).lstrip(".").replace(".", "/")
            yield inside
            yield from (f"{inside}/{alias.name}".lstrip("/") for alias in node.names)


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """A tree without what is there for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _run(child)


def _box(module: str) -> str:
    """The box in which a module is drawn; ``""`` for none."""
    for folder in TOGETHER:
        if module == folder or module.startswith(f"{folder}/"):
            return folder
    return "" if module in ("__init__", NAME, "core", *LEAVES_OUT) or module.endswith("__main__") else module


def levels(graph: Graph) -> dict[str, int]:
    """How far each box is from those that nobody imports, by the longest way.

    Raises:
        ValueError: If imports run in a circle.
    """
    found: dict[str, int] = {}
    importers = {box: {other for other, there in graph.items() if box in there} for box in graph}

    def level(box: str, way: tuple[str, ...] = ()) -> int:
        if box in way:
            raise ValueError(f"imports run in a circle: {' -> '.join((*way, box))}")
        if box not in found:
            found[box] = max((1 + level(other, (*way, box)) for other in importers[box]), default=0)
        return found[box]

    for box in graph:
        level(box)
    return found


def needed(graph: Graph) -> Graph:
    """The arrows that say something: those that follow from others are left out."""
    reached: dict[str, set[str]] = {}

    def reach(box: str) -> set[str]:
        if box not in reached:
            reached[box] = graph[box].union(*map(reach, graph[box]))
        return reached[box]

    return {
        box: {other for other in there if not any(other in reach(way) for way in there - {other})}
        for box, there in graph.items()
    }


def draw(graph: Graph) -> str:
    """The picture as SVG: whoever imports stands above what is imported."""
    rows: dict[int, list[str]] = {}
    for box, level in sorted(levels(graph).items()):
        rows.setdefault(level, []).append(box)
    places = _places(rows, graph)
    width = max(x for x, _ in places.values()) + WIDTH + GAP
    height = max(y for _, y in places.values()) + HEIGHT + GAP
    arrows = [
        _arrow(places[box], places[other]) for box, there in sorted(needed(graph).items()) for other in sorted(there)
    ]
    parts = [*arrows, *(_drawn(box, *places[box]) for box in sorted(graph))]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>\n"])


def _places(rows: Mapping[int, list[str]], graph: Graph) -> dict[str, tuple[int, int]]:
    """The upper left corner of each box; in each row as near as may be to the boxes that point to it."""
    places: dict[str, tuple[int, int]] = {}
    longest = max(map(len, rows.values()))
    for level, row in sorted(rows.items()):
        above = {box: [places[other][0] for other in graph if box in graph[other]] for box in row}
        ordered = sorted(row, key=lambda box: (sum(above[box]) / max(len(above[box]), 1), box))
        start = GAP + (longest - len(row)) * (WIDTH + GAP) // 2
        for i, box in enumerate(ordered):
            places[box] = (start + i * (WIDTH + GAP), GAP + level * (HEIGHT + SPACE))
    return places


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x, y), (u, v) = (start[0] + WIDTH // 2, start[1] + HEIGHT), (end[0] + WIDTH // 2, end[1])
    middle = (y + v) // 2
    return f'<path d="M{x},{y} C{x},{middle} {u},{middle} {u},{v}" fill="none" stroke="#9aa5b1" stroke-width="0.8"/>'


def _drawn(box: str, x: int, y: int) -> str:
    colour = COLOURS["core" if box.startswith("core/") else ""]
    label = escape(box.removeprefix("core/") + ("/" if box in TOGETHER else ""))
    rect = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4" fill="{colour}" stroke="#52606d"/>'
    return f'{rect}<text x="{x + WIDTH // 2}" y="{y + 15}" font-size="11" text-anchor="middle">{label}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(boxes()), encoding="utf-8")
