"""Do something when a signal ends the process, and then whatever would have been done anyway."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, MethodType

from lightning_gradwatch.core._guard import is_the_users

_ENDING = ("SIGTERM", "SIGHUP")
"""Signals that end a process unless it has decided otherwise."""
_ASKING = ("SIGUSR1", "SIGUSR2")
"""Signals by which schedulers announce the end; only where somebody listens to them already."""


_Handler = Callable[[int, FrameType | None], object] | int | None
"""What Python says that stood there before: a function, ``SIG_DFL`` or ``SIG_IGN``, or nothing that it knows of."""


class SignalWatch:
    """Calls back once a signal comes, before the handlers that stood there already.

    A forked child inherits the handlers: there a signal does what it would do without us, and nothing else.

    Args:
        act: Called with the name of the signal; must not fail.
    """

    def __init__(self, act: Callable[[str], None]) -> None:
        self._act = act
        self._previous: dict[int, _Handler] = {}
        self._pid = os.getpid()
        self._handler = self._handle  # one object, which is known again
        self._has_stopped = False

    def start(self) -> None:
        """Listen, if this is the main thread; elsewhere Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in (*_ENDING, *_ASKING):
            number = getattr(signal, name, None)
            if number is None:
                continue
            previous = signal.getsignal(number)
            if callable(previous) or (name in _ENDING and previous is signal.SIG_DFL and _ends_the_process(number)):
                self._previous[number] = previous
                signal.signal(number, self._handler)

    def stop(self) -> None:
        """Put the handlers back that stood there before.

        Where others have come since, ours stays below them, and does nothing but pass a signal on.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._has_stopped = True
        for number in self._previous:
            if signal.getsignal(number) is self._handler:
                signal.signal(number, self._beneath(number))

    def _beneath(self, number: int) -> _Handler:
        """The handler that stood there before, without such of ours as have stopped."""
        previous = self._previous[number]
        other = previous.__self__ if isinstance(previous, MethodType) else None
        return other._beneath(number) if isinstance(other, SignalWatch) and other._has_stopped else previous

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._beneath(number)
        is_uppermost = signal.getsignal(number) is self._handler
        if not self._has_stopped and os.getpid() == self._pid:
            self._act(signal.Signals(number).name)
        if callable(previous):
            previous(number, frame)
        elif is_uppermost:  # otherwise a handler that came later decides
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _ends_the_process(number: int) -> bool:
    """Whether a signal for which Python has no handler is left to the system, and to no handler written in C either."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as failure:
        if is_the_users(failure):
            raise
        return True  # only Linux tells
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigCgt:", "SigIgn:"))]
    return not any(mask >> (number - 1) & 1 for mask in masks)
