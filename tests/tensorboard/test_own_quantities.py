"""A quantity of the user's own, of which the reader knows only what the log says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser
from tensorboard.util.tensor_util import make_ndarray

from lightning_gradwatch.core.quantities import QUANTITIES
from lightning_gradwatch.core.quantities.quantity import Quantity
from tests.cli.command import here
from tests.cli.test_page import opened as opened_page
from tests.tasks import read_events
from tests.tensorboard.board import Board
from tests.tensorboard.browser import Log, alone, opened

EVIL = "<img src onerror=hacked=1>"
OWN = Quantity("turn", f"Turn {EVIL}", "Angle to the gradient before", "linear", "first step", "degrees")
WORDS = {
    "label": OWN.label, "scale": "linear", "missing": "first step", "hint": OWN.hint, "unit": "degrees",
}  # fmt: skip
LAYERS = ("encoder", "head")
TAG = "gradwatch/layers/turn"


def write(directory: Path, quantity: Quantity = OWN) -> None:
    """Four points; at the first the quantity is not known, and at the third it is not due."""
    log = Log(directory, LAYERS)
    for step, values in enumerate(([-1.0, -1.0], [30.0, 90.0], None, [45.0, math.nan])):
        extra = {} if values is None else {quantity.name: torch.tensor(values)}
        log.write(step, [0.5, 1.0], declared=(quantity,), extra=extra)
    log.close()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a quantity of its own, and one without."""
    directory = tmp_path_factory.mktemp("own")
    write(directory / "own")
    log = Log(directory / "plain", LAYERS)
    for step in range(4):
        log.write(step, [0.5, 1.0])
    log.close()
    return directory


@pytest.fixture(scope="module", params=["true", "false"], ids=["Rust loader", "Python loader"])
def board(request: pytest.FixtureRequest, logs: Path) -> Iterator[Board]:
    with Board(logs, f"--load_fast={request.param}") as board:
        board.wait_for("own", 3)
        board.wait_for("plain", 3)
        yield board


def test_its_tag_says_what_it_is_and_the_built_in_ones_are_described_as_ever(logs: Path) -> None:
    events = read_events(logs / "own")
    plain = {"schema": 1, "optimizer": "", "version": 0, "layers": list(LAYERS)}
    own = json.loads(events.SummaryMetadata(TAG).plugin_data.content)
    assert own == {**plain, "quantity": "turn", "declaration": WORDS}
    norms = json.loads(events.SummaryMetadata("gradwatch/layers/grad_norm").plugin_data.content)
    assert norms == {**plain, "quantity": "grad_norm"}
    assert [(e.step, make_ndarray(e.tensor_proto).dtype.name) for e in events.Tensors(TAG)] == [
        (0, "float32"), (1, "float32"), (3, "float32"),
    ]  # fmt: skip


def test_numbers_of_another_precision_are_written_as_they_are_read(tmp_path: Path) -> None:
    log = Log(tmp_path, LAYERS)
    log.write(0, [0.5, 1.0], declared=(OWN,), extra={"turn": torch.tensor([0.25, 2.0], dtype=torch.float64)})
    log.close()
    (event,) = read_events(tmp_path).Tensors(TAG)
    assert make_ndarray(event.tensor_proto).tolist() == [0.25, 2.0]


def test_the_server_tells_what_the_run_declares(board: Board) -> None:
    found = board.get("run", run="own").json
    assert found["view"]["quantities"] == {"turn": {"name": "turn", **WORDS}}
    assert {"grad_norm", "turn"} <= set(found["optimizers"][0]["versions"][0]["quantities"])
    assert board.get("run", run="plain").json["view"]["quantities"] == {}
    header, values = board.get("heatmap", run="own", quantity="turn").frame
    assert header["steps"] == [0, 1, 3]
    assert values.tolist()[:2] == [[-1, -1], [30, 90]]
    numbers = board.get("layer", run="own", layer="head", step=2).json["numbers"]
    assert (numbers["grad_norm"], numbers["turn"]) == (1, 90)
    assert board.get("heatmap", run="plain", quantity="turn").status == 404


def test_the_report_shows_it_and_offers_it(logs: Path, capsys: Any) -> None:
    status, out, _ = here(capsys, "report", logs / "own", "--quantity", "turn")
    assert status == 0
    title, *rows = out[out.index("Turn <") :].splitlines()
    assert title.startswith(f"{OWN.label}, in degrees")
    assert [row.split()[0] for row in rows[:2]] == list(LAYERS)
    assert " 45 " in rows[0]
    assert "first step" in out
    found = json.loads(here(capsys, "report", logs / "own", "--json")[1])["runs"][0]
    assert "view" not in found
    latest = found["optimizers"][0]["versions"][0]["latest"]
    assert list(latest)[-1] == "turn"
    assert latest["turn"] == {"step": 3, "last_step": 3, "values": [45, "NaN"]}


def test_words_of_a_log_do_not_steer_a_terminal(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, Quantity("turn", "Turn\x1b[2J", "Angle", "linear", "first\nstep", "\x07"))
    out = here(capsys, "report", tmp_path, "--quantity", "turn")[1]
    assert "Turn\N{REPLACEMENT CHARACTER}[2J" in out
    assert "first step" in out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_a_quantity_that_nobody_knows_is_refused_with_those_there_are(logs: Path, capsys: Any) -> None:
    status, _, error = here(capsys, "report", logs, "--quantity", "charm")
    assert status == 2
    assert "`--quantity` must be a quantity that GradWatch or a run in `RUN_DIR` knows, but 'charm' came" in error
    assert all(name in error for name in (*(quantity.name for quantity in QUANTITIES), "turn"))
    assert here(capsys, "report", logs / "plain", "--quantity", "turn")[0] == 2


def test_of_a_quantity_that_a_run_does_not_hold_it_says_so(logs: Path, capsys: Any) -> None:
    _, out, _ = here(capsys, "report", logs, "--run", "plain", "--quantity", "weight_norm")
    assert "This run holds nothing of the quantity weight_norm so far." in out


@pytest.mark.slow
def test_the_tab_offers_it_in_the_menu_and_shows_its_numbers(browser: Browser, logs: Path) -> None:
    with Board(logs) as board:
        board.wait_for("own", 3)
        address = alone(f"http://localhost:{board.port}", run="own")
        with opened(browser, address) as tab:
            menu = tab.frame.get_by_label("Quantity")
            assert menu.locator("option").all_inner_texts()[-1] == OWN.label
            menu.select_option("turn")
            tab.settle()
            assert tab.link["quantity"] == "turn"
            assert menu.get_attribute("title") == OWN.hint
            assert tab.hover(0.5, 0.25).endswith(f"step 1 · {OWN.label.lower()} 30 degrees")
            assert tab.hover(0.1, 0.25).endswith("first step")
            assert tab.hover(0.9, 0.75).endswith("NaN")
            assert OWN.label in tab.frame.locator(".numbers").inner_text()
            tab.frame.get_by_role("button", name="plain").click()
            tab.settle()
            assert OWN.label not in menu.locator("option").all_inner_texts()
            assert tab.evaluate("window.hacked") is None


@pytest.mark.slow
def test_the_page_shows_it_too(browser: Browser, logs: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "page.html"
    here(capsys, "report", logs, "--html", path)
    with opened_page(browser, path, "#p.gradwatch.run=own&p.gradwatch.quantity=turn") as tab:
        menu = tab.get_by_label("Quantity")
        assert menu.locator("option").all_inner_texts()[-1] == OWN.label
        assert menu.input_value() == "turn"
        assert "degrees" in tab.locator("#gw-cell").inner_text() or "NaN" in tab.locator("#gw-cell").inner_text()
        assert tab.evaluate("window.hacked") is None
