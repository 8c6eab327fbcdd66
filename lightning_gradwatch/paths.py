"""Where files of a run lie: on a disk, as ``pathlib.Path`` knows it, or at a URL; both by the same names."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from lightning_gradwatch.remote import RemotePath

Place: TypeAlias = Path | RemotePath


def is_url(place: str) -> bool:
    """Whether it is the address of something that is no local directory, such as ``s3://bucket/logs``."""
    return "://" in place


def at(place: str | os.PathLike[str] | RemotePath) -> Place:
    """A file or directory by its path or its URL."""
    if isinstance(place, RemotePath):
        return place
    text = os.fspath(place)
    return RemotePath(text) if is_url(text) else Path(text)


def is_directory(place: Place) -> bool:
    """Whether it is a directory; not of what cannot be looked at."""
    return place.is_dir() if isinstance(place, RemotePath) else os.path.isdir(place)


@contextmanager
def writing(path: Place) -> Iterator[BinaryIO]:
    """A new file, open to be written, in a directory that is made if it is missing.

    Raises:
        OSError: If it cannot be written.
    """
    if isinstance(path, RemotePath):
        content = io.BytesIO()
        yield content
        path.write_bytes(content.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        yield file


def append_lines(path: Place, lines: bytes) -> None:
    """Append whole lines in one write, to a file that may be missing; a torn line before them is ended first.

    Raises:
        OSError: If the file cannot be written.
    """
    if isinstance(path, RemotePath):  # where a file is written anew
        try:
            before = path.read_bytes()
        except FileNotFoundError:
            before = b""
        path.write_bytes(before + (b"\n" if before and not before.endswith(b"\n") else b"") + lines)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write((b"\n" if _is_torn(path) else b"") + lines)


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
