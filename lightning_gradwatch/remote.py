"""Files at a URL, through fsspec, by the names of ``pathlib.Path``."""

from __future__ import annotations

import os
import stat
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.core._guard import is_the_users

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")
"""What file systems call the time at which a file was last written."""
_FINAL = (PermissionError, NotImplementedError, TypeError)


class RemoteError(OSError):
    """Something at a URL cannot be read or written.

    Attributes:
        is_final: Whether it is of no use to try again.
    """

    def __init__(self, sentence: str, is_final: bool = False) -> None:
        super().__init__(sentence)
        self.is_final = is_final


class State(NamedTuple):
    """What is known of a file, by the names of ``os.stat_result``; ``st_ino`` tells one version from another."""

    st_mode: int
    st_size: int
    st_mtime: float
    st_mtime_ns: int
    st_ino: int


class RemotePath:
    """A file or a directory at a URL. Nothing is asked for before a method is called.

    A store of objects knows no directories and cannot append: a file is written, and appears, as a whole. Every failure
    is a ``RemoteError``, but for a file that is not there.

    Args:
        url: Such as ``s3://bucket/logs``.
    """

    def __init__(self, url: str) -> None:
        scheme, mark, path = url.rpartition("://")
        self._root, self._path = scheme + mark, path.rstrip("/") or path[:1]

    def __str__(self) -> str:
        return self._root + self._path

    def __truediv__(self, part: str) -> RemotePath:
        if part in ("", os.curdir):
            return self
        return RemotePath(f"{self}/{part}" if self.name else f"{self}{part}")

    @property
    def name(self) -> str:
        """Its last part; empty for the root."""
        return self._path.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The directory in which it lies; the root lies in itself."""
        above, slash, _ = self._path.rpartition("/")
        return RemotePath(self._root + (above or slash))

    def with_name(self, name: str) -> RemotePath:
        """Its neighbour of that name."""
        return self.parent / name

    def resolve(self) -> RemotePath:
        """Itself."""
        return self

    def exists(self) -> bool:
        """Whether there is anything."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether it is a file."""
        info = self._info()
        return info is not None and info["type"] != "directory"

    def is_dir(self) -> bool:
        """Whether it is a directory, or there are files below it."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def stat(self) -> State:
        """Its size in bytes, and when it was written; 0 if that is not known.

        Raises:
            FileNotFoundError: If there is nothing.
        """
        info = self._info()
        if info is None:
            raise FileNotFoundError(str(self))
        mode = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
        seconds = max(_seconds(info.get(name)) for name in _TIMES)
        version = zlib.crc32(repr(sorted(info.items(), key=str)).encode())
        return State(mode, int(str(info.get("size") or 0)), seconds, int(seconds * 1e9), version)

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in the directory; nothing if there is none."""
        with self._elsewhere() as (filesystem, path):
            filesystem.invalidate_cache()
            try:
                found: list[str] = filesystem.ls(path, detail=False)
            except FileNotFoundError:
                found = []
        return iter([self / name.rstrip("/").rpartition("/")[2] for name in found])

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What lies in the directory under a name that fits the pattern."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """The names of the files in each directory below, by its path from here."""
        with self._elsewhere() as (filesystem, path):
            filesystem.invalidate_cache()
            try:
                files: list[str] = filesystem.find(path)
            except FileNotFoundError:
                files = []
        names = defaultdict(list)
        for file in files:
            directory, _, name = file[len(path) :].lstrip("/").rpartition("/")
            names[directory or os.curdir].append(name)
        yield from sorted(names.items())

    def read_bytes(self, start: int = 0, num_bytes: int = -1) -> bytes:
        """The file, or a part of it; shorter if the file ends before, and all that follows if the number is -1.

        Raises:
            FileNotFoundError: If there is none.
        """
        end = None if num_bytes < 0 else start + num_bytes
        with self._elsewhere() as (filesystem, path):
            return bytes(filesystem.cat_file(path, start=start, end=end))

    def write_bytes(self, content: bytes) -> None:
        """Write the whole file: readers see what was there before, or all of it."""
        with self._elsewhere() as (filesystem, path):
            try:
                _write(filesystem, path, content)
            except FileNotFoundError:  # there are directories, and this one is missing
                filesystem.makedirs(filesystem._parent(path), exist_ok=True)
                _write(filesystem, path, content)

    def replace(self, target: RemotePath) -> None:
        """Give the file another name."""
        target.write_bytes(self.read_bytes())
        self.unlink()

    def unlink(self) -> None:
        """Remove the file."""
        with self._elsewhere() as (filesystem, path):
            filesystem.rm_file(path)

    def _info(self) -> dict[str, object] | None:
        """What its file system knows of it, as it is now; None if there is nothing."""
        with self._elsewhere() as (filesystem, path):
            filesystem.invalidate_cache()
            try:
                return dict(filesystem.info(path))
            except FileNotFoundError:
                return None

    @contextmanager
    def _elsewhere(self) -> Iterator[tuple[AbstractFileSystem, str]]:
        """Its file system, and the path there; what goes wrong is told in one voice."""
        try:
            from fsspec.core import url_to_fs

            yield url_to_fs(str(self))
        except FileNotFoundError:
            raise
        except (ImportError, ValueError) as failure:  # fsspec's own word names the package that is missing
            raise RemoteError(f"'{self}' cannot be reached: {failure}", is_final=True) from failure
        except Exception as failure:  # clients of networks have errors of many kinds
            if is_the_users(failure):
                raise
            sentence = f"'{self}' cannot be read or written: {type(failure).__name__}: {failure}"
            raise RemoteError(sentence, isinstance(failure, _FINAL)) from failure


def _write(filesystem: AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a file so that it appears as a whole, under its name, or not at all."""
    from fsspec import AbstractFileSystem

    # a store of objects does so by itself, by a method of its own
    if getattr(filesystem.pipe_file, "__func__", None) is not AbstractFileSystem.pipe_file:
        filesystem.pipe_file(path, content)
        return
    # a disk behind a network has names that can be changed, though not everywhere if the new one is taken
    unfinished = f"{filesystem._parent(path)}/.gradwatch-{os.getpid()}-{threading.get_ident()}"
    filesystem.pipe_file(unfinished, content)
    with suppress(OSError):
        filesystem.mv(unfinished, path)
    if filesystem.exists(unfinished):
        filesystem.rm_file(path)
        filesystem.mv(unfinished, path)


def _seconds(time: object) -> float:
    """Since the epoch; 0 if that is not known."""
    try:
        if isinstance(time, str):
            time = datetime.fromisoformat(time.replace("Z", "+00:00"))
        return time.timestamp() if isinstance(time, datetime) else float(str(time))
    except ValueError:
        return 0.0
