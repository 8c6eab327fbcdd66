"""The tab and the page over a record of every step: columns as wide as their steps, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from lightning_gradwatch.core.records import Alert
from tests.cli.command import here
from tests.tensorboard.browser import Tab, alone, opened, tensorboard
from tests.tensorboard.record import record
from tests.tensorboard.test_browser import MISSING_COLOURS, NONFINITE_COLOURS, distance, viridis

LAYERS = ("net.0", "net.2", "net.4")
SINGLE, WIDTH, BINS = 100, 100, 4
"""A column for each of the first 100 steps, then four bins of as many."""
END = SINGLE + WIDTH * BINS
SPIKE, NAN = 350, 450
WINDOW = range(250, 270)
SHORT = [10.0 ** -((7 * step) % 5 + 0.5) for step in range(28)]
"""Norms of a run of one epoch, each unlike its neighbours."""
VANISHING = Alert(
    kind="vanishing", level="alert", step=269, until_step=None, layer="net.0", value=7.0, threshold=2.0,
    message="Gradients vanish with depth.",
)  # fmt: skip


def norms() -> Any:
    """Layer by layer about three decades apart; that of the last layer falls, but for a spike and a NaN."""
    table = np.tile(np.array([2e-6, 1e-3, 1.0], np.float32), (END, 1))
    table[:, 2] = 10.0 ** (-np.arange(END) / END)
    table[SPIKE, 2], table[NAN, 2] = 8.0, math.nan
    return table


def losses() -> Any:
    """The total norm and the loss, which falls from 2 to 1."""
    return np.stack([np.ones(END), 2 - np.arange(END) / END], axis=1)


def write(directory: Path) -> None:
    table, numbers = norms(), losses()
    with record(directory / "wide", LAYERS, VANISHING) as run:
        run.write(0, table[:SINGLE], numbers[:SINGLE])
        run.write(SINGLE, table[SINGLE:], numbers[SINGLE:], width=WIDTH, part=1)
        run.write(WINDOW[0], table[WINDOW], numbers[WINDOW], around=True)
        run.write_plain("weight_norm", 0, [1.0, 2.0, 3.0])
        run.experiment.add_scalar("train_loss", 1.5, 49)
    with record(directory / "short", LAYERS) as run:
        run.write(0, [[2e-6, 1e-3, norm] for norm in SHORT], numbers[:28])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs = tmp_path_factory.mktemp("steps")
    write(logs)
    with tensorboard(logs) as found:
        yield found


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    with opened(browser, alone(address, run="wide")) as found:
        yield found


def at(step: float) -> float:
    """The middle of a step as a share of the axis."""
    return (step + 0.5) / END


def colour(norm: float) -> tuple[int, ...]:
    """On a scale from 1e-6 to 10."""
    return viridis((math.log10(norm) + 6) / 7)


def test_columns_are_as_wide_as_the_steps_they_stand_for(tab: Tab) -> None:
    assert tab.steps == (-0.5, END - 0.5)
    table = norms()[:, 2]
    for step in (5, 50, 95):
        assert distance(tab.pixels(at(step), 0.9)[0], colour(table[step])) <= 8
    for first, last in ((100, 199), (200, 249), (270, 299)):
        start = first // WIDTH * WIDTH
        for step in (first + 1, last - 1):
            assert distance(tab.pixels(at(step), 0.9)[0], colour(table[start])) <= 8, "the largest of its steps"
    for step in (301, 398):
        assert distance(tab.pixels(at(step), 0.9)[0], colour(8.0)) <= 8, "a spike of one step is never lost"
    assert set(tab.pixels(at(425), 0.9, size=16)) == NONFINITE_COLOURS
    for step in (251, 268):
        assert distance(tab.pixels(at(step), 0.9)[0], colour(table[step])) <= 8, "step by step around an alert"


def test_what_is_said_of_a_column_of_several_steps(tab: Tab) -> None:
    assert tab.hover(at(50), 0.9).startswith("net.4\nstep 50 · gradient norm 0.79")
    mean = 10.0 ** (-np.arange(100, 200).mean() / END)
    text = tab.hover(at(150), 0.9).splitlines()[1]
    assert text.startswith("steps 100 to 199 (100 steps) · gradient norm up to 0.6")
    assert float(text.rsplit(" ", 1)[1]) == pytest.approx(mean, rel=2e-2)
    assert tab.frame.locator(".profile-title").inner_text() == "Depth profile at steps 100 to 199"
    assert "steps 200 to 249 (50 steps)" in tab.hover(at(225), 0.9)
    assert "step 260 ·" in tab.hover(at(260), 0.9)
    assert "up to NaN" in tab.hover(at(450), 0.9)


def test_the_keyboard_goes_over_columns_of_any_width(tab: Tab) -> None:
    tab.press("ArrowDown", "ArrowDown", "ArrowLeft")
    expect(tab.frame.locator("#gw-cell")).to_contain_text(
        "net.4, steps 300 to 399 (100 steps): gradient norm up to 7.9"
    )
    expect(tab.frame.locator("#gw-cell")).to_contain_text(", mean 0.20")
    tab.press("ArrowLeft", "ArrowLeft")
    assert tab.spoken.startswith("net.4, step 269: gradient norm 0.2")


def test_the_numbers_of_a_layer_are_those_of_the_steps_of_the_column(tab: Tab) -> None:
    tab.press("ArrowDown", "ArrowDown", "ArrowLeft")
    numbers = tab.frame.locator(".numbers")
    expect(numbers).to_contain_text("Numbers at steps 300 to 399")
    rows = dict(row.locator("dt, dd").all_inner_texts() for row in numbers.locator(".number").all())
    low, high = map(float, rows["lowest to highest"].split(" to "))
    assert (low, high) == pytest.approx((10.0 ** (-399 / END), 8.0), rel=1.2e-2)
    assert low < float(rows["mean"]) < float(rows["Gradient norm"])


def test_a_sample_of_one_step_is_as_narrow_as_that_step(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="wide", quantity="weight_norm")) as tab:
        assert tab.steps == (-0.5, END - 0.5)
        assert set(tab.pixels(0.5, 0.5, size=16)) == MISSING_COLOURS


def test_zooming_shows_the_steps_of_a_part(tab: Tab) -> None:
    tab.drag(at(90), at(150))
    low, high = tab.steps
    assert (low, high) == pytest.approx((90, 150), abs=1.5)
    assert "steps 100 to 199 (100 steps)" in tab.hover(0.9, 0.9)
    assert "step 95 " in tab.hover((95 - low) / (high - low), 0.9)


def test_the_loss_is_that_of_every_step_and_the_users_own_can_be_chosen(tab: Tab) -> None:
    line = tab.frame.locator(".line").first
    choice = line.get_by_label("Scalar below the heatmap")
    names = choice.locator("option").all_inner_texts()
    assert names == ["total norm, every step", "loss, every step", "train_loss"]
    assert choice.input_value() == "gradwatch/steps/loss"
    assert "loss, every step 1.101 (1.002 to 1.2) at steps 400 to 499" in line.inner_text()
    choice.select_option("train_loss")
    tab.settle()
    expect(line).to_contain_text("train_loss 1.5 at step 49")


def test_a_run_of_one_epoch_has_a_column_for_each_of_its_steps(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="short")) as tab:
        assert tab.steps == (-0.5, 27.5)
        for step, norm in enumerate(SHORT):
            found = tab.pixels((step + 0.5) / len(SHORT), 0.9)[0]
            assert distance(found, viridis((math.log10(norm) + 6) / 6)) <= 8
        assert "step 13 " in tab.hover(13.5 / 28, 0.9)


def test_the_page_shows_the_same(browser: Browser, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "logs")
    path = tmp_path / "page.html"
    assert here(capsys, "report", tmp_path / "logs", "--html", path)[0] == 1
    assert path.stat().st_size < 1_000_000
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    tab = context.new_page()
    tab.goto(f"{path.as_uri()}#p.gradwatch.run=wide")
    tab.locator("main[aria-busy=false]").wait_for()
    box = tab.get_by_role("application").bounding_box()
    assert box
    tab.mouse.move(box["x"] + at(150) * box["width"], box["y"] + 0.9 * box["height"])
    text = tab.locator(".tooltip").inner_text()
    assert "steps 100 to 199 (100 steps) · gradient norm up to 0.6" in text
    assert ", mean 0.50" in text
    expect(tab.locator(".line").first).to_contain_text("loss, every step 1.701 (1.602 to 1.8) at steps 100 to 199")
    tab.get_by_role("application").focus()
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowLeft")
    expect(tab.locator(".numbers")).to_contain_text("lowest to highest")
    context.close()
