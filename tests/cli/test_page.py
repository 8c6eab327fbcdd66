"""The report as a page, opened from a file in a real Chromium."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page

from lightning_gradwatch.cli.logs import Logs, OpenRun
from lightning_gradwatch.cli.page import build
from lightning_gradwatch.core.quantities.several import SEVERAL
from lightning_gradwatch.reading import answers, lines
from lightning_gradwatch.reading.heatmaps import column, heatmap
from lightning_gradwatch.reading.norms import NORMS, norms_for
from tests.cli.command import alert, here
from tests.prescriptions import prescription
from tests.tensorboard.board import read_frame
from tests.tensorboard.browser import chromium, write_run
from tests.tensorboard.record import record


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def opened(browser: Browser, page: Path, state: str = "") -> Iterator[Page]:
    """A page from its file; nothing else may be asked for, and nothing may go wrong."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    found = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    found.on("request", lambda request: requests.append(request.url))
    found.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.goto(page.as_uri() + state)
    found.locator("main[aria-busy=false]").wait_for(timeout=20_000)
    yield found
    outside = [url for url in requests if not url.startswith(("data:", "blob:")) and url.split("#")[0] != page.as_uri()]
    assert outside == []
    assert complaints == []
    context.close()


@pytest.fixture(scope="module")
def page(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one run of each kind."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    reader = Logs(logs)
    path.write_text(build(reader, [run for run in reader.reload() if run.is_watched]), encoding="utf-8")
    return path


def test_the_page_shows_the_sickest_run_and_offers_the_others(browser: Browser, page: Path) -> None:
    with opened(browser, page) as found:
        text = found.inner_text("body")
        assert "Gradients vanish with depth" in text
        assert "11 sigmoids" in text
        assert found.locator("canvas.heat").count() == 1
        assert found.locator("button.run").count() == 6


@pytest.mark.parametrize("run", ["sick", "healthy", "recovered", "recurrent", "gan", "clipped"])
def test_every_kind_of_run_is_drawn(browser: Browser, page: Path, run: str) -> None:
    with opened(browser, page, f"#p.gradwatch.run={run}") as found:
        colours = found.evaluate(
            """() => {
                const canvas = document.querySelector("canvas.heat");
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return new Set(new Uint32Array(data.buffer)).size;
            }"""
        )
        assert colours > 3


ASK = """async ([method, query]) => {
    const { embeddedSource, unpack } = await import("lightning_gradwatch/cli/page/embedded.js");
    window.kept ??= await unpack(window.packed);
    const found = await embeddedSource(window.kept)[method](query);
    const values = found.values && Array.from(found.values);
    const known = (_, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value);
    return JSON.parse(JSON.stringify({ ...found, values }, known));
}"""
KEEP = """addEventListener("DOMContentLoaded", () => {
    window.packed = document.getElementById("gradwatch-data").textContent;
})"""


PARTS: tuple[dict[str, Any], ...] = ({}, {"from": 5, "to": 21}, {"columns": 4}, {"from": 3, "columns": 2})


def same(found: list[Any], expected: list[Any]) -> bool:
    """Whether numbers are alike; JavaScript's Infinity and NaN come as words."""
    return [float(value) for value in found] == pytest.approx([float(value) for value in expected], nan_ok=True)


class Both:
    """The page and the server, asked the same about a run."""

    def __init__(self, tab: Page, whole: OpenRun) -> None:
        self.tab, self.store, self.catalogue = tab, whole.store, whole.catalogue

    def ask(self, method: str, query: dict[str, Any]) -> Any:
        """What the page says."""
        return self.tab.evaluate(ASK, [method, {"run": self.catalogue.run, **query}])

    def check_frame(self, method: str, query: dict[str, Any], body: bytes) -> None:
        found, (header, values) = self.ask(method, query), read_frame(body)
        assert (found["steps"], found["lastSteps"]) == (header["steps"], header["last_steps"])
        assert same(found["values"], values.ravel().tolist())
        assert [found.get(name) for name in ("lowest", "dtype")] == [header.get(name) for name in ("lowest", "dtype")]

    def check_quantity(self, whose: dict[str, Any], quantity: str) -> None:
        series = self.catalogue.of(whose["optimizer"], whose["version"])[quantity]
        for part in PARTS:
            body = heatmap(self.store, series, (part.get("from"), part.get("to")), part.get("columns", 1000))
            self.check_frame("heatmap", {**whose, "quantity": quantity, **part}, body)
            if series.parts:
                span, columns = (part.get("from"), part.get("to")), part.get("columns", 1000)
                means = read_frame(heatmap(self.store, series, span, columns, "mean"))[1]
                found = self.ask("heatmap", {**whose, "quantity": quantity, "statistic": "mean", **part})
                assert same(found["values"], means.ravel().tolist())
            for norm in (NORMS[name] for name in norms_for(series.description)):
                body = heatmap(
                    self.store, series, (part.get("from"), part.get("to")), part.get("columns", 1000), norm=norm
                )
                self.check_frame("heatmap", {**whose, "quantity": quantity, "norm": norm.name, **part}, body)
        for step in (0, 7, 10**6):
            found = self.ask("column", {**whose, "quantity": quantity, "step": step})
            expected = column(self.store, series, step)
            assert (found["step"], found["last_step"]) == (expected["step"], expected["last_step"])
            assert same(found["values"], expected["values"])

    def check_layer(self, whose: dict[str, Any], layer: str) -> None:
        histogram = self.catalogue.of(whose["optimizer"], whose["version"]).get("log10_histogram")
        if histogram is not None:
            body = answers.distribution(self.store, histogram, layer, (None, None), 1000)
            self.check_frame("distribution", {**whose, "layer": layer}, body)
        found = self.ask("layer", {**whose, "layer": layer, "step": 12})
        expected: dict[str, Any] = answers.layer(
            self.store, self.catalogue, whose["optimizer"], whose["version"], layer, 12
        )
        assert (found["step"], found["last_step"]) == (expected["step"], expected["last_step"])
        assert set(found["numbers"]) == set(expected["numbers"])
        assert same([found["numbers"][name] for name in expected["numbers"]], list(expected["numbers"].values()))
        assert same(found["grad_norm_range"], expected["grad_norm_range"])
        rms = [found["grad_norm_rms"], expected["grad_norm_rms"]]
        assert rms == [None, None] or rms[0] == pytest.approx(rms[1])

    def check_sequence(self, whose: dict[str, Any], layer: str) -> None:
        found = self.ask("sequence", {**whose, "layer": layer, "step": 9})
        expected = answers.sequence(self.store, self.catalogue, whose["optimizer"], whose["version"], layer, 9)
        assert {name: found[name] for name in expected} == expected

    def check_scalar(self, tag: str) -> None:
        found = self.ask("scalars", {"tag": tag, "from": 4, "to": 30})
        expected: dict[str, Any] = {**lines.scalars(self.store, self.catalogue.run, tag, (4, 30), 2000)}
        assert set(expected) <= set(found)
        assert all(same(found[name], numbers) for name, numbers in expected.items())


@pytest.mark.parametrize("run", ["sick", "recovered", "recurrent", "gan", "clipped"])
def test_the_page_answers_what_tensorboard_would(browser: Browser, logs: Path, page: Path, run: str) -> None:
    check(browser, logs, page, run)


def test_the_page_shares_rows_as_tensorboard_would(browser: Browser, tmp_path: Path) -> None:
    layers = [f"block.{i}.{part}" for i in range(120) for part in ("norm", "linear")]
    norms = 10 ** np.random.default_rng(0).normal(size=(3, 240))
    sizes = {"elements": [4 ** (i * i % 13) for i in range(240)], "vectors": range(0, 240, 2)}
    with record(tmp_path / "logs" / "run", layers, **sizes) as run:
        run.write(0, norms)
    reader = Logs(tmp_path / "logs")
    page = tmp_path / "page.html"
    page.write_text(build(reader, reader.reload()), encoding="utf-8")
    tab = browser.new_page()
    tab.add_init_script(KEEP)
    tab.goto(page.as_uri())
    tab.locator("main[aria-busy=false]").wait_for(timeout=20_000)
    whole = reader.open(reader.reload()[0])
    found = set()
    for norm, hide in [(None, 0), ("total", 0), ("rms", 1), ("relative", 1)]:
        query = {"run": "run", "hide": hide, **({"norm": norm} if norm else {})}
        told = tab.evaluate(ASK, ["run", query])["optimizers"][0]["versions"][0]["rows"]
        layout = answers.Layout(norm, bool(hide))
        assert told == answers.run(whole.store, "run", layout)["optimizers"][0]["versions"][0]["rows"]
        found.add(str(told))
    assert len(found) == 4, "each in a way of its own"
    tab.close()


def test_the_page_answers_the_same_of_every_step(browser: Browser, tmp_path: Path) -> None:
    norms = np.geomspace(1e-6, 1e3, 3 * 120, dtype=np.float32).reshape(120, 3)
    norms[[70, 71, 72, 90], [0, 1, 2, 2]] = 0, math.inf, math.nan, -1
    with record(tmp_path / "logs" / "run", ("a", "b", "c"), elements=(4, 9, 10_000)) as run:
        run.write(0, norms[:10])
        run.write(10, norms[10:], width=7, part=1)
        run.write_plain("weight_norm", 0, [1, 2, 3])
    reader = Logs(tmp_path / "logs")
    page = tmp_path / "page.html"
    page.write_text(build(reader, reader.reload()), encoding="utf-8")
    check(browser, tmp_path / "logs", page, "run")


def check(browser: Browser, logs: Path, page: Path, run: str) -> None:
    """Ask the page and the server everything about a run."""
    reader = Logs(logs)
    context = browser.new_context()
    tab = context.new_page()
    tab.add_init_script(KEEP)
    tab.goto(page.as_uri())
    tab.locator("main[aria-busy=false]").wait_for(timeout=20_000)
    both = Both(tab, reader.open(next(one for one in reader.reload() if one.name == run)))
    for optimizer, (*_, version) in both.catalogue.optimizers.items():
        whose = {"optimizer": optimizer, "version": version}
        quantities = both.catalogue.of(optimizer, version)
        for quantity in set(quantities) - set(SEVERAL):
            both.check_quantity(whose, quantity)
        for layer in quantities["grad_norm"].description.layers[:3]:
            both.check_layer(whose, layer)
        for layer in both.catalogue.sequences(optimizer, version):
            both.check_sequence(whose, layer)
    for tag in (*both.catalogue.scalars, *both.catalogue.lines):
        both.check_scalar(tag)
    context.close()


def test_text_from_a_log_stays_text(browser: Browser, tmp_path: Path, capsys: Any) -> None:
    evil = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>{nonce}"
    tried = prescription(remedy=evil, why=evil, code=evil)
    found = alert(layer=evil, message=evil, evidence=evil, remedies=(evil,), prescription=tried, summary=evil)
    write_run(tmp_path / "logs" / "run", [evil, "b", "c"], {0: [1e-9, 1.0, 1.0], 1: [1e-9, 1.0, 1.0]}, found)
    path = tmp_path / "page.html"
    assert here(capsys, "report", tmp_path / "logs", "--html", path)[0] == 1
    assert "owned" not in path.read_text(encoding="utf-8")
    with opened(browser, path) as tab:
        assert evil in tab.inner_text("body")
        tab.locator(".tried summary").first.click()
        assert tab.locator(".tried th[scope=row]").all_inner_texts() == ["as it is", evil, "SiLU"]
        assert tab.locator(".tried pre").text_content() == evil
        assert tab.evaluate("window.owned") is None
        assert tab.locator("img").count() == 0


def test_the_page_may_speak_to_nobody(browser: Browser, page: Path) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page.read_text(encoding="utf-8"))
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert "unsafe" not in policy
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.locator("main[aria-busy=false]").wait_for(timeout=20_000)
    for speak in (
        "fetch('http://localhost:9/')",
        "new Promise((y, n) => Object.assign(new Image(), { onload: y, onerror: n, src: 'http://localhost:9/x.png' }))",
        "import('http://localhost:9/x.js')",
    ):
        assert (
            tab.evaluate(f"async () => {{ try {{ await {speak}; return 'sent' }} catch {{ return 'refused' }} }}")
            == "refused"
        )
    blocked = tab.evaluate(
        """() => new Promise((done) => {
            addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.owned = 1";
            document.body.append(script);
        })"""
    )
    assert blocked.startswith("script-src")
    assert tab.evaluate("window.owned") is None
    context.close()


def test_every_page_has_its_own_nonce(logs: Path) -> None:
    reader = Logs(logs / "healthy")
    runs = reader.reload()
    nonces = {re.findall(r"nonce-([\w-]+)'", build(reader, runs))[0] for _ in range(3)}
    assert len(nonces) == 3


def test_a_deep_link_opens_a_run_and_the_address_follows(browser: Browser, page: Path) -> None:
    with opened(browser, page, "#p.gradwatch.run=recurrent&p.gradwatch.layer=net.rnn") as tab:
        assert "Layer net.rnn" in re.sub(r"\s+", " ", tab.inner_text("body"))
        assert "time steps" in tab.inner_text("body")
        tab.locator("button.run").filter(has_text=re.compile("^healthy")).click()
        tab.locator("main[aria-busy=false]").wait_for()
        assert "p.gradwatch.run=healthy" in tab.url


@pytest.mark.slow
def test_three_hundred_layers_and_hundreds_of_samples_fit_a_few_megabytes(
    browser: Browser, tmp_path: Path, capsys: Any
) -> None:
    layers = [f"encoder.layers.{i}.linear" for i in range(300)]
    table = {step: [(i + 1.5) * (step + 1) / 1e5 for i in range(300)] for step in range(500)}
    table[377][123] = float("nan")
    write_run(tmp_path / "run", layers, table)
    path = tmp_path / "page.html"
    assert here(capsys, "report", tmp_path / "run", "--html", path)[0] == 0
    assert path.stat().st_size < 4_000_000
    with opened(browser, path) as tab:
        assert tab.locator("canvas.heat").count() == 1
