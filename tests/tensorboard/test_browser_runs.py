"""The list of runs in a real Chromium, on a real TensorBoard, where there are more runs than fit a row."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, expect

from lightning_gradwatch.core.records import Alert
from tests.tensorboard.browser import Tab, alone, link, opened, tensorboard, write_run

LAYERS = ("net.0", "net.2", "net.4")
NUM_RUNS = 60
SICK = Alert(
    kind="vanishing", level="alert", step=3, until_step=None, layer="net.0", value=7.0, threshold=2.0,
    message="Gradients vanish with depth.", summary="They shrink.",
)  # fmt: skip


def name(place: int) -> str:
    """As a sweep calls its runs: alike at the beginning, and different at the end."""
    return f"sweep_of_the_digits_classifier_lr{place % 6:02d}_seed{place}"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Every tenth run is sick, every sixteenth has recovered."""
    logs = tmp_path_factory.mktemp("sweep")
    for i in range(NUM_RUNS):
        alerts = [SICK] if i % 10 == 0 else [replace(SICK, until_step=5)] if i % 16 == 0 else []
        write_run(logs / name(i), LAYERS, {step: [0.1, 0.2, 0.3] for step in range(1, 9)}, *alerts)
    with tensorboard(logs) as found:
        yield found


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    with opened(browser, alone(address)) as found:
        yield found


def rows(tab: Tab) -> Locator:
    return tab.frame.locator(".strip .run")


def names(tab: Tab) -> list[str]:
    """The runs that are listed, by their full names."""
    return [row.get_attribute("data-run") or "" for row in rows(tab).all()]


def test_many_runs_are_a_list_whose_names_keep_the_end_that_differs(tab: Tab) -> None:
    expect(rows(tab)).to_have_count(NUM_RUNS)
    first, second = rows(tab).nth(0), rows(tab).nth(1)
    assert first.locator(".name").inner_text() == "…lr02_seed50"
    assert first.locator(".name").get_attribute("title") == name(50)
    above, below = first.bounding_box(), second.bounding_box()
    assert above is not None
    assert below is not None
    assert (above["x"], above["y"] + above["height"]) == (below["x"], below["y"])
    assert first.get_attribute("aria-pressed") == "true"
    shown = tab.frame.locator(".strip").bounding_box()
    assert shown is not None
    assert shown["height"] < 250, "the verdict of the chosen run stands below, and must be seen"


def test_runs_are_counted_and_filtered_by_their_verdict(tab: Tab) -> None:
    chips = tab.frame.get_by_role("group", name="Only runs that are").get_by_role("button")
    assert chips.all_inner_texts() == ["6 sick", "3 recovered", "51 healthy"]
    chips.nth(1).click()
    assert set(names(tab)) == {name(16), name(32), name(48)}
    chips.nth(0).click()
    assert len(names(tab)) == 9
    assert tab.frame.get_by_text("9 of 60 runs").is_visible()
    assert tab.link["verdict"] == "recovered%2Csick"
    chips.nth(1).click()
    chips.nth(0).click()
    assert len(names(tab)) == NUM_RUNS
    assert "verdict" not in tab.link


def test_a_run_is_found_by_words_of_its_name_and_of_its_verdict(tab: Tab) -> None:
    find = tab.frame.get_by_role("searchbox", name="Find a run")
    find.fill("SEED5 lr05")
    assert set(names(tab)) == {name(5), name(53), name(59)}
    find.fill("vanish net.0")
    assert len(names(tab)) == 6
    find.fill("no such run")
    assert names(tab) == []
    assert tab.frame.get_by_text("No run fits").is_visible()
    find.fill("")
    assert len(names(tab)) == NUM_RUNS


def test_runs_are_sorted_as_wanted(tab: Tab) -> None:
    assert names(tab)[:6] == [name(i) for i in (50, 40, 30, 20, 10, 0)]
    order = tab.frame.get_by_label("Order of the runs")
    order.select_option("newest")
    assert names(tab) == [name(i) for i in reversed(range(NUM_RUNS))]
    order.select_option("name")
    assert names(tab)[:3] == [name(0), name(6), name(12)]
    expect(tab.frame.get_by_role("group", name="Runs, by name")).to_be_visible()


def test_a_link_restores_the_list_and_choosing_a_run_leaves_it(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, find="seed1", sort="name", verdict="healthy", run=name(13))) as tab:
        assert names(tab) == [name(i) for i in (12, 18, 1, 13, 19, 14, 15, 11, 17)]
        rows(tab).nth(0).click()
        tab.settle()
        assert (tab.link["find"], tab.link["sort"], tab.link["run"]) == ("seed1", "name", names(tab)[0])
        assert len(names(tab)) == 9


def test_the_keyboard_walks_through_the_list(tab: Tab) -> None:
    rows(tab).nth(0).focus()
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Enter")
    tab.settle()
    assert tab.link["run"] == names(tab)[2]
    tab.page.keyboard.press("End")
    tab.page.keyboard.press("ArrowUp")
    focused = tab.evaluate("document.activeElement.dataset.run")
    assert focused == names(tab)[-2]
    box, shown = rows(tab).nth(NUM_RUNS - 2).bounding_box(), tab.frame.locator(".strip").bounding_box()
    assert box is not None
    assert shown is not None
    assert shown["y"] <= box["y"] <= shown["y"] + shown["height"]
    assert tab.evaluate("[...document.querySelectorAll('.run')].filter((one) => one.tabIndex === 0).length") == 1


PICTURES = """() => [...document.querySelectorAll(".run canvas")].map((one) =>
    one.width > 0 && one.getContext("2d").getImageData(one.width / 2, one.height / 2, 1, 1).data[3] === 255)"""


def have_pictures(tab: Tab, first: int, end: int) -> None:
    """Wait until these runs have their small pictures."""
    script = f"([first, end]) => ({PICTURES})().slice(first, end).every(Boolean)"
    tab.page.wait_for_function(script, arg=[first, end])


def test_only_runs_that_are_seen_are_asked_for_a_picture_and_the_wheel_brings_more(tab: Tab) -> None:
    have_pictures(tab, 0, 5)
    tab.settle()
    assert not any(tab.evaluate(PICTURES)[20:])
    assert len([url for url in tab.requests if "columns=80" in url]) < 20
    rows(tab).nth(2).hover()
    tab.page.mouse.wheel(0, 30 * 32)
    tab.page.wait_for_function("document.querySelector('.strip').scrollTop > 900")
    have_pictures(tab, 31, 34)


def test_the_list_opens_and_closes(tab: Tab) -> None:
    tab.frame.get_by_role("button", name="show all").click()
    box = tab.frame.locator(".strip").bounding_box()
    assert box is not None
    assert box["height"] > 500
    tab.frame.get_by_role("button", name="show fewer").click()
    box = tab.frame.locator(".strip").bounding_box()
    assert box is not None
    assert box["height"] < 250


def test_the_selection_of_tensorboard_is_respected(browser: Browser, address: str) -> None:
    """TensorBoard's runs selector keeps ticks and filter in the hash, and leaves them there for other tabs."""
    ticks = {name(i): i in (7, 8) for i in range(NUM_RUNS)}
    ticked = base64.b64encode(json.dumps(ticks).encode()).decode().replace("=", "%3D")
    with opened(browser, f"{link(address)}&runSelectionState={ticked}") as tab:
        assert set(names(tab)) == {name(7), name(8)}
        assert tab.frame.locator(".run[aria-pressed=true]").get_attribute("data-run") in names(tab)
        tab.frame.get_by_role("button", name="58 more hidden by TensorBoard's own selection").click()
        assert len(names(tab)) == NUM_RUNS
    with opened(browser, f"{alone(address)}&regexInput=lr03") as tab:
        assert len(names(tab)) == 10
    with opened(browser, f"{alone(address, run=name(1))}&regexInput=lr03") as tab:
        assert names(tab)[0] == name(1), "the chosen run is listed whatever TensorBoard selects"
        assert len(names(tab)) == 11


def test_ticks_in_tensorboards_own_dashboard_reach_the_tab(browser: Browser, address: str) -> None:
    with opened(browser, link(address)) as tab:
        tab.page.goto(f"{address}/#scalars")
        tab.page.locator("#names-regex input").fill("lr04")
        tab.page.wait_for_function("location.hash.includes('regexInput=lr04')")
        tab.page.get_by_role("tab", name="GradWatch").click()
        expect(rows(tab)).to_have_count(11)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_about(browser: Browser, address: str, scheme: str) -> None:
    with opened(browser, alone(address), color_scheme=scheme) as tab:
        results = Axe().run(tab.page)
        assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("width", [400, 900])
def test_a_narrow_window_shows_list_and_verdict(browser: Browser, address: str, width: int) -> None:
    with opened(browser, alone(address)) as tab:
        tab.resize(width, 800)
        root = "document.documentElement"
        assert tab.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
        box = tab.frame.locator(".banner h2").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 800
