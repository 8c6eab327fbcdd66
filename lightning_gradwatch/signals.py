"""Do something when a signal ends the process, and then whatever would have been done anyway."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_ENDING = ("SIGTERM", "SIGHUP")
"""Signals that end a process unless it has decided otherwise."""
_ASKING = ("SIGUSR1", "SIGUSR2")
"""Signals by which schedulers announce the end; only where somebody listens to them already."""


class SignalWatch:
    """Calls back once a signal comes, before the handlers that stood there already.

    A forked child inherits the handlers: there a signal does what it would do without us, and nothing else.

    Args:
        act: Called with the name of the signal; must not fail.
    """

    def __init__(self, act: Callable[[str], None]) -> None:
        self._act = act
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()

    def start(self) -> None:
        """Listen, if this is the main thread; elsewhere Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in (*_ENDING, *_ASKING):
            number = getattr(signal, name, None)
            previous = None if number is None else signal.getsignal(number)
            if number is not None and (callable(previous) or (previous is signal.SIG_DFL and name in _ENDING)):
                self._previous[number] = previous
                signal.signal(number, self._handle)

    def stop(self) -> None:
        """Put the handlers back that stood there before, unless others have come since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous.get(number, signal.SIG_DFL)
        if os.getpid() == self._pid:
            self._act(signal.Signals(number).name)
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
