"""Which runs a command speaks of, and whether each of them goes on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch.reading.status import SILENT_AFTER_S
from tests.cli.command import alert, here
from tests.damaged import write_healthy
from tests.tensorboard.browser import Log, write_run

COMMANDS = ("report", "alerts", "snapshot")
TABLE = {step: [1e-3, 0.1] for step in range(10)}


def shown(capsys: Any, *arguments: Any) -> tuple[int, dict[str, Any]]:
    status, out, err = here(capsys, *arguments, "--json")
    assert err == ""
    return status, json.loads(out)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A sick run, and a healthy one that was written after it."""
    write_run(tmp_path / "sick" / "version_0", ["a", "b"], TABLE, alert())
    time.sleep(0.01)
    write_run(tmp_path / "fixed" / "version_0", ["a", "b"], TABLE)
    return tmp_path


@pytest.mark.parametrize("command", ["report", "alerts"])
def test_the_run_that_was_written_last_can_be_asked_for_alone(two: Path, capsys: Any, command: str) -> None:
    assert shown(capsys, command, two)[0] == 1
    status, found = shown(capsys, command, two, "--latest")
    assert (status, [run["run"] for run in found["runs"]]) == (0, [os.path.join("fixed", "version_0")])


def test_a_snapshot_and_a_watch_can_be_of_the_last_run(two: Path, capsys: Any) -> None:
    status, found = shown(capsys, "snapshot", two, "--latest")
    assert (status, found["run"]) == (0, os.path.join("fixed", "version_0"))
    status, out, _ = here(capsys, "watch", two, "--latest", "--every", "0.1", "--until-idle", "0.1")
    assert status == 0
    assert "sick" not in out


def test_a_run_and_the_last_one_are_not_asked_for_at_once(two: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as refused:
        here(capsys, "alerts", two, "--latest", "--run", "fixed")
    assert refused.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["sick", "version_0", "nobody"])
def test_what_is_no_run_is_refused_with_the_names_of_those_there_are(
    two: Path, capsys: Any, command: str, name: str
) -> None:
    status, _, err = here(capsys, command, two, "--run", name)
    assert status == 2
    assert f"but {name!r} came" in err
    assert repr(os.path.join("sick", "version_0")) in err
    assert repr(os.path.join("fixed", "version_0")) in err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_single_run_goes_by_the_name_under_which_it_is_printed(tmp_path: Path, capsys: Any, command: str) -> None:
    write_healthy(tmp_path / "version_3")
    for name in ("version_3", ".", "./"):
        assert here(capsys, command, tmp_path / "version_3", "--run", name)[0] == 0
    status, _, err = here(capsys, command, tmp_path / "version_3", "--run", "version_2")
    assert status == 2
    assert "such as '.'" in err


@pytest.mark.parametrize(
    ("end", "later", "state", "text"),
    [
        ("", 0.0, "live", "live"),
        ("", SILENT_AFTER_S + 10, "silent", "stopped without a word"),
        ("end", SILENT_AFTER_S + 10, "ended", "ended"),
        ("ValueError", 0.0, "crashed", "crashed with ValueError"),
    ],
)
def test_it_is_said_whether_a_run_goes_on(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, end: str, later: float, state: str, text: str
) -> None:
    log = Log(tmp_path / "run", ["a", "b"])
    for step, norms in TABLE.items():
        log.write(step, norms)
    log.writer.write_alerts((), 0, end)
    log.summary.close()
    now = time.time()
    monkeypatch.setattr("lightning_gradwatch.cli.logs.time.time", lambda: now + later)
    for command in ("report", "alerts"):
        status, found = shown(capsys, command, tmp_path)
        assert (status, found["runs"][0]["status"]) == (0, "healthy")
        assert (found["runs"][0]["state"], found["runs"][0]["state_text"]) == (state, text)
    assert text in here(capsys, "report", tmp_path)[1]
    assert (f"({text})" in here(capsys, "alerts", tmp_path)[1]) == (end != "end")


def test_a_watch_that_saw_nothing_names_its_own_limit(tmp_path: Path, capsys: Any) -> None:
    _, _, err = here(capsys, "watch", tmp_path / "x", "--every", "0.1", "--until-idle", "0.2")
    assert "A training that starts later needs a longer --until-idle." in err
