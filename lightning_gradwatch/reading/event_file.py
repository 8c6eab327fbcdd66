"""One event file, read on from where it was left, up to its end or to the first byte that is not as it was written.

A file is a row of records: the length of the data (8 bytes, little-endian), its checksum, the data, and their checksum
(tensorflow/core/lib/io/record_writer.h). The first record that fails a checksum ends what can be read, as in the Python
loader of TensorBoard; its data server (tensorboard/data/server/run.rs) trusts data that it can parse, and shows them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event

from lightning_gradwatch.reading import checksums
from lightning_gradwatch.reading.damage import Damage, damaged, replaced, unreadable
from lightning_gradwatch.reading.listing import State, read_piece, state_of

BLOCK_BYTES = 2**20
_LENGTH, _CHECKSUM = 8, 4
_HEADER, _FRAME = _LENGTH + _CHECKSUM, _LENGTH + 2 * _CHECKSUM
"""Bytes of the length of a record with its checksum, and of all that stands around the data."""
_MARK_BYTES = 64
"""As many bytes before the place where reading goes on tell whether the file is still the same, or a copy of it."""


class Records(NamedTuple):
    """What stands at the beginning of some bytes.

    Attributes:
        data: The data of each whole and sound record.
        num_bytes: How many bytes these records take.
        needed: How many bytes the next record takes, as far as is known; None if it is damaged.
    """

    data: list[bytes]
    num_bytes: int
    needed: int | None


def records(content: bytes) -> Records:
    """The records with which some bytes begin, up to the first that is damaged or not whole."""
    # what has a checksum right behind it: lengths and data in turn. A wrong length leads astray, but is found out below
    spans: list[tuple[int, int]] = []
    start, needed = 0, _HEADER
    while needed == _HEADER and len(content) - start >= _HEADER:
        spans.append((start, start + _LENGTH))
        size = _FRAME + int.from_bytes(content[start : start + _LENGTH], "little")
        if len(content) - start >= size:
            spans.append((start + _HEADER, start + size - _CHECKSUM))
            start += size
        else:
            needed = size
    texts = [content[first:last] for first, last in spans]
    stored = np.frombuffer(b"".join(content[last : last + _CHECKSUM] for _, last in spans), "<u4")
    is_sound = checksums.masked(texts) == stored
    if is_sound.all():
        return Records(texts[1::2], start, needed)
    num_whole = int(is_sound.argmin()) // 2
    return Records(texts[1 : 2 * num_whole : 2], spans[2 * num_whole][0], None)


class EventFile:
    """An event file that may grow.

    Args:
        path: Where it lies.

    Attributes:
        is_replaced: Whether it has gone, or is another one now: what came of it should be forgotten.
    """

    def __init__(self, path: str) -> None:
        self.is_replaced = False
        self._path, self._name = path, os.path.basename(path)
        self._failure: Damage | None = None
        self._damage: Damage | None = None
        self._waiting: deque[Event] = deque()
        self._last_step: int | None = None
        self._offset, self._mark, self._wanted = 0, b"", BLOCK_BYTES
        self._state_at_end: State | None = None

    def read(self) -> Iterator[Event]:
        """The events that have not been read yet. Who stops in between goes on there the next time."""
        while self._waiting or self._advance():
            yield self._waiting.popleft()

    def skip(self) -> None:
        """Go to the end, or to the first damage."""
        while self._advance():
            self._waiting.clear()

    @property
    def damage(self) -> Damage | None:
        """What of it cannot be read; None if there is nothing."""
        return replaced(self._name) if self.is_replaced else self._failure or self._damage

    def _advance(self) -> bool:
        """Take in some more events; False if there are none that can be read."""
        is_longer = True
        while is_longer and not self._waiting:
            self._failure = None
            try:
                state = state_of(self._path)
                if self.is_replaced or state == self._state_at_end:
                    return False
                content = read_piece(self._path, self._offset - len(self._mark), len(self._mark) + self._wanted)
            except FileNotFoundError as failure:
                # a file that has just been removed is no damage; a link that leads nowhere is
                is_link = os.path.islink(self._path)
                self._failure = unreadable(self._name, failure) if is_link else None
                self.is_replaced = not is_link and self._offset > 0
                return False
            except OSError as failure:
                self._failure = unreadable(self._name, failure)
                return False
            self.is_replaced = not content.startswith(self._mark)
            is_longer = not self.is_replaced and self._take(content[len(self._mark) :], state.size)
            self._state_at_end = None if is_longer or self._waiting else state
        return bool(self._waiting)

    def _take(self, content: bytes, size: int) -> bool:
        """Take in what was read; whether the next record is there, and longer than what was asked for."""
        data, num_bytes, needed = records(content)
        for place, one in enumerate(data):
            try:
                event = Event.FromString(one)
            except Exception:  # whole, but no event: an error of protobuf's, which is not ours to import
                num_bytes, needed = sum(_FRAME + len(before) for before in data[:place]), None
                break
            self._waiting.append(event)
            if event.HasField("summary"):
                self._last_step = max(event.step, self._last_step or 0)
        num_left = max(size - self._offset, len(content)) - num_bytes
        self._damage = damaged(self._name, self._last_step, num_left) if needed is None else None
        self._offset += num_bytes
        self._mark = (self._mark + content[:num_bytes])[-_MARK_BYTES:]
        # a record that the end of the file cuts off is waited for
        asked, self._wanted = self._wanted, max(needed or 0, BLOCK_BYTES)
        return needed is not None and asked < needed <= num_left
