"""Which layers share which rows, in a few characters of an address: ``0,1-4,20-80:10+5,6..9``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from lightning_gradwatch.reading.schema import Array

_SPAN = re.compile(r"([0-9]{1,9})(?:(-|\.\.)([0-9]{1,9})(?::([0-9]{1,9}))?)?")


def spans(layers: Sequence[int]) -> str:
    """Rising places in a few characters: ``3+5-9+20-80:10`` for one, for neighbours, and for every tenth."""
    return "+".join(_spans(layers))


def _spans(layers: Sequence[int]) -> Iterator[str]:
    start = 0
    while start < len(layers):
        end = start + 1
        stride = layers[end] - layers[start] if end < len(layers) else 1
        while end < len(layers) and layers[end] - layers[end - 1] == stride:
            end += 1
        if end - start == 2 and stride > 1:
            end -= 1
        yield _span(layers[start], layers[end - 1], stride)
        start = end


def _span(first: int, last: int, stride: int) -> str:
    if first == last:
        return str(first)
    return f"{first}-{last}" if stride == 1 else f"{first}-{last}:{stride}"


def neighbours(num_layers: int, most: int) -> tuple[Array, Array]:
    """At most so many rows of neighbours, as by :func:`places_of`."""
    count = min(most, num_layers)
    return np.arange(num_layers), np.arange(count) * num_layers // count


def places_of(text: str, num_layers: int) -> tuple[Array, Array]:
    """The inverse of what :func:`spans` makes of several rows, with commas between them.

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


def _span_of(text: str, num_layers: int) -> tuple[range, bool]:
    """Places of layers, and whether each of them is a row."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is no row")
    first, last, stride = int(found[1]), int(found[3] or found[1]), int(found[4] or 1)
    if not first <= last < num_layers or not stride:
        raise ValueError(f"{text!r} does not lie among {num_layers} layers")
    return range(first, last + 1, stride), found[2] == ".."
