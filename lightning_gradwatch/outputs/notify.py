"""Messages to people about alerts, through Apprise, from a thread of their own: training never waits for them."""

from __future__ import annotations

import logging
import os
import queue
import re
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from lightning_gradwatch.core._check import is_list, refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.alerts_file import Event

if TYPE_CHECKING:
    from typing_extensions import Self

if TYPE_CHECKING:
    Address: TypeAlias = str
elif "jsonargparse" in sys.modules:  # LightningCLI, which writes its arguments into the directory of the logs
    from jsonargparse.typing import SecretStr as Address
else:
    Address = str

VARIABLE = "GRADWATCH_NOTIFY"
TIMEOUT_S = 5.0
"""How long a server may take to accept a connection, and to answer; an address may ask for less (``?cto=2&rto=2``)."""
CLOSE_S = 10.0
"""How long the end of training waits for messages that are still under way."""
PAUSE_S, MAX_PAUSE_S = 600.0, 6 * 3600.0
"""Pause after the message on an incident before one on another of the same kind; doubles with each."""
MAX_WAITING = 100
_CHATTERERS = ("apprise", "urllib3.connectionpool", "requests", "asyncio")
"""Loggers that may name an address, and with it a secret."""
_is_silent = ContextVar("_is_silent", default=False)
_CURE = "the addresses are those of Apprise, for example slack://..., mailto://... or json://host/path"


class Addresses:
    """Where messages go. Addresses hold passwords, so that no repr, no pickle and no error shows them.

    Args:
        argument: Name of what they came by, for errors.
        addresses: Addresses as Apprise takes them, one or several.

    Raises:
        ValueError: If Apprise is not installed, or cannot make anything of an address.
    """

    def __init__(self, argument: str, addresses: str | Sequence[object] | None) -> None:
        chosen = [] if addresses is None else [addresses] if _is_one(addresses) else addresses
        if not is_list(chosen):
            raise refuse(argument, "an address or a list of addresses", type(addresses).__name__, _CURE)
        self._servers = [s for place, text in enumerate(chosen) for s in _servers(argument, place + 1, _reveal(text))]
        self._were_lost = False

    @classmethod
    def from_environment(cls) -> Self:
        """Those in ``GRADWATCH_NOTIFY``, separated by white space or commas."""
        return cls(VARIABLE, os.environ.get(VARIABLE, "").strip() or None)

    def __len__(self) -> int:
        return len(self._servers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._servers)

    def __repr__(self) -> str:
        return f"Addresses({', '.join(map(schema, self._servers))})"

    @property
    def were_lost(self) -> bool:
        """Whether this is what a pickle has left of some addresses."""
        return self._were_lost

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __getstate__(self) -> dict[str, object]:
        return {"_servers": [], "_were_lost": self._were_lost or bool(self._servers)}


def _is_one(addresses: object) -> bool:
    return isinstance(addresses, str) or hasattr(addresses, "get_secret_value")


def _reveal(address: object) -> object:
    return address.get_secret_value() if hasattr(address, "get_secret_value") else address


def _servers(argument: str, place: int, address: object) -> list[Any]:
    try:
        import apprise
    except ImportError:
        cure = "pip install 'lightning-gradwatch[notify]'"
        raise refuse(argument, "left out where Apprise is not installed", f"address {place}", cure) from None
    known = re.match(r"[a-z0-9]{1,20}(?=://)", address, re.IGNORECASE) if isinstance(address, str) else None
    came = f"address {place}, which begins with {known[0]}://" if known else f"address {place}, which has no ://"
    chosen = apprise.Apprise(asset=apprise.AppriseAsset(app_id="GradWatch", app_desc="lightning-gradwatch"))
    with _silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Apprise loads all its services here, and some are old
        try:
            is_fine = isinstance(address, str) and chosen.add(address)
        except Exception as failure:
            if is_the_users(failure):
                raise
            is_fine = False
    if not is_fine or not len(chosen):
        raise refuse(argument, "addresses that Apprise understands", came, _CURE)
    servers = list(chosen)
    for server in servers:
        server.socket_connect_timeout = min(server.socket_connect_timeout, TIMEOUT_S)
        server.socket_read_timeout = min(server.socket_read_timeout, TIMEOUT_S)
    return servers


def schema(server: Any) -> str:
    """The kind of a server, such as ``slack``; nothing of it is secret."""
    protocols = server.secure_protocol if server.secure else server.protocol
    chosen = protocols or server.secure_protocol or server.protocol
    return str(chosen if isinstance(chosen, str) else next(iter(chosen), "notification"))


@contextmanager
def _silence() -> Iterator[None]:
    """Let loggers that may name an address say nothing of what is done here, or in threads that Apprise starts."""
    token = _is_silent.set(True)
    for name in _CHATTERERS:
        logging.getLogger(name).addFilter(_may_speak)  # adds it once only
    try:
        yield
    finally:
        _is_silent.reset(token)


def _may_speak(_: logging.LogRecord) -> bool:
    return not _is_silent.get()


class Notifier:
    """Sends one message when an incident opens or escalates and one when it is resolved.

    After a message on an incident further ones of the same kind are folded into the next message, for a pause that
    doubles each time: a run that comes and goes between sick and healthy must not flood anybody.

    Args:
        servers: Where messages go: the elements of ``Addresses``.
        run: Name of the run.
        tensorboard_url: Address of a TensorBoard that shows the run, for a link; None for no link.
        pause_s: The first pause, in seconds.
    """

    def __init__(
        self, servers: Iterable[Any], run: str, tensorboard_url: str | None = None, pause_s: float = PAUSE_S
    ) -> None:
        self._servers = list(servers)
        self._run = run
        self._url = tensorboard_url
        self._pause_s = pause_s
        self._messages: queue.Queue[tuple[str, str, str] | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._next: dict[str, float] = {}
        self._num_sent: Counter[str] = Counter()
        self._folded: Counter[str] = Counter()
        self._announced: set[tuple[str, int, str]] = set()
        self._num_lost = 0
        self._troubles: queue.SimpleQueue[str] = queue.SimpleQueue()

    def tell(self, event: Event, alert: Alert) -> None:
        """Send what has become of an alert, or fold it into the next message; notices are not sent."""
        incident = (alert.kind, alert.step, alert.optimizer)
        if event == "ended" and incident in self._announced:
            self._announced.discard(incident)
            self._send("success", "resolved", alert, f"It held until step {alert.until_step}.")
        if event == "ended" or alert.level == "notice":
            return
        now = time.monotonic()
        if incident not in self._announced and now < self._next.get(alert.kind, now):
            self._folded[alert.kind] += 1
            return
        self._next[alert.kind] = now + min(self._pause_s * 2 ** self._num_sent[alert.kind], MAX_PAUSE_S)
        self._num_sent[alert.kind] += 1
        self._announced.add(incident)
        self._send("failure", event, alert, alert.message, _of_folded(self._folded.pop(alert.kind, 0)))

    def troubles(self) -> list[str]:
        """What went wrong since the last call, in sentences without addresses; each server is named once."""
        found = []
        while not self._troubles.empty():
            found.append(self._troubles.get())
        return found

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for what is under way, but not for ever; what was folded goes out in one last message.

        Args:
            timeout_s: How long to wait, in seconds.
        """
        if folded := {kind: number for kind, number in self._folded.items() if number}:
            self._folded.clear()
            counts = ", ".join(f"{number} of {kind}" for kind, number in folded.items())
            self._put("info", f"GradWatch: {self._run}", f"Training has ended. Not reported before: {counts}.")
        if self._thread is None:
            return
        deadline = time.monotonic() + timeout_s
        try:
            self._messages.put(None, timeout=timeout_s)
        except queue.Full:
            self._num_lost += 1
        self._thread.join(max(deadline - time.monotonic(), 0))
        waiting = self._messages.qsize() if self._thread.is_alive() else 0  # the end mark stands for the present one
        lost = self._num_lost + waiting
        self._thread = None
        if lost:
            self._troubles.put(f"at least {lost} messages could not be sent in time")

    def _send(self, level: str, event: str, alert: Alert, *sentences: str) -> None:
        what = {"prescribed": "remedies tried", "traced": "found where it was born"}.get(event, event)
        title = f"GradWatch: {alert.kind} {what} in {self._run} (step {alert.step})"
        place = f"Run {self._run} on {socket.gethostname()}, step {alert.step}."
        self._put(level, title, "\n\n".join(filter(None, (*sentences, place, self._link(alert)))))

    def _link(self, alert: Alert) -> str:
        if self._url is None:
            return ""
        return f"{self._url.rstrip('/')}/#gradwatch&run={quote(self._run, safe='')}&step={alert.step}"

    def _put(self, level: str, title: str, body: str) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gradwatch-notify", daemon=True)
            self._thread.start()
        try:
            self._messages.put_nowait((level, title, body))
        except queue.Full:
            self._num_lost += 1

    def _work(self) -> None:
        failed: set[int] = set()
        while (message := self._messages.get()) is not None:
            for place, server in enumerate(self._servers):
                reason = _deliver(server, *message)
                if reason and place not in failed:
                    failed.add(place)
                    self._troubles.put(f"the {schema(server)} server of notification {place + 1} {reason}")


def _of_folded(number: int) -> str:
    return f"Since the last message on this kind: {number} further incidents." if number else ""


def _alone(server: Any) -> Any:
    """Apprise for one server, to know which one fails."""
    import apprise

    return apprise.Apprise(server, asset=server.asset)


def _deliver(server: Any, level: str, title: str, body: str) -> str:
    """Send one message; what went wrong, without the address."""
    with _silence():
        try:
            return (
                ""
                if _alone(server).notify(body=body, title=title, notify_type=level, body_format="text")
                else "did not take a message"
            )
        except BaseException as failure:  # whatever it is, it must stay in this thread; its text may hold the address
            return f"failed with {type(failure).__name__}"
