"""A real TensorBoard in a process of its own, asked over HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

PATIENCE = 60.0
"""Seconds that a process may take to start, or to read what was written, on a busy machine."""


class Reply(NamedTuple):
    """What came back."""

    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; NaN and Infinity are no JSON."""
        assert self.kind.startswith("application/json"), self
        return json.loads(self.body, parse_constant=_refuse)

    @property
    def frame(self) -> tuple[dict[str, Any], npt.NDArray[Any]]:
        """The header and the matrix of a frame."""
        assert (self.status, self.kind) == (200, "application/octet-stream"), self
        return read_frame(self.body)


def read_frame(body: bytes) -> tuple[dict[str, Any], npt.NDArray[Any]]:
    """The header and the matrix of a frame, as the browser reads it."""
    length = int.from_bytes(body[:4], "little")
    assert (4 + length) % 8 == 0
    header = json.loads(body[4 : 4 + length])
    values = np.frombuffer(body[4 + length :], np.dtype(header["dtype"]).newbyteorder("<"))
    return header, values.reshape(header["shape"])


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


class Board:
    """TensorBoard over a directory.

    Args:
        directory: The logs.
        arguments: Further arguments of its command line, such as ``--load_fast=false``.
        environment: Further variables of its environment.
    """

    def __init__(self, directory: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--reload_interval", "1", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.port = int(self.wait(lambda: re.search(r" at http://[^:]+:(\d+)/", self.output))[1])
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.output += line

    def wait(self, condition: Any) -> Any:
        """Wait until something is there."""
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.05)
        return found

    def ask(self, path: str, method: str = "GET", **arguments: Any) -> Reply:
        """Ask for a path as it stands, dots and all."""
        query = "?" + urlencode(arguments) if arguments else ""
        connection = HTTPConnection("localhost", self.port, timeout=PATIENCE)
        try:
            connection.request(method, f"/{path}{query}")
            response = connection.getresponse()
            return Reply(response.status, response.headers.get("Content-Type", ""), response.read())
        finally:
            connection.close()

    def get(self, path: str, **arguments: Any) -> Reply:
        """Ask the plugin; ``first`` stands for ``from``, which is a word of Python's."""
        if "first" in arguments:
            arguments["from"] = arguments.pop("first")
        return self.ask(f"data/plugin/gradwatch/{path}", **arguments)

    def wait_for(self, run: str, step: int) -> None:
        """Wait until a run is read up to a step."""
        self.wait(lambda: self.last_step(run) == step)

    def last_step(self, run: str) -> int | None:
        """The last step that is read of a run; None if it is not known."""
        return {row["run"]: row["last_step"] for row in self.get("runs").json["runs"]}.get(run)

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
