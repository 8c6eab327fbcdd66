"""Which layers share which rows, in a few characters of an address: ``0,1-4,20-80:10+5,6..9``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from lightning_gradwatch.reading.schema import Array

_SPAN = re.compile(r"([0-9]{1,9})(?:(-|\.\.)([0-9]{1,9})(?::([0-9]{1,9})(?:x([0-9]{1,9}))?)?)?")


def spans(layers: Sequence[int]) -> str:
    """Rising places in a few characters: ``3+5-9+20-80:10+91-99:4x2`` for one, for neighbours, and for some of them.

    ``20-80:10`` is every tenth, ``91-99:4x2`` two of every four, of which the last begin with 99.
    """
    runs = [(layers[start], end - start) for start, end in pairwise(_breaks(layers))]
    return "+".join(_spans(runs))


def _breaks(layers: Sequence[int]) -> list[int]:
    """Where neighbours begin, and the end."""
    inside = (place for place in range(1, len(layers)) if layers[place] != layers[place - 1] + 1)
    return [0, *inside, len(layers)]


def _spans(runs: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Runs of neighbours, as (first, number); those that are equally long and equally far apart are one span."""
    start = 0
    while start < len(runs):
        (first, width), end = runs[start], start + 1
        stride = runs[end][0] - first if end < len(runs) else 0
        while end < len(runs) and runs[end] == (first + stride * (end - start), width):
            end += 1
        last, start = first + stride * (end - start - 1), end
        if last > first:
            yield f"{first}-{last}:{stride}" + (f"x{width}" if width > 1 else "")
        else:
            yield f"{first}-{first + width - 1}" if width > 1 else str(first)


def neighbours(num_layers: int, most: int) -> tuple[Array, Array]:
    """At most so many rows of neighbours, as by ``places_of``."""
    count = min(most, num_layers)
    return np.arange(num_layers), np.arange(count) * num_layers // count


def places_of(text: str, num_layers: int) -> tuple[Array, Array]:
    """The inverse of what ``spans`` makes of several rows, with commas between them.

    Args:
        text: Such as ``0,1-4,5+9``; ``5..8`` are four rows of a layer each.
        num_layers: Layers that there are.

    Returns:
        Places of layers, shape ``(places,)``, and where in them each row begins, shape ``(rows,)``.

    Raises:
        ValueError: If it is no such text, or there are no such layers.
    """
    places, starts = list[int](), list[int]()
    for token in text.split(","):
        found = [_span_of(part, num_layers) for part in token.split("+")]
        is_alone = len(found) == 1 and found[0][1]
        row = [place for span, _ in found for place in span]
        starts += range(len(places), len(places) + len(row)) if is_alone else [len(places)]
        places += row
        if len(places) > num_layers:
            raise ValueError("a layer is in two rows")
    return np.array(places), np.array(starts)


def _span_of(text: str, num_layers: int) -> tuple[list[int], bool]:
    """Places of layers, and whether each of them is a row."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is no row")
    first, last, stride, width = int(found[1]), int(found[3] or found[1]), int(found[4] or 1), int(found[5] or 1)
    if not first <= last <= num_layers - width or not 1 <= width <= stride:
        raise ValueError(f"{text!r} does not lie among {num_layers} layers")
    places = [start + place for start in range(first, last + 1, stride) for place in range(width)]
    return places, found[2] == ".."
