"""Attempts to write something somewhere: what fails is named once and left alone; the others go on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from lightning_gradwatch.core._guard import is_the_users

_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
"""Names and numbers in the text of an error."""


class Attempts:
    """Those of one ``fit``. They belong to the process that made them: in a forked child nothing is attempted.

    Args:
        warn: Warns the user.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._pid = os.getpid()
        self._broken: set[str] = set()
        self._causes: set[tuple[str, object]] = set()

    def __call__(self, sink: str, write: Callable[[], object]) -> None:
        """Write, unless that has failed before.

        Args:
            sink: Where to, in words.
            write: Does it.
        """
        if sink in self._broken or os.getpid() != self._pid:
            return
        try:
            write()
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._broken.add(sink)
            cause = _cause(failure)
            if cause not in self._causes:
                self._causes.add(cause)
                self._warn(
                    f"GradWatch: the {sink} cannot be written ({failure!r}) and is left out from now on, and so is, "
                    "without a further word, whatever else fails in this way."
                )


def _cause(failure: Exception) -> tuple[str, object]:
    """What failures have in common of which one word is enough."""
    number = failure.errno if isinstance(failure, OSError) else None
    return type(failure).__name__, number or _PARTICULARS.sub("", str(failure))
