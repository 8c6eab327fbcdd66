"""Refusing wrong arguments in one voice: the argument, the rule, what came, and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard


def refuse(argument: str, rule: str, came: object, cure: str) -> ValueError:
    """The error for a wrong argument, to be raised by the caller."""
    return ValueError(f"GradWatch: `{argument}` must be {rule}, but {came!r} came. To cure it: {cure}.")


def require(argument: str, value: object, minimum: int, cure: str) -> None:
    """Refuse ``value`` unless it is an integer of at least ``minimum``.

    Raises:
        ValueError: If it is not; booleans are not integers here.
    """
    if isinstance(value, bool) or not isinstance(value, (Integral, int)) or int(value) < minimum:
        raise refuse(argument, f"an integer of {minimum} or more", value, cure)


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a sequence and no text, of whatever class: Hydra, for example, has lists of its own."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def require_globs(argument: str, globs: object) -> tuple[str, ...]:
    """One glob or several, as a tuple.

    Raises:
        ValueError: If it is anything else, or one of them is empty.
    """
    chosen = (globs,) if isinstance(globs, str) else globs
    if not is_list(chosen) or not all(isinstance(glob, str) and glob for glob in chosen):
        raise refuse(argument, "a glob or a list of globs over layer names", globs, 'for example "encoder.*"')
    return tuple(chosen)


def require_fraction(argument: str, value: object, cure: str) -> None:
    """Refuse ``value`` unless it is a finite number in (0, 1].

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (Real, float)) or not 0 < float(value) <= 1:
        raise refuse(argument, "a number in (0, 1]", value, cure)
