"""A real TensorBoard, a real Chromium, and runs with known numbers written by the real Writer."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import torch
from playwright.sync_api import Browser, ConsoleMessage, FrameLocator, Locator, Page, sync_playwright
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.quantities.several import IN_BINS
from lightning_gradwatch.core.records import Alert, Layer, Observation, Publication, Window
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.recorder import Event, RunRecorder, Value
from lightning_gradwatch.outputs.tensorboard import Writer
from lightning_gradwatch.reading.schema import Description
from tests.tensorboard.board import Board

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The installed Chromium."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"needs chromium: none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def tensorboard(directory: Path, *arguments: str, port: int = 0, path: str = "") -> Iterator[str]:
    """TensorBoard over a directory of logs, all of which it has read; its address."""
    runs = {str(found.parent.relative_to(directory)) for found in directory.rglob("events*")}
    with Board(directory, "--port", str(port), *arguments) as board:
        address = f"http://localhost:{board.port}{path}"
        wait_for(f"{address}/data/plugin/gradwatch/runs", *(f'"run": "{run}"' for run in runs))
        yield address


def wait_for(address: str, *texts: str) -> None:
    """Until an address answers with these texts."""
    answer = ""
    for _ in range(240):
        with contextlib.suppress(OSError), urllib.request.urlopen(address) as response:
            answer = response.read().decode()
            if all(text in answer for text in texts):
                return
        time.sleep(0.25)
    raise AssertionError(f"{address} does not answer with {texts} but with {answer[:2000]}")


class Log:
    """A run written by the real Writer from a table of gradient norms, one sample at a time as in older logs.

    Args:
        directory: Where the event file goes.
        layers: Names of the layers.
        optimizer: Name of the optimizer.
    """

    def __init__(self, directory: Path, layers: Sequence[str], optimizer: str = "") -> None:
        self.summary = SummaryWriter(str(directory))
        self.writer, self.recorder = Writer(self.summary, Cards(0)), RunRecorder()
        self.layers = layers
        self.optimizer = optimizer

    def write(
        self,
        step: int,
        norms: Sequence[float],
        optimizer: str | None = None,
        layers: Sequence[str] = (),
        declared: tuple[Quantity, ...] = (),
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        """One point: run-level numbers, the norms, and quantities of the user's own."""
        optimizer, names = self.optimizer if optimizer is None else optimizer, tuple(layers or self.layers)
        known = tuple(Layer(name, (f"{name}.weight",), has_matrix=True) for name in names)
        values, none = torch.tensor([0.0, *norms]), (None,)
        self.writer.publish(Publication(step, optimizer, known, Window(1, values, values, values, values), {}), 0)
        tag, about = metrics.layers_tag("grad_norm", 0, optimizer), Description("grad_norm", optimizer, 0, names)
        plain = Event(step, (Value(tag, about, values[1:].numpy()),))
        steps = Observation(
            step, known, (step,), values[None], none, none, 0.1, frozenset(), None, None, None, False, optimizer
        )
        snapshot = Snapshot(step, optimizer, known, extra=extra or {}, declared=declared)
        found = self.recorder.take([steps], [snapshot])
        self.writer.record([plain, *(e for e in found if e.values[0].description.quantity not in IN_BINS)])

    def close(self, *alerts: Alert) -> None:
        """Write the alerts; everything reaches the disk."""
        self.flush(*alerts)
        self.summary.close()

    def flush(self, *alerts: Alert) -> None:
        """The same, and go on."""
        self.writer.write_alerts(alerts, len(alerts))
        self.summary.flush()


def write_run(directory: Path, layers: Sequence[str], table: Mapping[int, Sequence[float]], *alerts: Alert) -> None:
    """A whole run from norms by step."""
    log = Log(directory, layers)
    for step, norms in table.items():
        log.write(step, norms)
        log.summary.add_scalar("train_loss", 1 / (1 + step), step)
    log.close(*alerts)


def link(address: str, **state: Any) -> str:
    """A deep link into TensorBoard."""
    parts = [f"p.gradwatch.{name}={quote(str(value), safe='')}" for name, value in state.items()]
    return f"{address}/#{'&'.join(['gradwatch', *parts])}"


def alone(address: str, **state: Any) -> str:
    """The same without TensorBoard's own page around it, which takes seconds to load."""
    return link(address, **state).replace("/#", "/data/plugin_entry.html?name=gradwatch#")


class Tab:
    """The tab in a page, with everything that the page has asked for and complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", self._heed)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heed(self, message: ConsoleMessage) -> None:
        """Errors on the console, but for TensorBoard's own: no icon for a lone frame, fonts without the path prefix."""
        path = urlsplit(message.location["url"]).path
        if message.type == "error" and not path.startswith("/font-roboto/") and path != "/favicon.ico":
            self.complaints.append(f"{message.text} {message.location['url']}")

    def open(self, address: str) -> Tab:
        """Go there, and wait until it is drawn."""
        self.page.goto(address)
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until everything is drawn."""
        self.page.wait_for_timeout(150)
        self.frame.locator("main[aria-busy=false]").wait_for()

    def resize(self, width: int, height: int) -> None:
        """Give the window another size, and wait until everything is drawn in it."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_function("(width) => innerWidth === width", arg=width)
        for _ in range(3):  # one in which sizes are observed, one that draws, one that shows it
            self.page.evaluate("() => new Promise(requestAnimationFrame)")
        self.settle()

    @property
    def frame(self) -> FrameLocator | Page:
        """The plugin's frame in TensorBoard, or the page if it stands alone."""
        return self.page if "plugin_entry" in self.page.url else self.page.frame_locator("iframe[src*=gradwatch]")

    @property
    def heatmap(self) -> Locator:
        """The heatmap that takes the focus."""
        return self.frame.get_by_role("application")

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """Run a script in the plugin's frame."""
        return next(f for f in self.page.frames if "plugin_entry" in f.url).evaluate(script, argument)

    def pixels(self, column: float, row: float, size: int = 1) -> list[tuple[int, ...]]:
        """Colours of the heatmap around a place, given as shares of its width and height."""
        script = """([x, y, size]) => {
            const canvas = document.querySelector("canvas.heat");
            const at = [Math.round(x * canvas.width - size / 2), Math.round(y * canvas.height - size / 2)];
            return [...canvas.getContext("2d").getImageData(...at, size, size).data];
        }"""
        flat = self.evaluate(script, [column, row, size])
        return [tuple(flat[i : i + 3]) for i in range(0, len(flat), 4)]

    def hover(self, column: float, row: float) -> str:
        """Point at a place of the heatmap; what the tooltip says."""
        box = self.heatmap.bounding_box()
        assert box
        self.page.mouse.move(box["x"] + column * box["width"], box["y"] + row * box["height"])
        return self.frame.locator(".tooltip").inner_text()

    def drag(self, start: float, end: float) -> None:
        """Drag over the heatmap, from one share of its width to another."""
        box = self.heatmap.bounding_box()
        assert box
        y = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + start * box["width"], y)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + end * box["width"], y, steps=4)
        self.page.mouse.up()
        self.settle()

    def press(self, *keys: str) -> None:
        """Keys for the heatmap."""
        self.heatmap.focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    @property
    def spoken(self) -> str:
        """What a screen reader says about the cell under the cursor."""
        return self.frame.locator("#gw-cell").inner_text()

    @property
    def steps(self) -> tuple[float, float]:
        """The steps at the edges of the heatmap."""
        found = self.frame.locator("canvas.heat")
        return float(found.get_attribute("data-from") or "nan"), float(found.get_attribute("data-to") or "nan")

    @property
    def link(self) -> dict[str, str]:
        """The state in the address."""
        parts = urlsplit(self.page.url).fragment.split("&")[1:]
        return {key.removeprefix("p.gradwatch."): value for key, _, value in (part.partition("=") for part in parts)}

    def check(self, host: str) -> None:
        """Nothing came from elsewhere, and nothing went wrong."""
        assert self.requests
        foreign = [url for url in self.requests if urlsplit(url).scheme in ("http", "https", "ws", "wss")]
        assert not [url for url in foreign if urlsplit(url).netloc != host], foreign
        assert not self.complaints, self.complaints


@contextlib.contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Tab]:
    """The tab in a new page; in the end no foreign request and no complaint may have happened."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, **options)
    context.set_default_timeout(10_000)
    tab = Tab(context.new_page())
    try:
        yield tab.open(address)
        tab.check(urlsplit(address).netloc)
    finally:
        context.close()
