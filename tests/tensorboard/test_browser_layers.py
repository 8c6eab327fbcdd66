"""Many layers in a real Chromium on a real TensorBoard: rows that several share, their names, and what opens them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Response, expect

from lightning_gradwatch.core.records import Alert
from tests.tensorboard.board import read_frame
from tests.tensorboard.browser import Tab, alone, chromium, opened, tensorboard
from tests.tensorboard.record import record

BLOCKS, STEPS = 32, 60
ROLES = ("norm1", "attn.q_proj", "attn.k_proj", "attn.out_proj", "norm2", "mlp.up_proj", "mlp.down_proj")
LAYERS = ("embed", *(f"model.layers.{i}.{role}" for i in range(BLOCKS) for role in ROLES), "norm", "head")
SICK = "model.layers.5.attn.q_proj"
QUERIES = [i for i, name in enumerate(LAYERS) if name.endswith("q_proj")]
ALERT = Alert(
    kind="dead", level="alert", step=30, until_step=None, layer=SICK, value=1.0, threshold=1.0, message="It is dead.",
    summary="It is dead.",
)  # fmt: skip
FORGETS = Alert(
    kind="vanishing_through_time", level="alert", step=9, until_step=None, layer="rnn", value=5.0, threshold=2.0,
    message="It forgets.", summary="It forgets.",
)  # fmt: skip


def norms(is_sick: bool) -> np.ndarray:
    """Norm layers have a hundredth of the others' gradient; one layer is NaN at step 40."""
    table = np.full((STEPS, len(LAYERS)), 0.5, np.float32) * np.linspace(1, 2, STEPS, dtype=np.float32)[:, None]
    table[:, [i for i, name in enumerate(LAYERS) if "norm" in name]] *= 0.01
    table[:, QUERIES[20]] *= 1.25
    if is_sick:
        table[40, LAYERS.index("model.layers.9.mlp.up_proj")] = math.nan
    return table


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs = tmp_path_factory.mktemp("logs")
    for name, alerts in (("sick", (ALERT,)), ("calm", ())):
        write(logs / name, norms(is_sick=bool(alerts)), *alerts)
    with record(logs / "forgets", ("rnn", "head"), FORGETS) as log:
        log.write(0, np.ones((20, 2)))
        log.write_plain("memory_horizon", 10, [5.0, -1.0])
    write_sized(logs / "sized", 1e-3, **SIZES)
    write_sized(logs / "sized-twin", 1e-5, **SIZES)
    write_sized(logs / "sized-old", 1e-3)
    write_sized(logs / "sized-sick", 1e-3, replace(ALERT, layer="blocks.2.norm"), **SIZES)
    with tensorboard(logs) as found:
        yield found


SMALL = ("embed", *(f"blocks.{i}.{part}" for i in range(4) for part in ("norm", "linear")), "head")
SIZES = {"elements": [10_000, *[16, 10_000] * 4, 100], "vectors": range(1, 9, 2)}


def write_sized(directory: Path, gradient: float, *alerts: Alert, **sizes: Any) -> None:
    """Each element of a layer has the same gradient: the norms of large layers are larger."""
    elements = np.sqrt(np.array(SIZES["elements"], float))
    with record(directory, SMALL, *alerts, **sizes) as log:
        log.write(0, gradient * elements[None].repeat(STEPS, 0))


def write(directory: Path, table: np.ndarray, *alerts: Alert) -> None:
    with record(directory, LAYERS, *alerts) as log:
        log.write(0, table)


@pytest.fixture
def calm(browser: Browser, address: str) -> Iterator[Tab]:
    with opened(browser, alone(address, run="calm")) as found:
        yield found


def names(tab: Tab) -> list[str]:
    """The full names of the rows, as one points at their labels from top to bottom."""
    labels = tab.frame.locator(".gutter canvas.labels")
    labels.scroll_into_view_if_needed()
    box = labels.bounding_box()
    assert box
    found: list[str] = []
    for y in range(3, int(box["height"]), 5):
        tab.page.mouse.move(box["x"] + 20, box["y"] + y)
        name = tab.frame.locator(".tooltip strong").inner_text()
        if name not in found[-1:]:
            found.append(name)
    return found


def test_layers_that_are_alike_share_a_row(calm: Tab) -> None:
    shared = [f"model.layers.0-31.{role} ({BLOCKS} layers)" for role in ROLES]
    assert names(calm) == ["embed", *shared, "norm", "head"]
    calm.page.mouse.move(calm_row(calm, 2)[0], calm_row(calm, 2)[1])
    lines = calm.frame.locator(".tooltip").inner_text().splitlines()
    assert lines == [shared[1], "model.layers.0.attn.q_proj", "…", "model.layers.31.attn.q_proj"]


def calm_row(tab: Tab, row: int, rows: int = 10) -> tuple[float, float]:
    """Where the label of a row is."""
    box = tab.frame.locator(".gutter canvas.labels").bounding_box()
    assert box
    return box["x"] + 20, box["y"] + (row + 0.5) / rows * box["height"]


def test_a_shared_row_tells_the_largest_of_its_layers(calm: Tab) -> None:
    name, value, note = calm.hover(0.999, 2.5 / 10).splitlines()
    assert (name, note) == (f"model.layers.0-31.attn.q_proj ({BLOCKS} layers)", f"largest of {BLOCKS} layers")
    assert float(value.removeprefix(f"step {STEPS - 1} · gradient norm ")) == pytest.approx(1.25, rel=0.002)


def test_the_server_sends_the_rows_that_are_shown(calm: Tab) -> None:
    frames: list[Response] = []
    calm.page.on("response", lambda answer: frames.append(answer) if "/heatmap?" in answer.url else None)
    calm.page.reload()
    calm.settle()
    shapes = [read_frame(answer.body())[0]["shape"] for answer in frames]
    assert [STEPS, 10] in shapes
    assert max(rows for _, rows in shapes) < len(LAYERS)


def test_what_is_sick_is_never_folded_away(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sick")) as tab:
        found = names(tab)
        assert SICK in found
        assert "model.layers.9.mlp.up_proj" in found
        assert len(found) < 20
        assert tab.spoken.startswith(f"{SICK}, ")
        assert Axe().run(tab.page).violations_count == 0


def test_a_shared_row_opens_and_closes(calm: Tab) -> None:
    path = "model.layers.0-31.attn.q_proj"
    before = calm.pixels(0.5, 0.5 / 10)
    calm.frame.get_by_role("button", name=f"Unfold {path}").click()
    calm.settle()
    assert unquote(unquote(calm.link["opened"])) == path
    assert [name for name in names(calm) if "q_proj" in name] == [LAYERS[i] for i in QUERIES]
    assert calm.pixels(0.5, 0.5 / (9 + BLOCKS)) == before, "colours stay"
    with opened(calm.page.context.browser, calm.page.url) as again:  # type: ignore[arg-type]
        assert names(again) == names(calm)
    calm.frame.get_by_role("button", name=f"Fold {path}").click()
    calm.settle()
    assert "opened" not in calm.link


def test_the_keyboard_opens_the_row_of_the_layer_and_closes_it(calm: Tab) -> None:
    calm.press("ArrowDown", "ArrowDown")
    assert calm.spoken.startswith(f"model.layers.0-31.attn.q_proj ({BLOCKS} layers), ")
    calm.press("f")
    assert calm.spoken.startswith("model.layers.0.attn.q_proj, ")
    calm.press("ArrowDown")
    assert calm.spoken.startswith("model.layers.1.attn.q_proj, ")
    calm.press("f")
    assert calm.spoken.startswith(f"model.layers.0-31.attn.q_proj ({BLOCKS} layers), ")


def test_everything_opens_and_folds_at_a_click(calm: Tab) -> None:
    calm.frame.get_by_role("button", name="Unfold groups").click()
    calm.settle()
    assert calm.frame.locator("canvas.heat").bounding_box()["height"] >= len(LAYERS)  # type: ignore[index]
    assert calm.hover(0.5, 2.5 / len(LAYERS)).startswith("model.layers.0.attn.q_proj\n")
    calm.frame.get_by_role("button", name="Fold groups").click()
    calm.settle()
    assert len(names(calm)) == 10
    expect(calm.frame.get_by_role("button", name="Unfold groups")).to_be_visible()


def test_long_names_keep_their_numbers_and_both_ends(calm: Tab) -> None:
    script = """async ([text, width]) => {
        const { font, shorten } = await import("./static/labels.js");
        const context = document.createElement("canvas").getContext("2d");
        context.font = font();
        return shorten(context, text, width);
    }"""
    name = "model.decoder.layers.17.cross_attention.out_proj"
    found = [calm.evaluate(script, [name, width]) for width in (400, 180, 130, 90, 60)]
    assert found[0] == name
    assert found[1] in ("…layers.17.cross_attention.out_proj", "…17.cross_attention.out_proj")
    assert found[2] in ("…17.cross_attention.out_proj", "…17…out_proj")
    assert all("17" in text and text.endswith(("proj", "oj")) for text in found[:4])
    assert calm.evaluate(script, ["transformer_encoder_backbone_before_residual", 120]).startswith("transf")


def test_the_view_opens_on_the_quantity_that_the_alert_speaks_of(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="forgets")) as tab:
        assert tab.frame.get_by_label("Quantity").input_value() == "memory_horizon"
        tab.frame.get_by_label("Quantity").select_option("grad_norm")
        tab.settle()
        assert tab.frame.get_by_label("Quantity").input_value() == "grad_norm"
        assert tab.link["quantity"] == "grad_norm"


def test_a_layer_is_found_by_words_of_its_name(calm: Tab) -> None:
    calm.press("/")
    find = calm.frame.get_by_label("Find a layer")
    expect(find).to_be_focused()
    find.fill("ATTN layers.17")
    status = calm.frame.locator(".toolbar [role=status]")
    expect(status).to_have_text("1 of 3")
    calm.settle()
    assert calm.link["layer"] == "model.layers.17.attn.q_proj"
    assert calm.spoken.startswith("model.layers.17.attn.q_proj, "), "it has a row of its own"
    find.press("Enter")
    expect(status).to_have_text("2 of 3")
    find.press("Shift+Enter")
    expect(status).to_have_text("1 of 3")
    find.press("Shift+Enter")
    expect(status).to_have_text("3 of 3")
    calm.settle()
    assert calm.spoken.startswith("model.layers.17.attn.out_proj, ")
    assert "model.layers.17.attn.q_proj" not in names(calm), "what the search has opened closes with the next find"
    find.fill("nowhere")
    expect(status).to_have_text("no such layer")
    assert Axe().run(calm.page).violations_count == 0


def test_the_sickest_layer_is_a_click_or_a_key_away(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sick", layer="head")) as tab:
        tab.frame.get_by_role("button", name="Sickest layer").click()
        tab.settle()
        assert (tab.link["layer"], tab.link["step"]) == (SICK, "30")
        tab.press("End", "ArrowDown", "s")
        assert (tab.link["layer"], tab.link["step"]) == (SICK, "30")
    with opened(browser, alone(address, run="calm")) as tab:
        assert tab.frame.get_by_role("button", name="Sickest layer").is_hidden()


def test_layers_without_such_a_number_say_why(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="forgets")) as tab:
        surface = tab.pixels(0.1, 0.75)
        assert surface == tab.pixels(0.9, 0.75) == tab.pixels(0.105, 0.752), "no hatching"
        box = {"x": 0.45, "y": 0.7, "width": 0.1, "height": 0.1}
        script = """(box) => {
            const { width, height } = document.querySelector("canvas.heat");
            const area = [box.x * width, box.y * height, box.width * width, box.height * height].map(Math.round);
            const { data } = document.querySelector("canvas.heat").getContext("2d").getImageData(...area);
            return new Set(new Uint32Array(data.buffer)).size;
        }"""
        assert tab.evaluate(script, box) > 5, "words"
        assert "not recurrent" in tab.hover(0.5, 0.75)


def test_the_profile_of_many_rows_is_a_line_in_a_band(calm: Tab) -> None:
    expect(calm.frame.locator(".overlays")).to_contain_text("bar: down to its smallest")
    calm.frame.get_by_role("button", name="Unfold groups").click()
    calm.settle()
    calm.resize(1400, 700)
    script = """async () => {
        const { thinned } = await import("./static/spread.js");
        const rows = Array.from({ length: 1000 }, (_, i) => ({ top: i / 2, height: 0.5 }));
        const cells = Float32Array.from(rows, (_, i) => (i === 3 ? -3 : i === 4 ? -1 : i === 5 ? -2 : (i % 8) / 10));
        return thinned(rows, cells).map(({ top, height, low, middle, high }) => [top, height, low, middle, high]);
    }"""
    bands = calm.evaluate(script)
    assert len(bands) == 125
    assert bands[0] == pytest.approx([0, 4, 0, 0.2, 0.7], abs=1e-6), (
        "NaN and missing have no place, zero is at the edge"
    )
    assert bands[1] == pytest.approx([4, 4, 0, 0.4, 0.7], abs=1e-6)


def contrast(tab: Tab, rows: int) -> int:
    """How far the colours of the rows in the middle of the run differ in red, green or blue."""
    found = np.array([tab.pixels(0.5, (row + 0.5) / rows)[0] for row in range(rows)])
    return int(np.ptp(found, axis=0).max())


def test_a_healthy_network_is_of_one_colour_whatever_the_size_of_its_layers(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sized")) as tab:
        assert contrast(tab, len(SMALL)) < 8
        assert tab.frame.locator(".axis-title").inner_text() == "Gradient norm per element (RMS), logarithmic"
        name, value = tab.hover(0.999, 1.5 / len(SMALL)).splitlines()
        what, number = value.rsplit(" ", 1)
        assert (name, what) == ("blocks.0.norm", f"step {STEPS - 1} · gradient norm per element (RMS)")
        assert float(number) == pytest.approx(1e-3, rel=2e-3)
        assert "norm" not in tab.link
        assert Axe().run(tab.page).violations_count == 0
        tab.frame.get_by_label("Norm", exact=True).select_option("of the whole layer")
        tab.settle()
        assert tab.link["norm"] == "total"
        assert contrast(tab, len(SMALL)) > 60, "stripes"
        assert tab.frame.locator(".axis-title").inner_text() == "Gradient norm, logarithmic"
        with opened(browser, tab.page.url) as again:
            assert contrast(again, len(SMALL)) > 60
        tab.frame.get_by_label("Quantity").press("Home")
        numbers = tab.frame.locator(".numbers").inner_text()
        assert "Gradient norm per element (RMS)" in numbers, "whatever is shown"


def test_files_say_how_norms_are_shown(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sized")) as tab:
        with tab.page.expect_download() as download:
            tab.frame.get_by_role("button", name="CSV").click()
        assert download.value.suggested_filename == "gradwatch-sized-grad_norm-rms.csv"
        first = Path(download.value.path()).read_text().splitlines()[1].split(",")[2:]
        assert [float(number) for number in first] == pytest.approx([1e-3] * len(SMALL), rel=2e-3)


def test_norm_layers_can_be_hidden_and_sick_ones_cannot(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sized-sick")) as tab:
        assert names(tab) == list(SMALL)
        tab.frame.get_by_role("button", name="Matrices only").click()
        tab.settle()
        assert names(tab) == [name for name in SMALL if "norm" not in name or name == "blocks.2.norm"]
        assert tab.link["hide"] == "vectors"
        tab.frame.get_by_role("button", name="Matrices only").click()
        tab.settle()
        assert ("hide" in tab.link, names(tab)) == (False, list(SMALL))
    with opened(browser, alone(address, run="sized", hide="vectors", layer="blocks.0.norm")) as tab:
        assert names(tab) == [name for name in SMALL if "norm" not in name]
        assert tab.spoken.startswith("embed, "), "what is hidden cannot be chosen"


def test_comparison_and_overlays_are_shown_in_the_same_way(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="sized")) as tab:
        asked = [url for url in tab.requests if "/column?" in url or "/heatmap?" in url]
        assert asked
        assert all("norm=rms" in url for url in asked)
        assert not [url for url in asked if "run=sized-old" in url and "/column?" in url], "it knows no sizes"
    with opened(browser, alone(address, run="sized", compare="sized-twin")) as tab:
        assert "(+2 orders of magnitude)" in tab.hover(0.5, 0.5)
    with opened(browser, alone(address, run="sized", compare="sized-old")) as tab:
        assert "(0 orders of magnitude)" in tab.hover(0.5, 1.5 / len(SMALL)), (
            "both of the whole layer, since one log knows no sizes"
        )
        assert tab.frame.get_by_label("Norm", exact=True).input_value() == "total"
