"""What a run went on without, so that nobody takes silence for health."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict, TypeGuard


class LeftOut(TypedDict):
    """Something that failed, and was left out from then on.

    Attributes:
        kind: ``"rule"`` or ``"quantity"`` for one of the user's own, ``"figure"`` for what GradWatch measures itself.
        name: Name of the rule's kind, or of the quantity, or of the figure.
        step: The step from which on it is left out.
        message: All of it in a sentence.
    """

    kind: str
    name: str
    step: int
    message: str


def are_left_out(found: object) -> TypeGuard[list[LeftOut]]:
    """Whether this is a list of what was left out."""
    return isinstance(found, list) and all(isinstance(one, dict) and _is_whole(one) for one in found)


def _is_whole(one: dict[object, object]) -> bool:
    is_text = all(isinstance(one.get(name), str) for name in ("kind", "name", "message"))
    return is_text and isinstance(one.get("step"), int)


def unjudged(left_out: Iterable[LeftOut]) -> str:
    """Why a run cannot be called healthy though all of its log can be read; ``""`` if no rule was left out."""
    return next((one["message"] for one in left_out if one["kind"] == "rule"), "")


def of_quantity(left_out: Sequence[LeftOut], name: str) -> str:
    """What became of a quantity of the user's own; ``""`` if it was not left out."""
    return next((one["message"] for one in left_out if (one["kind"], one["name"]) == ("quantity", name)), "")
