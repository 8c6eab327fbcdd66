"""What of a run cannot be read, so that nobody takes it for health."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict


class Damage(TypedDict):
    """A file of a run, or its directory, of which something cannot be read.

    A record that the end of a file cuts off is none: that is how every file looks that is being written, or whose
    process was killed.

    Attributes:
        file: Its name; ``"."`` for the directory.
        after_step: The last step that can be read; None if there is none, or nobody knows.
        unread_bytes: How many bytes are not read; None if nobody knows.
        message: All of it in a sentence.
    """

    file: str
    after_step: int | None
    unread_bytes: int | None
    message: str


Inspect = Callable[[Sequence[str]], Mapping[str, Sequence[Damage]]]
"""Tells what cannot be read of some runs, and of others of which nothing else is known."""


def damaged(file: str, after_step: int | None, unread_bytes: int) -> Damage:
    """A file that can be read up to a step; None if nothing that has a step can be read."""
    where = "Damaged from the beginning" if after_step is None else f"Damaged after step {after_step}"
    return _damage(file, f"{where}, {unread_bytes:,} bytes unread: {file}.", after_step, unread_bytes)


def damaged_lines(file: str, unread_bytes: int) -> Damage:
    """A file of which some lines cannot be read."""
    return _damage(file, f"Damaged, {unread_bytes:,} bytes unread: {file}.", unread_bytes=unread_bytes)


def unreadable(file: str, failure: Exception) -> Damage:
    """A file that cannot be opened or read."""
    return _damage(file, f"Cannot be read ({_reason(failure)}): {file}.")


def unlistable(failure: OSError) -> Damage:
    """The directory, if it cannot be listed."""
    return _damage(os.curdir, f"The directory cannot be listed ({_reason(failure)}).")


def unintelligible(failure: Exception) -> Damage:
    """A run of which nothing is read after an event that is whole, and of which TensorBoard makes no sense."""
    return _damage(os.curdir, f"An event cannot be taken in ({_reason(failure)}), the rest is unread.")


def replaced(file: str) -> Damage:
    """A file in whose place another one came again and again while it was read."""
    return _damage(file, f"Replaced while it was read: {file}.")


def _reason(failure: Exception) -> str:
    return getattr(failure, "strerror", None) or repr(failure)


def _damage(file: str, message: str, after_step: int | None = None, unread_bytes: int | None = None) -> Damage:
    return {"file": file, "after_step": after_step, "unread_bytes": unread_bytes, "message": message}
