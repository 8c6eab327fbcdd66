"""An event file at a URL: in pieces, since most stores cannot append, and from a thread, since networks are slow."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections import deque

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from lightning_gradwatch.outputs.worker import Worker
from lightning_gradwatch.paths import at
from lightning_gradwatch.remote import RemoteError

PIECE_BYTES = 1_000_000
"""A piece that has become as large stays as it is, and the next one begins: no more is ever written anew."""
MAX_WAITING_BYTES = 64_000_000
CLOSE_S = 30.0
"""How long the end of training waits for what is still under way."""
_numbers = itertools.count()


class Pieces:
    """An event file as torch's ``FileWriter`` takes one. TensorBoard reads its pieces one after the other.

    Args:
        directory: The URL.
        every_s: After how many seconds a piece to which something was added is written anew.
    """

    def __init__(self, directory: str, every_s: float) -> None:
        self._directory = directory
        self._name = (
            f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        )
        self._worker = Worker(regular=self._write, every_s=every_s)
        # what the training adds to, and what the thread makes of it
        self._new: deque[bytes] = deque()
        self._num_bytes = 0
        self._is_asked = False
        self._piece = io.BytesIO()
        self._num_full = 0
        self._num_bytes_framed = self._num_bytes_written = 0

    def get_logdir(self) -> str:
        """The URL."""
        return self._directory

    def add_event(self, event: Event) -> None:
        """Add an event, which is written within ``every_s``.

        Raises:
            OSError: If earlier ones could not be written.
        """
        self._worker.start()
        if self._num_bytes - self._num_bytes_written > MAX_WAITING_BYTES:
            raise RemoteError("the network is too slow, or down: too many events are waiting")
        content = event.SerializeToString()
        self._num_bytes += len(content)
        self._new.append(content)

    def flush(self) -> None:
        """Write what there is soon, without waiting for it.

        Raises:
            OSError: If something could not be written before.
        """
        if not self._is_asked:
            self._is_asked = True
            self._worker.submit(self._write)

    def settle(self, seconds: float) -> None:
        """Write what there is, and wait for it.

        Raises:
            OSError: If it cannot be written, or takes longer.
        """
        self.flush()
        self._worker.settle(seconds)

    def close(self) -> None:
        """The same, for the last time."""
        self.settle(CLOSE_S)
        self._worker.close()

    def _write(self) -> None:
        """In the thread: write the present piece anew if there is more of it, and those that come after it."""
        self._is_asked = False
        while True:
            if not self._piece.tell():
                self._frame(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            while self._new and self._piece.tell() < PIECE_BYTES:
                content = self._new.popleft()
                self._frame(content)
                self._num_bytes_framed += len(content)
            if self._num_bytes_framed == self._num_bytes_written:
                return
            path = at(self._directory) / f"{self._name}.{self._num_full:05d}"
            path.write_bytes(self._piece.getvalue())
            self._num_bytes_written = self._num_bytes_framed
            if self._piece.tell() < PIECE_BYTES:
                return
            self._piece = io.BytesIO()
            self._num_full += 1

    def _frame(self, content: bytes) -> None:
        """With its length and checksums, as event files have it."""
        RecordWriter(self._piece).write(content)


class _FileWriter(FileWriter):
    """Torch's writer over pieces."""

    def __init__(self, directory: str, every_s: float) -> None:
        self.event_writer = Pieces(directory, every_s)


class RemoteWriter(SummaryWriter):
    """Torch's ``SummaryWriter`` for a URL, into pieces: it loses nothing where the store cannot append."""

    file_writer: _FileWriter | None  # type: ignore[assignment]
    all_writers: dict[str, _FileWriter] | None  # type: ignore[assignment]

    def _get_file_writer(self) -> _FileWriter:
        if self.file_writer is None:
            self.file_writer = _FileWriter(self.log_dir, self.flush_secs)
            self.all_writers = {self.log_dir: self.file_writer}
        return self.file_writer

    def settle(self, seconds: float) -> None:
        """See ``Pieces.settle``."""
        self._get_file_writer().event_writer.settle(seconds)
