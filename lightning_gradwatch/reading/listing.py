"""What lies below a directory of logs, and the bytes of its files. All access to event files goes through here."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from lightning_gradwatch.paths import is_url
from lightning_gradwatch.remote import RemotePath

EVENT_FILE, _NO_EVENTS = "tfevents", ".profile-empty"
"""What TensorBoard takes for an event file has the first in its name, and does not end with the second."""


class Folder(NamedTuple):
    """A directory below that of the logs.

    Attributes:
        name: Its path, relative to that of the logs; ``"."`` for these.
        files: Names of what it holds, directories left out.
        failure: Why it cannot be listed; None if it can.
    """

    name: str
    files: list[str]
    failure: OSError | None = None

    @property
    def event_files(self) -> list[str]:
        """Those of its files that are event files by their names, in the order in which they are read."""
        return sorted(name for name in self.files if EVENT_FILE in name and not name.endswith(_NO_EVENTS))


def folders(directory: str) -> Iterator[Folder]:
    """All directories below one, that one included; nothing of what does not exist, or has just gone.

    Args:
        directory: Its path, or its URL.
    """
    if is_url(directory):
        yield from (Folder(name, files) for name, files in RemotePath(directory).walk())
        return
    failures: list[OSError] = []
    for path, _, files in os.walk(directory, onerror=failures.append):
        yield Folder(os.path.relpath(path, directory), files)
    for failure in failures:
        if not isinstance(failure, FileNotFoundError):
            yield Folder(os.path.relpath(failure.filename, directory), [], failure)


def folder(directory: str, name: str) -> Folder:
    """One directory below that of the logs."""
    try:
        with os.scandir(os.path.join(directory, name)) as entries:
            return Folder(name, [entry.name for entry in entries if not entry.is_dir()])
    except OSError as failure:
        return Folder(name, [], None if isinstance(failure, FileNotFoundError) else failure)


class State(NamedTuple):
    """What changes whenever a file is written to.

    Attributes:
        size: In bytes.
        written: When it was last written, in seconds since the epoch.
        identity: What else tells that it is the same as before.
    """

    size: int
    written: float
    identity: Hashable


def state_of(path: str) -> State:
    """How a file is at present.

    Raises:
        OSError: If there is no such file, or it is none: a pipe would be waited for, a device would never end.
    """
    found = RemotePath(path).stat() if is_url(path) else os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return State(found.st_size, found.st_mtime, (found.st_mtime_ns, found.st_ino))


def read_piece(path: str, start: int, num_bytes: int) -> bytes:
    """A part of a file; shorter if the file ends before. All that follows if the number is -1.

    Raises:
        OSError: If it cannot be read.
    """
    if is_url(path):
        return RemotePath(path).read_bytes(start, num_bytes)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(num_bytes)
