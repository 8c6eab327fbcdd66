"""Stores of objects in memory, each with the manners of a real one, for fsspec."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Objects(MemoryFileSystem):  # type: ignore[misc]
    """A store that knows no directories, and where opening a file to append to it is an error.

    Attributes:
        seconds: How long each request takes.
        failure: What each request fails with; None for nothing.
        num_requests: How many there were.
    """

    protocol = "objects"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    seconds = 0.0
    failure: Exception | None = None
    num_requests = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace(f"{cls.protocol}://", "memory://"))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Nothing."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing."""

    def _request(self) -> None:
        kind = type(self)
        kind.num_requests += 1
        time.sleep(kind.seconds)
        if kind.failure is not None:
            raise kind.failure

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        self._request()
        if "a" in mode:
            raise NotImplementedError("objects cannot be appended to")
        return super()._open(path, mode, *arguments, **options)

    def info(self, path: str, **options: Any) -> Any:
        self._request()
        return super().info(path, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._request()
        return super().cat_file(path, *arguments, **options)


class Overwriting(Objects):
    """A store that writes a file anew when it is opened to be appended to, and warns, as Google's does in gcsfs."""

    protocol = "overwriting"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        if "a" in mode:
            warnings.warn("Append mode is not supported", stacklevel=2)
        return super()._open(path, mode.replace("a", "w"), *arguments, **options)


class Emulating(Objects):
    """A store whose client reads a file and writes it anew when something is appended, as Amazon's does in s3fs."""

    protocol = "emulating"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        if "a" not in mode:
            return super()._open(path, mode, *arguments, **options)
        before = self.cat_file(path) if self.isfile(path) else b""
        file = super()._open(path, "wb", *arguments, **options)
        file.write(before)
        return file


STORES = (Objects, Overwriting, Emulating)
for store in STORES:
    fsspec.register_implementation(store.protocol, store, clobber=True)


def clear() -> None:
    """Forget everything, in ``memory://`` too."""
    for kind in (MemoryFileSystem, *STORES):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    for kind in STORES:
        kind.seconds, kind.failure, kind.num_requests = 0.0, None, 0


def content(url: str) -> dict[str, bytes]:
    """Every file below a URL by its path from there."""
    filesystem, path = fsspec.core.url_to_fs(url)
    try:
        files = filesystem.find(path)
    except FileNotFoundError:
        return {}
    return {file[len(path) :].strip("/"): filesystem.cat_file(file) for file in files}


@contextmanager
def broken(kind: type[Objects], failure: Exception) -> Iterator[None]:
    """While every request fails."""
    kind.failure = failure
    try:
        yield
    finally:
        kind.failure = None
