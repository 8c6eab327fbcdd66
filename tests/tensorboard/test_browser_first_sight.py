"""What a stranger sees first: the verdict, what to do, how to read the picture. A real Chromium, a real TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from lightning_gradwatch.core.records import Alert
from tests.prescriptions import prescription
from tests.tensorboard.browser import alone, opened, tensorboard, write_run

LAYERS = ("net.0", "net.2", "net.4")
VANISHING = Alert(
    kind="vanishing", level="alert", step=3, until_step=None, layer="net.0", value=7.0, threshold=2.0,
    message="Gradients vanish with depth.", summary="They shrink.", evidence="nine sigmoids",
    remedies=("ReLU", "normalisation layers"), prescription=prescription(),
)  # fmt: skip
NONFINITE = Alert(
    kind="nonfinite", level="alert", step=1, until_step=None, layer="net.0", value=1.0, threshold=1.0,
    message="NaN or infinite values.", summary="NaN since step 1.",
)  # fmt: skip
NAN_COLOURS = {(213, 18, 47), (255, 143, 156)}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs = tmp_path_factory.mktemp("logs")
    write_run(logs / "sick", LAYERS, {step: [1e-6, 1e-3, 1.0] for step in range(1, 9)}, VANISHING)
    write_run(logs / "healthy", LAYERS, {step: [0.1, 0.2, 0.3] for step in range(1, 9)})
    write_run(logs / "skipped", LAYERS, {step: [math.nan] * 3 for step in range(1, 9)}, NONFINITE)
    write_run(logs / "begun", LAYERS, {}, VANISHING)
    with tensorboard(logs) as found:
        yield found


@pytest.mark.parametrize("width", [400, 900, 1400])
def test_the_verdict_is_the_first_that_is_read(browser: Browser, address: str, width: int) -> None:
    with opened(browser, alone(address, run="sick")) as tab:
        tab.resize(width, 900)
        banner = tab.frame.locator(".banner")
        title = " ".join(banner.locator("h2").inner_text().split())
        assert title == "Sick: Gradients vanish with depth since step 3 · net.0"
        assert banner.locator("ol li").all_inner_texts() == ["ReLU", "Normalisation layers"]
        box = banner.locator("dl").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 900, "what to try is seen without scrolling"
        root = "document.documentElement"
        assert tab.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")


def test_a_healthy_run_says_that_there_is_nothing_to_do(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="healthy")) as tab:
        text = tab.frame.locator(".banner").inner_text()
        assert " ".join(text.split()) == "Healthy: No alert up to step 8. Nothing to do."


def test_the_order_of_remedies_explains_itself(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sick")) as tab:
        tried = tab.frame.locator(".tried")
        tried.locator("summary").first.click()
        assert "A lower loss may stand below a higher one" in tried.inner_text()


def test_the_help_for_the_picture_goes_away_once_it_is_used(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sick")) as tab:
        hint = tab.frame.get_by_label("How to read this")
        assert len(hint.locator("p").inner_text().splitlines()) == 2
        assert "Upright is healthy" in hint.inner_text()
        tab.heatmap.click()
        expect(hint).to_be_hidden()
        tab.page.reload()
        tab.settle()
        expect(hint).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("run", ["sick", "healthy", "begun"])
def test_axe_finds_nothing_to_complain_about(browser: Browser, address: str, scheme: str, run: str) -> None:
    with opened(browser, alone(address, run=run), color_scheme=scheme) as tab:
        results = Axe().run(tab.page)
        assert results.violations_count == 0, results.generate_report()


def test_a_run_that_has_alerts_and_no_layers_is_not_called_unwatched(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="begun")) as tab:
        text = tab.frame.locator(".body").inner_text()
        assert "Sick:" in text
        assert "No layers of this run yet" in text
        assert "does not watch" not in text


def test_a_run_of_skipped_steps_is_red_and_has_its_lane(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="skipped")) as tab:
        for column in (0.05, 0.5, 0.95):
            assert set(tab.pixels(column, 0.5, size=16)) == NAN_COLOURS
        lanes = tab.frame.locator("canvas.lanes").bounding_box()
        assert lanes is not None
        assert lanes["height"] > 10


@pytest.mark.parametrize("width", [60, 92, 232, 600])
def test_numbers_of_the_legend_do_not_overlap_and_its_ends_are_named(
    browser: Browser, address: str, width: int
) -> None:
    script = """async (width) => {
        const { labelsOf } = await import("./static/legend.js");
        const context = document.createElement("canvas").getContext("2d");
        const ticks = Array.from({ length: 6 }, (_, i) => [i / 5, `1e-${10 - 2 * i}`]);
        return labelsOf(context, { x: 10, width }, { ticks }).map(({ x, width, label }) => [x, x + width, label]);
    }"""
    with opened(browser, alone(address, run="sick")) as tab:
        found = sorted(tab.evaluate(script, width))
    assert [found[0][2], found[-1][2]] == ["1e-10", "1e-0"]
    assert found[0][0] >= 10
    assert found[-1][1] <= 10 + width
    assert all(left[1] < right[0] for left, right in pairwise(found))
    assert len(found) == 6 or width < 600
