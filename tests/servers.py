"""Real servers on loopback that take messages, or do not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Manner = Literal["polite", "broken", "hanging"]


class Inbox:
    """An HTTP server for ``json://``: takes messages, answers 500, or never answers.

    Attributes:
        messages: What was taken, the oldest first.
        paths: The paths of all requests.
        num_hanging: Requests that wait for an answer.
    """

    def __init__(self, manner: Manner = "polite") -> None:
        self.messages: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.num_hanging = 0
        self._released = threading.Event()
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.paths.append(self.path)
                if manner == "hanging":
                    inbox.num_hanging += 1
                    inbox._released.wait(60)
                    inbox.num_hanging -= 1
                    return
                if manner == "polite":
                    inbox.messages.append(json.loads(body))
                self.send_response(200 if manner == "polite" else 500)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def address(self, path: str = "") -> str:
        """Where Apprise finds it."""
        return f"json://127.0.0.1:{self.port}/{path}"

    def __enter__(self) -> Inbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def mailbox() -> Iterator[tuple[str, list[Any]]]:
    """An SMTP server: where Apprise finds it, and the mails that it has taken."""
    from aiosmtpd.controller import Controller
    from aiosmtpd.handlers import Message

    mails: list[Any] = []

    class Handler(Message):  # type: ignore[misc]
        def handle_message(self, message: Any) -> None:
            mails.append(message)

    controller = Controller(Handler(), hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        yield f"mailto://127.0.0.1:{controller.port}?from=gradwatch@example.org&to=somebody@example.org", mails
    finally:
        controller.stop()


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
