"""Other runs beside the one that is shown: overlays and comparison. In a real Chromium on a real TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.tensorboard.browser import Tab, alone, opened, tensorboard, write_run

LAYERS = tuple(f"net.{i}" for i in range(0, 20, 2))
FOREIGN = tuple(f"conv.{i}" for i in range(10))
STEPS = range(1, 9)
NUM_ALIKE = 12


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Twelve runs of one network, one of another; of one run the gradient falls far below the axis of the others."""
    logs = tmp_path_factory.mktemp("logs")
    for i in range(NUM_ALIKE - 1):
        write_run(logs / f"calm{i:02d}", LAYERS, {step: [0.1 + 0.01 * i] * 10 for step in STEPS})
    write_run(logs / "starving", LAYERS, {step: [10.0 ** (2 * layer - 20) for layer in range(10)] for step in STEPS})
    write_run(logs / "foreign", FOREIGN, {step: [0.5] * 10 for step in STEPS})
    write_run(logs / "alone", ("head",), {step: [0.5] for step in STEPS})
    with tensorboard(logs) as found:
        yield found


def chips(tab: Tab) -> list[str]:
    return tab.frame.locator(".overlays .chip").all_inner_texts()


def test_only_runs_with_the_same_layers_stand_beside_the_profile(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="calm00")) as tab:
        assert len(chips(tab)) == 5
        assert not any("foreign" in chip for chip in chips(tab))
        assert tab.frame.locator(".axis-title").inner_text() == "Gradient norm, logarithmic"
    with opened(browser, alone(address, run="foreign")) as tab:
        assert chips(tab) == []


def test_every_run_with_the_same_layers_can_be_compared(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="calm00")) as tab:
        options = tab.frame.get_by_label("Compare with").locator("option").all_inner_texts()
        assert len(options) == NUM_ALIKE
        assert "starving" in options
        assert "foreign" not in options


def test_what_leaves_the_axis_is_marked_and_not_drawn_upright(browser: Browser, address: str) -> None:
    """The line of the starving run crosses the axis at its own slope; above that, arrows point out of it."""
    script = """(colour) => {
        const canvas = document.querySelector("canvas.profile");
        const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const isNear = (i) => Math.hypot(data[i] - colour[0], data[i + 1] - colour[1], data[i + 2] - colour[2]) < 60;
        const found = [];
        for (let y = 0; y < height; y += 1) {
            for (let x = 0; x < width; x += 1) {
                if (data[4 * (y * width + x) + 3] > 200 && isNear(4 * (y * width + x))) found.push([x, y / height]);
            }
        }
        return found;
    }"""
    with opened(browser, alone(address, run="calm00")) as tab:
        names = chips(tab)
        place = next(i for i, name in enumerate(names) if name.startswith("starving"))
        assert names[place] == "starving, leaves the axis"
        style = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name)"
        colour = tab.evaluate(style, f"--overlay-{place}")
        rgb = [int(colour.strip()[i : i + 2], 16) for i in (1, 3, 5)]
        found = tab.evaluate(script, rgb)
        upper = {x for x, y in found if y < 0.4}
        assert upper, "the arrows"
        assert max(upper) < 12, "nothing of it is on the axis where its values are not"
        assert max(x for x, y in found if y > 0.8) > 100


def test_the_numbers_of_a_comparison_say_what_they_are(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="calm00", compare="calm10")) as tab:
        with tab.page.expect_download() as download:
            tab.frame.get_by_role("button", name="CSV").click()
        assert download.value.suggested_filename == "gradwatch-calm00-vs-calm10-log10_ratio-grad_norm.csv"
        rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
        assert rows[0][:3] == ["step", "last_step", "net.0 log10(calm00 / calm10)"]
        assert float(rows[1][2]) == pytest.approx(math.log10(0.1 / 0.2), rel=1e-5)
        assert tab.frame.locator(".axis-title").inner_text() == "Gradient norm, ratio, logarithmic"


def test_a_comparison_shows_both_losses(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="calm00", compare="calm10")) as tab:
        texts = tab.frame.locator(".line-side").all_inner_texts()
        assert texts == [f"train_loss {1 / 9:.4g} at step 8", f"train_loss, calm10 {1 / 9:.4g} at step 8"]
        tab.frame.get_by_label("Compare with").select_option("")
        tab.settle()
        assert len(tab.frame.locator(".line-side").all_inner_texts()) == 1
