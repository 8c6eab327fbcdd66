"""The tab in a real Chromium, on a real TensorBoard, over runs whose every number is known."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from lightning_gradwatch.core.records import Alert
from tests.builders import attribution
from tests.prescriptions import prescription
from tests.tensorboard.browser import Log, Tab, alone, link, opened, tensorboard, write_run

LAYERS = ("encoder.0", "encoder.2", "decoder.0", "decoder.2", "head")
STEPS = tuple(range(10, 130, 10))
LOWEST, HIGHEST = -8, 0
"""The decades that the norms below span."""
NAN, ZERO, MISSING = (3, 1), (5, 2), (7, 3)
"""Sample and layer of the cells that are no number."""
NONFINITE_COLOURS = {(213, 18, 47), (255, 143, 156)}
ZERO_COLOURS = {(12, 14, 18), (170, 180, 192)}
MISSING_COLOURS = {(238, 241, 244), (211, 217, 224)}
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def norm(sample: int, layer: int) -> float:
    """The norm of a cell: falls by two decades per layer towards the input, and by 0.05 with every sample."""
    special = {NAN: math.nan, ZERO: 0.0, MISSING: -1.0}
    return special.get((sample, layer), 10.0 ** (-0.1 - 0.05 * sample - 1.75 * (len(LAYERS) - 1 - layer)))


TABLE = {step: [norm(sample, layer) for layer in range(len(LAYERS))] for sample, step in enumerate(STEPS)}
VANISHING = Alert(
    kind="vanishing", level="alert", step=30, until_step=None, layer="encoder.0", value=7.0, threshold=2.0,
    message=f"Gradients vanish with depth (step 30): {EVIL} they shrink. Nine sigmoids. Try: ReLU; {EVIL}.",
    cause="saturating_activation", evidence="nine sigmoids", remedies=("ReLU", EVIL), summary=f"{EVIL} they shrink.",
    prescription=prescription(remedy=EVIL, why=EVIL, code=f"a = 1\n{EVIL}"), attribution=attribution(EVIL, EVIL),
)  # fmt: skip
OVER = Alert(
    kind="exploding", level="notice", step=50, until_step=70, layer="head", value=3.0, threshold=3.0,
    message="Gradients grow.",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs = tmp_path_factory.mktemp("logs")
    write_run(logs / "sick", LAYERS, TABLE, VANISHING, OVER)
    write_run(logs / "healthy", LAYERS, {step: [0.1 + 0.01 * step] * len(LAYERS) for step in STEPS})
    log = Log(logs / "gan", (), "Adam")
    for step in STEPS:
        log.write(step, [0.5, 0.25], "Adam", ("generator.0", "generator.2"))
        log.write(step, [0.125, 0.0625, 1.0], "SGD", ("critic.0", "critic.2", "critic.4"))
    log.close()
    unwatched = Log(logs / "unwatched", LAYERS)
    unwatched.summary.add_scalar("loss", 1.0, 0)
    unwatched.summary.close()
    with tensorboard(logs) as found:
        yield found


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    with opened(browser, alone(address)) as found:
        yield found


def place(sample: int, layer: int) -> tuple[float, float]:
    """The middle of a cell, as shares of width and height of the heatmap: samples are equally far apart."""
    return (sample + 0.5) / len(STEPS), (layer + 0.5) / len(LAYERS)


def viridis(position: float) -> tuple[int, ...]:
    """The colour at a position, from Matplotlib's own table."""
    return tuple(round(255 * channel) for channel in mpl.colormaps["viridis"](position)[:3])


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_the_tab_opens_in_tensorboard_on_the_run_that_needs_attention(browser: Browser, address: str) -> None:
    with opened(browser, link(address)) as tab:
        check_strip(tab)


def check_strip(tab: Tab) -> None:
    cards = tab.frame.get_by_role("group", name="Runs, the sickest first").get_by_role("button")
    expect(cards).to_have_count(4)
    texts = cards.all_inner_texts()
    assert texts[0].startswith("sick")
    assert "Sick." in texts[0]
    assert texts[-1].startswith("unwatched")
    assert cards.first.get_attribute("aria-pressed") == "true"


def test_a_run_that_is_not_watched_is_not_called_healthy(tab: Tab) -> None:
    card = tab.frame.get_by_role("button", name="unwatched")
    assert "Not watched." in card.inner_text()
    assert "ealthy" not in card.inner_text()
    card.click()
    tab.settle()
    expect(tab.frame.get_by_text("Trainer(callbacks=[GradWatch()])")).to_be_visible()


def test_cells_have_the_colour_of_their_value(tab: Tab) -> None:
    for sample, layer in [(0, 4), (0, 0), (6, 2), (11, 1), (11, 4)]:
        expected = viridis((math.log10(norm(sample, layer)) - LOWEST) / (HIGHEST - LOWEST))
        assert distance(tab.pixels(*place(sample, layer))[0], expected) <= 8


@pytest.mark.parametrize(
    ("cell", "colours"),
    [(NAN, NONFINITE_COLOURS), (ZERO, ZERO_COLOURS), (MISSING, MISSING_COLOURS)],
    ids=["nan", "zero", "no data"],
)
def test_what_is_no_number_has_colours_and_a_pattern_of_its_own(
    tab: Tab, cell: tuple[int, int], colours: set[tuple[int, int, int]]
) -> None:
    assert set(tab.pixels(*place(*cell), size=16)) == colours


def test_hover_shows_the_value_of_the_nearest_sample(tab: Tab) -> None:
    assert tab.hover(*place(6, 2)) == f"decoder.0\nstep 70 · gradient norm {norm(6, 2):.3e}".replace("e-0", "e-")
    assert tab.hover(*place(*NAN)) == "encoder.2\nstep 40 · gradient norm NaN"
    assert tab.hover(*place(*ZERO)) == "decoder.0\nstep 60 · gradient norm exactly 0"
    assert tab.hover(*place(*MISSING)) == "decoder.2\nstep 80 · gradient norm no gradient of its own"
    assert "Depth profile at step 80" in tab.frame.locator(".profile-title").inner_text()


def test_the_banner_says_what_since_when_why_and_what_to_try(tab: Tab) -> None:
    banner = tab.frame.locator(".banner")
    text = banner.inner_text()
    for part in ("Gradients vanish with depth", "since step 30 · encoder.0", "Nine sigmoids", "ReLU", "and 1 more"):
        assert part in text
    banner.get_by_role("button", name="Show where").click()
    tab.settle()
    assert tab.link["layer"] == "encoder.0"
    assert tab.link["step"] == "30"


def test_a_waterfall_shows_where_the_gradient_is_lost(tab: Tab) -> None:
    figure = tab.frame.locator(".banner .lost")
    assert figure.locator("figcaption").inner_text() == (
        f"Where 3.0 orders of magnitude are lost between the loss and {EVIL}"
    )
    assert figure.locator("li").all_inner_texts() == [
        f"{EVIL}: 2.5 lost", "2 layers' weights: 1.0 lost", "1 softmax: 0.0 lost", "other operations: 0.5 gained",
    ]  # fmt: skip
    bars = figure.locator("rect")
    titles = [bar.text_content() for bar in bars.all()]
    assert titles == [f"behind {layer}: {what}" for layer, whats in {
        "net.4": ("sigmoid, 1.5 lost", "weights, 0.6 lost", "others, 0.3 gained"),
        "net.2": ("sigmoid, 1.0 lost", "weights, 0.4 lost", "others, 0.2 gained"),
    }.items() for what in whats]  # fmt: skip
    # each hangs where the one before has ended, but for the rise of what is gained
    boxes = [bar.bounding_box() for bar in bars.all()]
    assert all(box is not None for box in boxes)
    first, second, gained, third = (box for box in boxes[:4] if box is not None)
    assert second["y"] == pytest.approx(first["y"] + first["height"], abs=0.5)
    assert gained["y"] + gained["height"] == pytest.approx(second["y"] + second["height"], abs=0.5)
    assert third["y"] == pytest.approx(gained["y"], abs=0.5)
    assert third["x"] > first["x"] + first["width"]
    assert tab.evaluate("window.hacked") is None


def test_what_was_tried_is_a_table_that_opens(tab: Tab) -> None:
    tried = tab.frame.locator(".banner .tried")
    assert not tried.locator("table").is_visible()
    tried.locator("summary").first.click()
    rows = [row.locator("th, td").all_inner_texts() for row in tried.locator("tr").all()]
    assert rows == [
        ["remedy", "effect", "orders of magnitude lost", "loss", "parameters", "time"],
        ["as it is", "", "11.1", "2.3", "", ""],
        [EVIL, "helps", "0.4", "0.41", "0 %", ""],
        ["SiLU", "worse", "", "diverged", "+3 %", ""],
    ]
    assert tried.locator("summary").first.inner_text() == "2 remedies tried on a copy of the model, 1 of them helped"
    assert "20 steps each" in tried.inner_text()
    assert f"skips ({EVIL})" in tried.inner_text()
    tried.locator("details summary").click()
    assert tried.locator("pre").inner_text() == f"a = 1\n{EVIL}"
    assert tab.evaluate("window.hacked") is None
    assert tab.evaluate("document.querySelectorAll('main script, main img').length") == 0
    assert Axe().run(tab.page).violations_count == 0


def test_text_from_a_log_is_never_run_as_html(tab: Tab) -> None:
    assert EVIL in tab.frame.locator(".banner .message").inner_text()
    assert tab.evaluate("window.hacked") is None
    assert tab.evaluate("document.querySelectorAll('main script, main img').length") == 0


def test_the_keyboard_moves_the_cursor_and_says_where_it_is(tab: Tab) -> None:
    assert tab.spoken.startswith("encoder.0, step 120: gradient norm")
    tab.press("ArrowDown", "ArrowDown", "ArrowLeft")
    assert tab.spoken == f"decoder.0, step 110: gradient norm {norm(10, 2):.3e}.".replace("e-0", "e-")
    tab.press("Home")
    assert ", step 10:" in tab.spoken
    tab.press("End", "ArrowUp", "ArrowUp", "ArrowUp")
    assert tab.spoken.startswith("encoder.0, step 120:")
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_keys_zoom_fold_and_help(tab: Tab) -> None:
    assert tab.steps == (5.0, 125.0)
    tab.press("Home", "+")
    assert tab.steps[1] - tab.steps[0] == pytest.approx(60)
    tab.press("Escape")
    assert tab.steps == (5.0, 125.0)
    tab.press("f")
    assert tab.link["folded"] == "encoder"
    tab.press("?")
    expect(tab.frame.get_by_role("dialog")).to_be_visible()
    tab.page.keyboard.press("Escape")
    expect(tab.frame.get_by_role("dialog")).to_be_hidden()


def test_q_goes_through_the_quantities(tab: Tab) -> None:
    quantities = tab.frame.get_by_label("Quantity").locator("option").all_inner_texts()
    assert quantities[0] == "Gradient norm"
    for _ in quantities:
        tab.press("q")
    assert tab.frame.get_by_label("Quantity").input_value() == "grad_norm"


def test_dragging_zooms_and_a_double_click_shows_all_steps(tab: Tab) -> None:
    tab.drag(0.25, 0.5)
    assert tab.steps == pytest.approx((35, 65), abs=0.5)
    value = viridis((math.log10(norm(4, 4)) - LOWEST) / (HIGHEST - LOWEST))
    assert distance(tab.pixels(0.5, 0.9)[0], value) <= 8, "zooming must not change the colours"
    tab.heatmap.dblclick()
    tab.settle()
    assert tab.steps == (5.0, 125.0)


def test_ctrl_and_the_wheel_zoom_around_the_pointer(tab: Tab) -> None:
    tab.hover(0.5, 0.5)
    tab.page.mouse.wheel(0, -100)
    tab.settle()
    assert tab.steps == (5.0, 125.0), "the wheel alone scrolls"
    tab.page.keyboard.down("Control")
    tab.page.mouse.wheel(0, -100)
    tab.page.keyboard.up("Control")
    tab.settle()
    low, high = tab.steps
    assert high - low == pytest.approx(96, abs=0.5)
    assert (low + high) / 2 == pytest.approx(65, abs=1)


def test_a_deep_link_restores_the_view(browser: Browser, address: str) -> None:
    state = {
        "run": "sick",
        "quantity": "grad_norm",
        "layer": "decoder.2",
        "step": 60,
        "zoom": "35,95",
        "folded": "encoder",
    }
    with opened(browser, link(address, **state)) as tab:
        assert tab.steps == (35.0, 95.0)
        assert tab.spoken.startswith("decoder.2, step 60:")
        expect(tab.frame.get_by_role("button", name="Unfold encoder")).to_be_visible()
        tab.press("ArrowRight")
        again = tab.page.url
    with opened(browser, again) as tab:
        assert tab.spoken.startswith("decoder.2, step 70:")
        assert tab.steps == (35.0, 95.0)


def test_a_plain_link_to_a_run_works_too(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/#gradwatch&run=healthy") as tab:
        assert "healthy" in (tab.frame.locator(".run[aria-pressed=true]").inner_text())


def test_a_folded_group_shows_its_largest_value_and_its_nans(tab: Tab) -> None:
    tab.frame.get_by_role("button", name="Fold groups").click()
    tab.settle()
    text = tab.hover((6 + 0.5) / len(STEPS), 0.16)
    assert text.splitlines() == [
        "encoder (2 layers)",
        f"step 70 · gradient norm {norm(6, 1):.3e}".replace("e-0", "e-"),
        "largest of 2 layers",
    ]
    assert "NaN" in tab.hover((NAN[0] + 0.5) / len(STEPS), 0.16)
    assert set(tab.pixels((NAN[0] + 0.5) / len(STEPS), 0.16, size=16)) == NONFINITE_COLOURS
    assert "encoder,decoder" in tab.link["folded"].replace("%2C", ",")
    tab.frame.get_by_role("button", name="Unfold decoder").click()
    tab.settle()
    assert tab.link["folded"] == "encoder"


def test_the_csv_holds_what_is_seen_in_full_precision(tab: Tab) -> None:
    tab.drag(0.25, 0.5)
    with tab.page.expect_download() as download:
        tab.frame.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename == "gradwatch-sick-grad_norm.csv"
    rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
    assert rows[0] == ["step", "last_step", *LAYERS]
    seen = {int(row[0]): row[2:] for row in rows[1:]}
    assert set(seen) == {40, 50, 60} | ({30} & set(seen)) | ({70} & set(seen))
    assert seen[40][1] == "NaN"
    assert seen[60][2] == "0"
    assert np.float32(seen[50][0]) == np.float32(norm(4, 0))


def test_a_cell_without_data_is_empty_in_the_csv(tab: Tab) -> None:
    with tab.page.expect_download() as download:
        tab.frame.get_by_role("button", name="CSV").click()
    rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
    assert len(rows) == 1 + len(STEPS)
    assert rows[1 + MISSING[0]][2 + MISSING[1]] == ""


def test_the_picture_holds_the_heatmap_and_more(tab: Tab) -> None:
    with tab.page.expect_download() as download:
        tab.frame.get_by_role("button", name="PNG").click()
    assert download.value.suggested_filename == "gradwatch-sick-grad_norm.png"
    picture = (mpl.image.imread(download.value.path(), format="png")[..., :3] * 255).round().astype(int)
    assert picture.shape[0] > 700
    assert picture.shape[1] > 2000
    for cell in [(0, 4), (6, 2)]:
        colour = viridis((math.log10(norm(*cell)) - LOWEST) / (HIGHEST - LOWEST))
        assert (np.abs(picture - colour).max(axis=-1) <= 8).sum() > 2000, cell
    ink = (np.abs(picture - (27, 36, 48)).max(axis=-1) <= 10)[:80]
    assert ink.sum() > 200, "the title is missing"


def test_comparing_shows_the_ratio_of_two_runs(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sick", compare="healthy")) as tab:
        here, there = norm(6, 2), 0.1 + 0.01 * STEPS[6]
        text = tab.hover(*place(6, 2))
        assert f"({math.log10(here / there):.3g} orders of magnitude)" in text
        assert f"sick: {here:.3e}".replace("e-0", "e-") in text
        assert "healthy: 0.8" in text
        red, _, blue = tab.pixels(*place(6, 2))[0]
        assert blue > red, "less is blue"
        assert tab.frame.get_by_label("Compare with").input_value() == "healthy"
        assert set(tab.pixels(*place(*NAN), size=16)) == NONFINITE_COLOURS
        tab.frame.get_by_label("Compare with").select_option("")
        tab.settle()
        assert "compare" not in tab.link


def test_only_runs_with_the_same_layers_can_be_compared(tab: Tab) -> None:
    assert tab.frame.get_by_label("Compare with").locator("option").all_inner_texts() == ["nothing", "healthy"]
    tab.frame.get_by_role("button", name="gan").click()
    tab.settle()
    assert tab.frame.get_by_label("Compare with").is_disabled()


def test_every_optimizer_has_its_own_layers(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="gan")) as tab:
        optimizer = tab.frame.get_by_label("Optimizer")
        assert optimizer.locator("option").all_inner_texts() == ["Adam", "SGD"]
        assert tab.hover(0.5, 0.25).startswith("generator.0\n")
        optimizer.select_option("SGD")
        tab.settle()
        assert tab.hover(0.5, 0.9).startswith("critic.4\n")
        assert tab.link["optimizer"] == "SGD"


def test_lanes_tell_of_alerts_and_lead_to_them(tab: Tab) -> None:
    lanes = tab.frame.locator("canvas.lanes")
    box, gutter = lanes.bounding_box(), tab.heatmap.bounding_box()
    assert box
    assert gutter
    x = gutter["x"] + gutter["width"] * (60 - 5) / 120
    tab.page.mouse.move(x, box["y"] + 4 + 18 + 9)
    assert "steps 50 to 70" in tab.frame.locator(".tooltip").inner_text()
    tab.page.mouse.click(x, box["y"] + 4 + 18 + 9)
    tab.settle()
    assert tab.link["layer"] == "head"
    expect(tab.frame.locator(".alerts li")).to_have_count(1)


def test_the_loss_stands_under_the_heatmap(tab: Tab) -> None:
    assert tab.frame.get_by_label("Scalar below the heatmap").input_value() == "train_loss"
    assert f"train_loss {1 / 121:.4g}" in tab.frame.locator(".line-side").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("run", ["sick", "unwatched"])
def test_axe_finds_nothing_to_complain_about(browser: Browser, address: str, scheme: str, run: str) -> None:
    with opened(browser, alone(address, run=run), color_scheme=scheme) as tab:
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme
        results = Axe().run(tab.page)
        assert results.violations_count == 0, results.generate_report()


def test_the_tab_follows_the_theme_of_tensorboard(browser: Browser, address: str) -> None:
    with opened(browser, link(address), color_scheme="light") as tab:
        tab.page.evaluate("document.body.classList.add('dark-mode')")
        tab.frame.locator("main[aria-busy=false]").wait_for()
        assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
        expected = viridis((math.log10(norm(0, 4)) - LOWEST) / (HIGHEST - LOWEST))
        assert distance(tab.pixels(*place(0, 4))[0], expected) <= 8
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(35, 38, 42)"


@pytest.mark.parametrize("width", [1000, 1900])
def test_narrow_and_wide_windows_show_everything(browser: Browser, address: str, width: int) -> None:
    with opened(browser, alone(address)) as tab:
        tab.resize(width, 900)
        root = "document.documentElement"
        assert tab.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
        box = tab.heatmap.bounding_box()
        assert box
        assert box["width"] > 0.5 * width
        expected = viridis((math.log10(norm(0, 4)) - LOWEST) / (HIGHEST - LOWEST))
        assert distance(tab.pixels(*place(0, 4))[0], expected) <= 8
