"""A real terminal, with the command in it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from types import TracebackType
from typing import Any

from tests.cli.command import COMMAND, environment

ENTER, LEAVE, SHOW_CURSOR, HOME = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[H"
PATIENCE = 90.0


class Terminal:
    """``gradwatch`` in a terminal of its own.

    Attributes:
        output: All that it has written so far.
        process: The command.
    """

    def __init__(self, *arguments: Any, rows: int = 40, columns: int = 100) -> None:
        self._mine, theirs = pty.openpty()
        self.resize(rows, columns)
        variables = {
            name: v for name, v in environment(TERM="xterm-256color").items() if name not in ("COLUMNS", "LINES")
        }
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=variables,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.output = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                some = os.read(self._mine, 65536)
            except OSError:  # the last one who had it open has gone
                return
            self.output += some

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self._mine, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, key: bytes) -> None:
        """Type."""
        os.write(self._mine, key)

    def wait_for(self, text: str) -> None:
        """Until a text has been written."""
        end = time.monotonic() + PATIENCE
        while text.encode() not in self.output:
            assert time.monotonic() < end, self.output[-3000:].decode(errors="replace")
            assert self.process.poll() is None, self.output[-3000:].decode(errors="replace")
            time.sleep(0.02)

    def end(self) -> int:
        """Wait until the command has ended: its exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    @property
    def is_as_before(self) -> bool:
        """Whether the screen and the cursor have been given back."""
        return self.output.rfind(LEAVE) > self.output.rfind(ENTER) >= 0 and SHOW_CURSOR in self.output

    @property
    def left(self) -> str:
        """What stands in the terminal after the screen has been given back."""
        return self.output[self.output.rfind(LEAVE) :].decode(errors="replace")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._reader.join(PATIENCE)
        os.close(self._mine)


def _take_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
