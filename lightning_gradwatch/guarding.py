"""The training run always survives us: what becomes of a watch that fails, and who lets it fail so."""

from __future__ import annotations

import contextlib
import enum
import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from lightning_gradwatch.core._guard import attempt, is_the_users
from lightning_gradwatch.core.alike import ResignedError
from lightning_gradwatch.core.cost import Cost
from lightning_gradwatch.errors import GradientAlertError
from lightning_gradwatch.reading.status import GAVE_UP

P = ParamSpec("P")


class Health(enum.Enum):
    """What a watch still does."""

    WATCHING = "everything"
    ATTENDING = "it has failed, and takes part in what the ranks do together until all of them know"
    CLIPPING = "it has failed, and clips or skips as it was asked to"
    SILENT = "nothing any more"


class Guard:
    """Lets a watch fail without the training failing, and takes back whatever it has put in place.

    Args:
        warn: Takes the one warning.
        record: Keeps the flight record; takes the reason.

    Attributes:
        health: What the watch still does.
        cost: What watching costs.
        ending: Why the run ends; None before its end.
        must_attend: Asked after a failure: whether other ranks wait for this one, which goes on with what they need.
    """

    def __init__(self, warn: Callable[[str], None], record: Callable[[str], None]) -> None:
        self.health = Health.WATCHING
        self.cost = Cost()
        self.ending: str | None = None
        self.must_attend: Callable[[], bool] = lambda: False
        self._warn = warn
        self._record = record
        self._undo: list[Callable[[], object]] = []

    @property
    def is_off(self) -> bool:
        """Whether the watch has failed, and does no more than to clip."""
        return self.health is not Health.WATCHING

    def leaves_by(self, undo: Callable[[], object]) -> None:
        """Call this, too, when everything is taken back."""
        self._undo.append(undo)

    def leave(self) -> None:
        """Take everything back, the latest first, whatever fails on the way."""
        with contextlib.ExitStack() as attempts:
            for undo in self._undo:
                attempts.callback(attempt, undo)

    def switch_off(self, where: str) -> None:
        """Say what is failing just now, and leave nothing behind; the steps go on being clipped.

        Args:
            where: What was being done.
        """
        trace, is_others = traceback.format_exc(), isinstance(sys.exc_info()[1], ResignedError)
        # what made us fail, such as an error of the device, may be about to end the run
        self._record(self.ending or GAVE_UP)
        if self.health is Health.WATCHING and not is_others and self._is_needed():
            self.health = Health.ATTENDING
        else:
            if self.health is not Health.SILENT:
                self.health = Health.CLIPPING
            self.leave()
        where = "on another rank, whose log says why," if is_others else f"in {where}"
        said = f"GradWatch failed {where} and has switched itself off; the training itself is not affected."
        self._warn(said if is_others else f"{said}\n{trace}")

    def _is_needed(self) -> bool:
        try:
            return self.must_attend()
        except Exception:
            return False

    def attend(self, part: Callable[[], object]) -> None:
        """Do a part of what the ranks do together, if the watch has failed on this one and the others may not know it.

        Args:
            part: What a watch that has not failed would do.

        Raises:
            GradientAlertError: If the user has asked for it.
        """
        if self.health is not Health.ATTENDING:
            return
        try:
            part()
        except GradientAlertError:
            raise
        except Exception as failure:
            if is_the_users(failure):
                raise
            self.health = Health.CLIPPING
            self.leave()

    @contextlib.contextmanager
    def survives(self, where: str) -> Iterator[None]:
        """Let what is done here fail, also after the watch has been switched off."""
        try:
            yield
        except Exception as failure:
            if is_the_users(failure):
                raise
            self.switch_off(where)


class Guarded(Protocol):
    """Who has a guard."""

    @property
    def guard(self) -> Guard:
        """The guard."""


G = TypeVar("G", bound=Guarded)


def survives(method: Callable[Concatenate[G, P], None]) -> Callable[Concatenate[G, P], None]:
    """Let a method fail, do nothing once the watch is off, and count its time as our own.

    What the user has asked to be raised, and what is the user's own, passes through.
    """
    return _surviving(method, None)


def attending(
    attend: Callable[Concatenate[G, P], object],
) -> Callable[[Callable[Concatenate[G, P], None]], Callable[Concatenate[G, P], None]]:
    """The same where ranks do something together: ``attend`` does that part until the others know of the failure."""
    return lambda method: _surviving(method, attend)


def _surviving(
    method: Callable[Concatenate[G, P], None], attend: Callable[Concatenate[G, P], object] | None
) -> Callable[Concatenate[G, P], None]:
    @functools.wraps(method)
    def guarded(self: G, /, *args: P.args, **kwargs: P.kwargs) -> None:
        guard = self.guard
        if guard.health is Health.WATCHING:
            cost = guard.cost
            start = cost.clock()
            try:
                method(self, *args, **kwargs)
            except GradientAlertError:
                raise
            except Exception as failure:
                if is_the_users(failure):
                    raise
                guard.switch_off(method.__name__)
            finally:
                cost.spent += cost.clock() - start
        if attend is not None and guard.health is Health.ATTENDING:
            guard.attend(lambda: attend(self, *args, **kwargs))

    return guarded


class Once:
    """Says each thing once.

    Args:
        say: Takes a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, line: str, about: str | None = None) -> None:
        """Say it, unless it has been said.

        Args:
            line: What to say.
            about: What it is about, if one line about that is enough, however it reads; None for the line itself.
        """
        subject = line if about is None else about
        if subject not in self._said:
            self._said.add(subject)
            self._say(line)
