"""The tab says what of the event files cannot be read, which TensorBoard's data provider does not tell."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext

from lightning_gradwatch.cli.logs import Logs
from lightning_gradwatch.cli.page import build
from lightning_gradwatch.reading import run_list
from lightning_gradwatch.reading.store import Store
from lightning_gradwatch.tensorboard.inspection import Inspector, inspector_of
from lightning_gradwatch.tensorboard.plugin import GradWatchPlugin
from tests.cli.command import alert
from tests.damaged import NAME, middle, noise, spoil, write_healthy
from tests.tensorboard.board import PATIENCE, Board
from tests.tensorboard.browser import alone, opened, wait_for

LOADERS = {"Rust loader": "--load_fast=true", "Python loader": "--load_fast=false"}
SECOND = "events.out.tfevents.2.x"


def write_runs(directory: Path) -> None:
    """Runs with damage, and without."""
    write_healthy(directory / "sound")
    for run, alerts in {"middle": (), "sick": (alert(),)}.items():
        spoil(file := write_healthy(directory / run, *alerts), middle(file), noise(400))
    spoil(file := write_healthy(directory / "payload"), middle(file) + 40, noise(1))
    torn = write_healthy(directory / "torn")
    os.truncate(torn, torn.stat().st_size - 9)
    write_healthy(directory / "two")
    (directory / "two" / SECOND).write_bytes(noise(1700))
    (directory / "random").mkdir()
    (directory / "random" / NAME).write_bytes(noise(1700))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    write_runs(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("loader", list(LOADERS.values()), ids=list(LOADERS))
def test_the_tab_says_what_the_command_says(runs: Path, loader: str) -> None:
    expected = {run.name: (run.verdict.status, run.verdict.headline, list(run.damage)) for run in Logs(runs).reload()}
    assert {name for name, (status, _, _) in expected.items() if status == "healthy"} == {"sound", "torn"}
    with Board(runs, loader) as board:

        def found() -> dict[str, Any]:
            rows = {row["run"]: row for row in board.get("runs").json["runs"]}
            documents = {run: board.get("run", run=run).json for run in rows}
            assert all((documents[run]["headline"]) == row["headline"] for run, row in rows.items())
            return {run: (row["status"], row["headline"], documents[run]["damage"]) for run, row in rows.items()}

        board.wait(lambda: set(found()) == set(expected) and board.last_step("sound") == 99)
        assert found() == expected
        assert board.get("heatmap", run="sound", quantity="grad_norm").frame[1].shape == (100, 3)


@pytest.mark.slow
@pytest.mark.parametrize("loader", list(LOADERS.values()), ids=list(LOADERS))
def test_damage_of_a_live_run_changes_its_stamp(tmp_path: Path, loader: str) -> None:
    file = write_healthy(tmp_path / "run")
    with Board(tmp_path, loader) as board:
        board.wait_for("run", 99)
        (before,) = board.get("runs").json["runs"]
        with file.open("ab") as tail:
            tail.write(noise(100))
        after = board.wait(lambda: [row for row in board.get("runs").json["runs"] if row["status"] == "unreadable"])
        assert after[0]["headline"] == f"Damaged after step 99, 100 bytes unread: {NAME}."
        assert after[0]["stamp"] != before["stamp"]


@pytest.mark.slow
def test_a_file_that_cannot_be_read_leaves_the_other_runs_to_the_tab_where_tensorboard_itself_fails(
    tmp_path: Path,
) -> None:
    write_healthy(tmp_path / "run")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / NAME).symlink_to("/proc/self/mem")
    with Board(tmp_path, LOADERS["Python loader"]) as board:
        board.wait(lambda: board.get("runs").status == 200 and board.last_step("run") == 99)
        rows = {row["run"]: (row["status"], row["headline"]) for row in board.get("runs").json["runs"]}
        assert board.ask("data/runs").status == 500
    assert rows == {
        "run": ("healthy", "No alert up to step 99."),
        "bad": ("unreadable", f"Cannot be read (Input/output error): {NAME}."),
    }


def settled(inspector: Inspector, runs: list[str]) -> dict[str, list[str]]:
    """What an inspector says once it has looked at everything."""
    inspector.damage(runs)
    end = time.monotonic() + PATIENCE
    while inspector._thread.is_alive():
        assert time.monotonic() < end
        time.sleep(0.01)
    return {run: [one["message"] for one in found] for run, found in inspector.damage(runs).items()}


def test_an_inspector_looks_behind_links_that_tensorboard_follows(tmp_path: Path) -> None:
    spoil(file := write_healthy(tmp_path / "elsewhere" / "run"), middle(file), noise(400))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "latest").symlink_to(tmp_path / "elsewhere" / "run")
    inspector = Inspector(str(tmp_path / "logs"))
    assert settled(inspector, []) == {}
    assert list(settled(inspector, ["latest", "gone"])) == ["latest"]


def test_an_inspector_forgets_what_has_been_cured_removed_or_replaced(tmp_path: Path) -> None:
    for run in ("removed", "replaced"):
        spoil(file := write_healthy(tmp_path / run), middle(file), noise(400))
    inspector = Inspector(str(tmp_path))
    assert set(settled(inspector, [])) == {"removed", "replaced"}
    shutil.rmtree(tmp_path / "removed")
    write_healthy(tmp_path / "new", first=1000).replace(tmp_path / "replaced" / NAME)
    settled(inspector, [])
    assert settled(inspector, []) == {}


def test_an_inspector_leaves_out_a_name_that_no_browser_could_ask_for(tmp_path: Path) -> None:
    for run in (b"r\xff", "rün".encode()):
        spoil(file := write_healthy(tmp_path / "run"), middle(file), noise(400))
        (tmp_path / "run").rename(os.fsdecode(os.path.join(os.fsencode(tmp_path), run)))
    assert set(settled(Inspector(str(tmp_path)), [])) == {"rün"}


def test_a_directory_that_does_not_exist_yet_is_no_damage(tmp_path: Path) -> None:
    inspector = Inspector(str(tmp_path / "later"))
    assert settled(inspector, []) == {}
    spoil(file := write_healthy(tmp_path / "later"), middle(file), noise(400))
    assert set(settled(inspector, [])) == {"."}


@pytest.mark.parametrize("logdir", [None, "", "s3://bucket/logs", "gs://bucket", "memory://logs"])
def test_of_what_is_no_local_directory_nothing_is_said(logdir: str | None) -> None:
    assert inspector_of(logdir) is None


def test_of_a_remote_directory_the_tab_says_what_the_provider_does(runs: Path) -> None:
    """The provider is one that knows of a damaged run without a word about the damage."""
    reader = Logs(runs)
    reader.reload()
    assert reader._reader is not None
    provider = reader._reader._provider
    plugin = GradWatchPlugin(TBContext(data_provider=provider, logdir="s3://bucket/logs", flags=SimpleNamespace()))
    assert plugin._inspector is None
    found = {row["run"]: row["status"] for row in run_list.runs(Store(provider, RequestContext()))["runs"]}
    assert (found["middle"], found["sick"]) == ("healthy", "sick")


@pytest.mark.slow
def test_the_banner_and_the_cards_say_it(browser: Browser, runs: Path) -> None:
    with Board(runs) as board:
        address = f"http://localhost:{board.port}"
        wait_for(f"{address}/data/plugin/gradwatch/runs", '"run": "random"', '"run": "sound"', "from the beginning")
        with opened(browser, alone(address, run="middle")) as tab:
            banner = tab.frame.locator(".banner")
            expect(banner).to_contain_text("Damaged after step")
            assert banner.inner_text().count("bytes unread") == 1
            card = tab.frame.get_by_role("button", name="middle")
            expect(card).to_contain_text("Unreadable. Damaged after step")
        with opened(browser, alone(address, run="sick")) as tab:
            expect(tab.frame.locator(".banner h2")).to_contain_text("Gradients vanish with depth")
            expect(tab.frame.locator(".banner .damage")).to_contain_text("bytes unread")
        with opened(browser, alone(address, run="random")) as tab:
            expect(tab.frame.locator(".banner")).to_contain_text("Damaged from the beginning, 1,700 bytes unread")
            expect(tab.frame.get_by_text("does not watch this run")).to_have_count(0)
        with opened(browser, alone(address, run="sound")) as tab:
            expect(tab.frame.locator(".banner .damage")).to_have_count(0)


@pytest.mark.slow
def test_the_page_says_it_too(browser: Browser, runs: Path, tmp_path: Path) -> None:
    logs = Logs(runs)
    (tmp_path / "page.html").write_text(build(logs, logs.reload()), encoding="utf-8")
    page = browser.new_page()
    expected = {"sick": "Gradients vanish with depth", "middle": "Damaged after step", "random": "1,700"}
    for run, words in expected.items():
        page.goto(f"{(tmp_path / 'page.html').as_uri()}#p.gradwatch.run={run}")
        page.reload()
        page.locator("main[aria-busy=false]").wait_for()
        text = page.locator(".banner").inner_text()
        assert words in text
        assert text.count("bytes unread") == 1
    page.close()
