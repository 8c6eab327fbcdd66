"""Who waits is told why, if it takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lightning_gradwatch.core._guard import attempt

PATIENCE_S = 2.0
"""How long nobody asks why."""


@contextmanager
def explained(say: Callable[[str], None], why: str) -> Iterator[None]:
    """Say why, once, if what is done meanwhile takes more than two seconds.

    Args:
        say: Says it, from a thread of its own.
        why: What takes long, and how long at most.
    """
    timer = threading.Timer(PATIENCE_S, attempt, [lambda: say(why)])
    timer.daemon = True  # it keeps no process alive
    with suppress(RuntimeError):  # no thread can be started while the interpreter shuts down
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
