"""Standing around a method of somebody else's object, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lightning_gradwatch.asking import own_attributes
from lightning_gradwatch.core._guard import attempt

T = TypeVar("T")


class _Heard:
    """A method of an object, around which somebody stands. A copy or a pickle of the object has the plain one."""

    def __init__(self, owner: object, name: str, around: Callable[..., object]) -> None:
        self._plain, self._own = getattr(owner, name), own_attributes(owner).get(name)
        self._around: Callable[..., object] | None = around

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._plain(*args, **kwargs) if self._around is None else self._around(self._plain, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "__code__":  # by which Lightning tells whether a method has been overridden
            return self._plain.__code__
        raise AttributeError(name)

    def __reduce__(self) -> tuple[object, ...]:
        return _same, (self._plain,)

    def stop(self) -> None:
        """Hear of nothing from now on, where somebody else stands above."""
        self._around = None

    def beneath(self) -> object:
        """What the object had as its own before, without others of ours that have stopped; None for nothing."""
        own = self._own
        return own.beneath() if isinstance(own, _Heard) and own._around is None else own


def _same(given: T) -> T:
    return given


def hear(owner: object, name: str, around: Callable[..., object]) -> Callable[[], None]:
    """Stand around each call of an object's method.

    Args:
        owner: The object.
        name: The method's name.
        around: Called in its place with the plain method and the arguments of the call; returns what the caller gets.

    Returns:
        What undoes it. Where others have wrapped ours since, it stays below theirs, and hears of nothing any more.
    """
    heard = _Heard(owner, name, around)
    attempt(lambda: setattr(owner, name, heard))  # an object may refuse it

    def undo() -> None:
        heard.stop()
        if own_attributes(owner).get(name) is heard:
            delattr(owner, name)
            if (beneath := heard.beneath()) is not None:
                setattr(owner, name, beneath)

    return undo
