"""A checkpoint's state, taken back part by part: what it lacks, or has of another kind, starts afresh."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import IntEnum
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

T = TypeVar("T")
State = dict[str, object]
"""What a ``state_dict`` returns: primitives and tensors, by name."""


def _always(_: object) -> bool:
    return True


_SEQUENCES: dict[object, Callable[[Iterable[object]], object]] = {list: list, set: set, frozenset: frozenset}


class _UnfitError(Exception):
    """A value is not of the kind that was asked for."""


class Saved:
    """A mapping that was saved, perhaps by an older or newer version of GradWatch, or damaged since.

    Parts that nobody asks for are ignored. One that is not there is merely new: it starts afresh without a word. One
    that is there and cannot be taken starts afresh, too, and its name is noted.

    Args:
        state: What was saved.
        lost: Where the names of parts are noted that could not be taken; None for a list of its own.
        path: Name of this mapping in the whole.

    Attributes:
        lost: The names noted so far.
    """

    def __init__(self, state: object, lost: list[str] | None = None, path: str = "") -> None:
        self.lost = [] if lost is None else lost
        self._path = path
        self._parts: Mapping[object, object] = state if isinstance(state, Mapping) else {}
        if self._parts is not state and (path or "everything") not in self.lost:
            self.lost.append(path or "everything")

    @classmethod
    def of(cls, state: Saved | Mapping[str, object]) -> Saved:
        """A mapping as one; what is one already, as it is."""
        return state if isinstance(state, Saved) else cls(state)

    def take(self, name: str, kind: type[T], default: T, check: Callable[[T], bool] = _always) -> T:
        """A part, as a value of its own; ``default`` if it is not there, or of another kind.

        Args:
            name: Its name.
            kind: A type such as ``list[float]``, ``dict[str, int]`` or ``tuple[str, ...]``; a dataclass and a named
                tuple are made of their fields. An int passes for a float, and a list for a tuple; of a ``TypedDict``
                any part may be missing.
            default: What to take instead.
            check: Whether a value of that kind will do.
        """
        found = self.find(name, kind, check)
        if found is None:
            return default if self._parts.get(name, self) is not None else self.lose(name, default)
        return found

    def find(self, name: str, kind: type[T], check: Callable[[T], bool] = _always) -> T | None:
        """A part that may be None; None, too, if it is not there, or of another kind."""
        if self._parts.get(name) is None:
            return None
        try:
            value: T = _fit(self._parts[name], kind)
        except _UnfitError:
            return self.lose(name, None)
        return value if check(value) else self.lose(name, None)

    def take_each(self, name: str, kind: type[T]) -> list[T]:
        """The elements of a list that are of a kind; the others are left behind."""
        found: list[T] = []
        for value in self.take(name, list[object], []):
            try:
                found.append(_fit(value, kind))
            except _UnfitError:
                self.lose(name, None)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._parts if isinstance(name, str))

    def part(self, name: str) -> Saved:
        """A mapping in it; an empty one if it is not there."""
        return Saved(self._parts.get(name, {}), self.lost, self._name(name))

    def lose(self, name: str, default: T) -> T:
        """Note that a part cannot be taken; returns ``default``."""
        if self._name(name) not in self.lost:
            self.lost.append(self._name(name))
        return default

    def _name(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def count(number: int) -> bool:
    """Whether it can be a number of things, as a check for ``Saved.take``."""
    return 0 <= number < 2**53


def plain(value: object) -> object:
    """A copy of what somebody else wants to have saved: primitives and tensors in dicts, lists and tuples.

    Raises:
        TypeError: If there is anything else in it, which a checkpoint would not load with ``weights_only=True``.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [plain(v) for v in value]
    if type(value) is tuple:
        return tuple(plain(v) for v in value)
    if type(value) is dict:
        return {plain(name): plain(v) for name, v in value.items()}
    if hasattr(value, "detach") and hasattr(value, "clone"):  # a tensor; this file does without torch
        return value.detach().clone()
    raise TypeError(f"a checkpoint holds primitives and tensors, but {type(value).__name__} came")


def _fit(value: object, kind: Any) -> Any:
    """A value as one of a kind: containers and dataclasses are made anew.

    Raises:
        _UnfitError: If it is none.
    """
    origin, options = get_origin(kind), get_args(kind)
    # kinds with parts of their own
    if origin in (Union, UnionType):
        return _fit_one(value, options)
    if origin is Literal:
        return _require(value, isinstance(value, str) and value in options)
    if origin in _SEQUENCES:
        return _SEQUENCES[origin](_fit(v, options[0]) for v in _elements(value))
    if origin is tuple:
        return _fit_tuple(_elements(value), options)
    if origin is dict:
        return {_fit(name, options[0]): _fit(v, options[1]) for name, v in _dict(value).items()}
    # records: each field as one of its kind
    if is_typeddict(kind):
        parts = _dict(value)
        return {name: _fit(parts[name], each) for name, each in _hints(kind).items() if name in parts}
    if is_dataclass(kind):
        return _fit_dataclass(value, kind)
    if hasattr(kind, "_fields"):
        return kind(*_fit_tuple(_elements(value), tuple(_hints(kind).values())))
    # single values
    if kind is Any:
        return value
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        if not isinstance(value, int) or value not in list(map(int, kind)):
            raise _UnfitError
        return kind(value)
    if kind in (int, float):  # a bool is an int to Python
        numbers = (int, float) if kind is float else int
        return _require(value, isinstance(value, numbers) and not isinstance(value, bool))
    return _require(value, isinstance(value, origin or kind))


def _require(value: T, is_fit: bool) -> T:
    if not is_fit:
        raise _UnfitError
    return value


def _dict(value: object) -> dict[object, object]:
    if not isinstance(value, dict):
        raise _UnfitError
    return value


def _elements(value: object) -> Collection[object]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise _UnfitError
    return value


def _fit_one(value: object, kinds: tuple[Any, ...]) -> Any:
    """The value as the first of several kinds that it fits."""
    for kind in kinds:
        try:
            return _fit(value, kind)
        except _UnfitError:
            continue
    raise _UnfitError


def _fit_tuple(values: Collection[object], kinds: tuple[Any, ...]) -> tuple[object, ...]:
    if kinds[-1] is Ellipsis:
        return tuple(_fit(value, kinds[0]) for value in values)
    _require(values, len(values) == len(kinds))
    return tuple(_fit(value, kind) for value, kind in zip(values, kinds, strict=True))


def _fit_dataclass(value: object, kind: Any) -> object:
    """A record from its fields: those that have joined since have their defaults, those that are no more are left."""
    if not isinstance(value, Mapping):
        raise _UnfitError
    hints = _hints(kind)
    known = {f.name: _fit(value[f.name], hints[f.name]) for f in fields(kind) if f.name in value}
    try:
        return kind(**known)
    except TypeError as failure:  # one without a default is missing
        raise _UnfitError from failure


@cache
def _hints(kind: type) -> dict[str, object]:
    return get_type_hints(kind)
