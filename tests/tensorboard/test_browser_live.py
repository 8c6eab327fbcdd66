"""The tab while things change around it: runs that grow, servers behind prefixes and proxies, servers that go away."""

from __future__ import annotations

import contextlib
import http.server
import math
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Request, expect
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, MaxNorm, MaxValue
from lightning_gradwatch.core.quantities import QUANTITIES
from lightning_gradwatch.core.quantities.clipped_fraction import CLIPPED_FRACTION
from tests.cli.command import alert
from tests.tasks import Classifier, digits, fit, small_net
from tests.tensorboard.browser import (
    Log,
    Tab,
    alone,
    free_port,
    link,
    opened,
    tensorboard,
    wait_for,
    write_run,
)

pytestmark = pytest.mark.slow

LAYERS = ("net.0", "net.2", "net.4")
Norms = Callable[[int], list[float]]
POLL = 5000
"""Milliseconds between two looks of the tab."""
QUIET = 500
"""Milliseconds without a request after which none is expected."""


def norms(step: int) -> list[float]:
    return [10.0 ** (-6 + step / 1000), 1e-3, 1.0]


def grow(log: Log, address: str, steps: range, norms_of: Norms = norms) -> None:
    """More samples, until TensorBoard has read them."""
    for step in steps:
        log.write(step, norms_of(step))
    log.flush()
    wait_for(f"{address}/data/plugin/gradwatch/runs", f'"last_step": {steps[-1]}')


def look(tab: Tab, step: int | None = None) -> None:
    """Let five seconds pass for the page, and what it then asks for arrive; with ``step``, until it shows that one.

    That the page asks for nothing more does not say that it has drawn: on a busy machine what was noted last may be an
    answer to a question from before the change.
    """
    under_way: set[Request] = set()
    answered: list[str] = []

    def begins(request: Request) -> None:
        under_way.add(request)

    def ends(request: Request) -> None:
        if request in under_way:  # else it was asked for before, and may be answered with what was known then
            under_way.discard(request)
            answered.append(request.url)

    tab.page.on("request", begins)
    tab.page.on("requestfinished", ends)
    tab.page.on("requestfailed", ends)
    for _ in range(20):
        tab.page.clock.run_for(POLL)
        quiet = 0
        while quiet < QUIET:  # Playwright's own "networkidle" comes once, and this page asks again
            tab.page.wait_for_timeout(50)
            quiet = 0 if under_way else quiet + 50
        if any(url.endswith("/runs") for url in answered):
            break
    else:
        raise AssertionError("the page does not look for news")
    for event, note in (("request", begins), ("requestfinished", ends), ("requestfailed", ends)):
        tab.page.remove_listener(event, note)
    tab.page.clock.run_for(500)
    tab.page.clock.resume()
    if step is not None:
        expect(tab.frame.locator(".live")).to_contain_text(f"step {step}", timeout=30_000)
    tab.settle()


def reaches(tab: Tab, step: int) -> None:
    """Wait until the heatmap goes so far: the data server takes in one series of a run after the other."""
    expect(tab.frame.locator("canvas.heat")).to_have_attribute("data-to", str(step), timeout=30_000)
    tab.settle()


@contextlib.contextmanager
def growing(
    browser: Browser, directory: Path, layers: Sequence[str] = LAYERS, norms_of: Norms = norms, **state: Any
) -> Iterator[tuple[Tab, Log, str]]:
    """The tab over a run of 21 samples that goes on."""
    log = Log(directory / "run", layers)
    for step in range(0, 210, 10):
        log.write(step, norms_of(step))
    log.flush()
    with tensorboard(directory) as address, opened(browser, alone(address, **state)) as tab:
        tab.page.clock.install()
        tab.page.reload()
        tab.settle()
        yield tab, log, address
    log.summary.close()


def test_new_samples_appear_by_themselves(browser: Browser, tmp_path: Path) -> None:
    with growing(browser, tmp_path) as (tab, log, address):
        assert tab.steps == (-5.0, 205.0)
        grow(log, address, range(210, 310, 10))
        look(tab, 300)
        reaches(tab, 305)
        assert tab.steps == (-5.0, 305.0)
        assert ", step 300:" in tab.spoken
        assert "live · step 300" in tab.frame.locator(".live").inner_text()


def test_the_view_stays_where_the_person_looks(browser: Browser, tmp_path: Path) -> None:
    with growing(browser, tmp_path, zoom="45,95", step=70, layer="net.2") as (tab, log, address):
        grow(log, address, range(210, 310, 10))
        look(tab, 300)
        assert tab.steps == (45.0, 95.0)
        assert tab.spoken.startswith("net.2, step 70:")


def test_a_view_of_the_newest_steps_moves_along(browser: Browser, tmp_path: Path) -> None:
    with growing(browser, tmp_path, zoom="105,205") as (tab, log, address):
        grow(log, address, range(210, 310, 10))
        look(tab, 300)
        reaches(tab, 305)
        assert tab.steps == (205.0, 305.0)
        assert ", step 300:" in tab.spoken


def test_nothing_is_fetched_again_while_nothing_changes(browser: Browser, tmp_path: Path) -> None:
    with growing(browser, tmp_path) as (tab, _, _):
        tab.requests.clear()
        for _ in range(3):
            look(tab)
        assert len(tab.requests) >= 3
        assert {url.rsplit("/", 1)[1] for url in tab.requests} == {"runs"}


@pytest.mark.slow
def test_memory_stays_bounded_while_a_large_run_grows(browser: Browser, tmp_path: Path) -> None:
    names = [f"blocks.{i}" for i in range(1500)]
    large = [1.0] * len(names)
    with growing(browser, tmp_path, layers=names, norms_of=lambda step: large) as (tab, log, address):
        session = tab.page.context.new_cdp_session(tab.page)
        sizes, counts = [], []
        for turn in range(16):
            grow(log, address, range(210 + turn, 211 + turn), lambda step: large)
            look(tab, 210 + turn)
            session.send("HeapProfiler.collectGarbage")
            usage = session.send("Runtime.getHeapUsage")
            sizes.append(usage["usedSize"] + usage["backingStorageSize"])
            counts.append(tab.evaluate("document.querySelectorAll('*').length"))
        assert max(sizes[-4:]) < max(sizes[6:10]) + 1_000_000, sizes
        assert counts[-1] <= counts[5] + 5


def test_a_server_that_goes_away_is_told_in_a_sentence_and_can_come_back(browser: Browser, tmp_path: Path) -> None:
    write_run(tmp_path / "run", LAYERS, {step: norms(step) for step in range(0, 50, 10)})
    port = free_port()
    context = browser.new_context()
    tab = Tab(context.new_page())
    tab.page.clock.install()
    with tensorboard(tmp_path, port=port) as address:
        tab.open(alone(address))
    tab.page.clock.run_for(POLL)
    trouble = tab.frame.get_by_role("alert")
    expect(trouble).to_contain_text("TensorBoard does not answer. Is it still running?")
    expect(tab.heatmap).to_be_visible()
    with tensorboard(tmp_path, port=port):
        trouble.get_by_role("button", name="Try again").click()
        expect(trouble).to_be_hidden()
    context.close()


@pytest.mark.slow
def test_500_layers_times_2000_samples_are_drawn_within_a_second(browser: Browser, tmp_path: Path) -> None:
    names = [f"blocks.{i // 10}.layer{i % 10}" for i in range(500)]
    log = Log(tmp_path / "large", names)
    generator = torch.Generator().manual_seed(0)
    table = 10 ** (torch.linspace(-8, 0, 500) + 0.2 * torch.randn(2000, 500, generator=generator))
    table[1234, 250] = math.nan
    for step in range(2000):
        log.write(step, table[step].tolist())
    log.close()
    with tensorboard(tmp_path) as address, opened(browser, alone(address, opened="*")) as tab:
        times = []
        for _ in range(3):
            tab.page.reload()
            tab.settle()
            times += tab.evaluate("performance.getEntriesByName('gradwatch-drawn').map((entry) => entry.duration)")
        assert min(times) < 1000, times
        around = tab.pixels((1234 + 0.5) / 2000, (250 + 0.5) / 500, size=7)
        assert around.count((213, 18, 47)) >= 9, "a single NaN among a million cells must be seen"
        assert "largest of" in tab.hover(0.5, 0.5)


class Reader(nn.Module):
    """Reads the digits pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(pixels.unsqueeze(-1))[0][:, -1])
        return logits


def test_recurrent_layers_show_the_gradient_against_time_and_the_horizon(browser: Browser, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fit(
        GradWatch(histogram_every=1), Classifier(Reader()), directory=tmp_path / "rnn", log_every_n_steps=1, max_steps=5
    )
    with tensorboard(tmp_path) as address, opened(browser, alone(address, layer="net.rnn")) as tab:
        sequence = tab.frame.locator(".sequence")
        expect(sequence).to_contain_text("Gradient against time steps back")
        expect(sequence).to_contain_text("Memory horizon: ")
        expect(sequence.locator("canvas")).to_be_visible()
        expect(tab.frame.locator(".empty-note")).to_be_hidden()
        tab.press("ArrowDown")
        expect(sequence).to_be_hidden()


def test_every_quantity_of_a_real_run_can_be_shown(browser: Browser, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fit(
        GradWatch(histogram_every=1), Classifier(Reader()), directory=tmp_path / "rnn", log_every_n_steps=1, max_steps=5
    )
    with tensorboard(tmp_path) as address, opened(browser, alone(address)) as tab:
        quantities = [quantity for quantity in QUANTITIES if quantity is not CLIPPED_FRACTION]
        offered = tab.frame.get_by_label("Quantity").locator("option").all_inner_texts()
        assert offered == [quantity.label for quantity in quantities]
        for quantity in quantities:
            assert quantity.label.lower() in tab.spoken
            unit = "%" if quantity.scale == "fraction" else quantity.unit
            assert tab.spoken.endswith(f" {unit}." if unit else ".")
            assert len(set(tab.pixels(0.5, 0.5, size=64))) <= 4
            tab.press("q")
        assert "gradient norm" in tab.spoken, "after the last one comes the first"


def test_of_alerts_that_have_ended_the_banner_shows_the_latest(browser: Browser, tmp_path: Path) -> None:
    ended = alert(1, 5, kind="exploding"), alert(2, 9, kind="dead"), alert(3, 9, kind="stalled", level="notice")
    write_run(tmp_path / "run", LAYERS, {step: norms(step) for step in range(12)}, *ended)
    with tensorboard(tmp_path) as address, opened(browser, alone(address)) as tab:
        assert "Layers without any gradient" in tab.frame.locator(".banner h2").inner_text()


def test_clipping_shows_its_coefficient_and_its_share(browser: Browser, tmp_path: Path) -> None:
    fit(GradWatch(auto_clip=0.01), Classifier(small_net()), digits(), directory=tmp_path / "run", log_every_n_steps=1)
    with tensorboard(tmp_path) as address, opened(browser, alone(address)) as tab:
        lines = tab.frame.locator(".line")
        expect(lines).to_have_count(4)
        assert re.search(r"total norm \d.*, clip limit 0.01 at step", lines.nth(1).inner_text())
        assert "clip coefficient 0.0" in lines.nth(2).inner_text()
        assert "clipped percent 100" in lines.nth(3).inner_text()
        tab.frame.get_by_label("Quantity").select_option("clipped_fraction")
        tab.settle()
        assert tab.hover(0.9, 0.1).endswith("clipped steps 100 %")
        assert tab.link["quantity"] == "clipped_fraction"


@pytest.mark.parametrize(
    "policy", [MaxValue(0.001), MaxNorm(0.01, include="net.0"), "agc"], ids=["value", "a layer", "units"]
)
def test_a_limit_that_is_none_of_the_total_norm_is_not_drawn_beside_it(
    browser: Browser, tmp_path: Path, policy: Any
) -> None:
    watch = GradWatch(auto_clip=policy)
    fit(watch, Classifier(small_net()), digits(), directory=tmp_path / "run", log_every_n_steps=1)
    with tensorboard(tmp_path) as address, opened(browser, alone(address)) as tab:
        lines = tab.frame.locator(".line")
        expect(lines).to_have_count(3)
        assert "limit" not in " ".join(lines.all_inner_texts())


def test_the_python_loader_and_a_path_prefix(browser: Browser, tmp_path: Path) -> None:
    write_run(tmp_path / "run", LAYERS, {step: norms(step) for step in range(0, 50, 10)})
    arguments = ("--path_prefix", "/some/where", "--load_fast=false")
    with tensorboard(tmp_path, *arguments, path="/some/where") as address, opened(browser, link(address)) as tab:
        assert tab.steps == (-5.0, 45.0)


def proxy(target: str, prefix: str) -> type[http.server.BaseHTTPRequestHandler]:
    """A proxy that takes a prefix off the path; anything else is a page with TensorBoard in a frame."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(prefix):
                return self.answer(
                    200, "text/html", f"<title>notebook</title><iframe src='{target}'></iframe>".encode()
                )
            size = int(self.headers.get("Content-Length") or 0)
            request = urllib.request.Request(target + self.path.removeprefix(prefix), self.rfile.read(size) or None)
            request.add_header("Content-Type", self.headers.get("Content-Type") or "text/plain")
            try:
                with urllib.request.urlopen(request) as found:
                    return self.answer(found.status, found.headers["Content-Type"], found.read())
            except urllib.error.HTTPError as error:
                return self.answer(error.code, "text/plain", error.read())

        do_POST = do_GET  # noqa: N815

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None: ...

    return Handler


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_proxy_that_strips_its_prefix(browser: Browser, tmp_path: Path) -> None:
    write_run(tmp_path / "run", LAYERS, {step: norms(step) for step in range(0, 50, 10)})
    with (
        tensorboard(tmp_path) as address,
        serving(proxy(address, "/proxy")) as host,
        opened(browser, link(f"{host}/proxy")) as tab,
    ):
        assert tab.steps == (-5.0, 45.0)


@pytest.mark.slow
@pytest.mark.parametrize("makes_link", [link, alone], ids=["TensorBoard in a frame", "the tab in a frame"])
def test_a_frame_in_a_page_of_another_origin(browser: Browser, tmp_path: Path, makes_link: Any) -> None:
    write_run(tmp_path / "run", LAYERS, {step: norms(step) for step in range(0, 50, 10)})
    with tensorboard(tmp_path) as address, serving(proxy(makes_link(address), "/none")) as notebook:
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        tab = Tab(context.new_page())
        tab.page.goto(notebook)
        tab.page.evaluate("document.querySelector('iframe').style.cssText = 'width: 1300px; height: 800px'")
        outer = tab.page.frame_locator("iframe")
        inner = outer.frame_locator("iframe[src*=gradwatch]") if makes_link is link else outer
        inner.locator("main[aria-busy=false]").wait_for(timeout=15_000)
        expect(inner.get_by_role("application")).to_be_visible()
        assert tab.evaluate("document.documentElement.dataset.theme") == "light"
        assert not [text for text in tab.complaints if "gradwatch" in text]
        context.close()
