"""The lines of ``alerts.jsonl``, and what of it cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable
from typing import NamedTuple

from lightning_gradwatch.outputs import alerts_file
from lightning_gradwatch.paths import Place
from lightning_gradwatch.reading.damage import Damage, damaged_lines, unreadable
from lightning_gradwatch.reading.listing import read_piece, state_of


class Lines(NamedTuple):
    """What the file of a run tells.

    Attributes:
        lines: Those that can be read, the oldest first.
        written: When it was last written, in seconds since the epoch; 0 if that is not known.
        damage: What cannot be read; None if there is nothing.
    """

    lines: list[alerts_file.Line]
    written: float
    damage: Damage | None


NO_LINES = Lines([], 0.0, None)


class AlertLines:
    """The files of several runs, each read only if it has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Hashable, Lines]] = {}

    def of(self, directory: Place) -> Lines:
        """What the file in a directory tells."""
        path = str(directory / alerts_file.NAME)
        try:
            state = state_of(path)
            before, known = self._known.get(path, (None, NO_LINES))
            if before != state:
                known = Lines(alerts_file.read(directory), state.written, _damage(read_piece(path, 0, -1)))
                self._known[path] = state, known
        except FileNotFoundError as failure:  # just gone, or a link that leads nowhere
            return Lines([], 0.0, unreadable(alerts_file.NAME, failure) if os.path.islink(path) else None)
        except OSError as failure:
            return Lines([], 0.0, unreadable(alerts_file.NAME, failure))
        return known


def _damage(content: bytes) -> Damage | None:
    """The lines that are none of ours. What has no end may be one that is being written, if it begins like one."""
    *lines, torn = content.split(b"\n")
    unread = sum(len(line) for line in lines if not _is_object(line))
    unread += 0 if torn.startswith(b"{") else len(torn)
    return damaged_lines(alerts_file.NAME, unread) if unread else None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode(errors="replace") or "{}"), dict)
    except (ValueError, RecursionError):
        return False
