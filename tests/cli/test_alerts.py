"""``gradwatch alerts`` on the logs of real trainings."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs import alerts_file
from tests.cli.command import alert, gradwatch, here
from tests.tensorboard.browser import write_run

LAYERS = ["a", "b"]
TABLE = {step: [1e-9, 0.1] for step in range(0, 100, 2)}
RUN_FIELDS = {
    "run",
    "path",
    "status",
    "headline",
    "num_open",
    "last_step",
    "wall_time",
    "alerts",
    "num_dropped",
    "damage",
    "left_out",
    "state",
    "state_text",
}


def told(capsys: Any, *arguments: Any) -> tuple[int, dict[str, Any]]:
    """The status, and the JSON."""
    status, out, err = here(capsys, "alerts", *arguments, "--json")
    assert err == ""
    document = json.loads(out)
    assert document["exit_status"] == status
    return status, document


def steps(document: dict[str, Any]) -> list[int]:
    """Where the alerts of the first run begin."""
    return [alert["step"] for alert in document["runs"][0]["alerts"]]


def test_a_program_gets_the_alerts_of_every_run(logs: Path, capsys: Any) -> None:
    status, document = told(capsys, logs)
    assert (status, document["schema"], document["directory"], document["since"]) == (1, 1, str(logs), None)
    assert {"sick", "healthy", "recovered", "recurrent", "gan", "clipped"} == {run["run"] for run in document["runs"]}
    assert all(set(run) == RUN_FIELDS for run in document["runs"])
    runs = {run["run"]: run for run in document["runs"]}
    (sick,) = runs["sick"]["alerts"]
    assert set(sick) == {"state", *(field.name for field in fields(Alert))}
    assert (sick["state"], sick["kind"], sick["until_step"]) == ("open", "vanishing", None)
    assert "sigmoids" in sick["evidence"]
    assert len(sick["remedies"]) > 1
    (over,) = runs["recovered"]["alerts"]
    assert (over["state"], over["kind"], over["step"], over["until_step"]) == ("over", "nonfinite", 13, 13)
    assert runs["healthy"]["alerts"] == []
    assert Path(runs["sick"]["path"]) == logs / "sick"


def test_it_says_of_each_run_what_the_report_says(logs: Path, capsys: Any) -> None:
    report = {run["run"]: run for run in json.loads(here(capsys, "report", logs, "--json")[1])["runs"]}
    for run in told(capsys, logs)[1]["runs"]:
        same = ("status", "headline", "num_open", "last_step", "num_dropped", "damage")
        assert {name: run[name] for name in same} == {name: report[run["run"]][name] for name in same}


def test_people_read_what_why_and_try_in_lines_that_fit(logs: Path) -> None:
    for columns in (60, 100):
        found = gradwatch("alerts", logs / "sick", COLUMNS=str(columns))
        assert found.returncode == 1, found.stderr
        lines = found.stdout.splitlines()
        assert lines[0].startswith("SICK  sick: Gradients vanish with depth since step 9")
        assert max(map(len, lines)) <= columns
        assert [line.split()[0] for line in lines if line[:7] in ("  What ", "  Why  ", "  Try  ")] == [
            "What",
            "Why",
            "Try",
        ]
        assert any(line.startswith("       2. ") for line in lines)


@pytest.mark.parametrize(
    ("run", "status"), [("sick", 1), ("healthy", 0), ("recovered", 0), ("recurrent", 0), ("gan", 0)]
)
def test_the_exit_status_is_that_of_the_report(logs: Path, capsys: Any, run: str, status: int) -> None:
    assert here(capsys, "alerts", logs, "--run", run)[0] == status
    assert told(capsys, logs, "--run", run)[0] == status


@pytest.mark.parametrize(("since", "kept"), [(0, [5, 20, 40]), (10, [5, 20, 40]), (11, [20, 40]), (99, [40])])
def test_what_was_over_before_a_step_is_left_out(tmp_path: Path, capsys: Any, since: int, kept: list[int]) -> None:
    write_run(tmp_path, LAYERS, TABLE, alert(5, 10), alert(20, 30), alert(40))
    status, document = told(capsys, tmp_path, "--since", since)
    assert (status, steps(document), document["since"]) == (1, kept, since)
    out = here(capsys, "alerts", tmp_path, "--since", since)[1]
    assert out.count("Alert: ") == len(kept)
    assert ("Left out: " in out) == (len(kept) < 3)


def test_an_open_alert_is_never_left_out_and_keeps_the_status(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path, LAYERS, TABLE, alert(5))
    status, document = told(capsys, tmp_path, "--since", 10**9)
    assert (status, steps(document)) == (1, [5])


@pytest.mark.parametrize("since", ["-1", "x", "1.5", "nan", "", "9" * 30])
def test_a_step_that_is_none_is_refused(logs: Path, since: str) -> None:
    found = gradwatch("alerts", logs, f"--since={since}")
    assert (found.returncode, found.stdout) == (2, "")
    assert "argument --since: it must be a whole number from 0 on" in found.stderr


def test_a_run_without_an_event_file_is_read_from_its_lines(tmp_path: Path, capsys: Any) -> None:
    events: list[tuple[alerts_file.Event, Alert]] = [("opened", alert(5)), ("opened", alert(9)), ("ended", alert(5, 7))]
    for event, one in events:
        alerts_file.AlertsFile(str(tmp_path), "run").append(event, one)
    status, document = told(capsys, tmp_path)
    assert status == 1
    assert [(a["step"], a["state"], a["until_step"]) for a in document["runs"][0]["alerts"]] == [
        (5, "over", 7),
        (9, "open", None),
    ]


def test_what_an_old_log_lacks_is_there_all_the_same(tmp_path: Path, capsys: Any) -> None:
    known = ("kind", "level", "step", "until_step", "layer", "message", "optimizer")
    line = {"event": "opened", **{name: asdict(alert(5))[name] for name in known}}
    (tmp_path / alerts_file.NAME).write_text(json.dumps(line) + "\n")
    (found,) = told(capsys, tmp_path)[1]["runs"][0]["alerts"]
    assert set(found) == {"state", *(field.name for field in fields(Alert))}
    assert (found["value"], found["cause"], found["remedies"]) == (None, "unknown", [])


def test_damage_is_told_and_no_health(logs: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(logs / "healthy", tmp_path / "run")
    for path in (tmp_path / "run").glob("*tfevents*"):
        path.write_bytes(b"\x07" * 2000)
    status, document = told(capsys, tmp_path)
    assert (status, document["runs"][0]["status"]) == (2, "unreadable")
    assert document["runs"][0]["damage"]
    status, out, _ = here(capsys, "alerts", tmp_path)
    assert status == 2
    assert out.startswith("UNREADABLE  run: Damaged")


def test_numbers_that_json_does_not_know_are_words(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path, LAYERS, TABLE, alert(5, value=float("nan"), threshold=float("inf")))
    (found,) = told(capsys, tmp_path)[1]["runs"][0]["alerts"]
    assert (found["value"], found["threshold"]) == ("NaN", "Infinity")


def test_text_of_a_log_steers_no_terminal(tmp_path: Path, capsys: Any) -> None:
    evil = "x\x1b]0;owned\x07\x1b[2J\u202e\nSICK"
    texts: dict[str, Any] = {"layer": evil, "summary": evil, "evidence": evil, "remedies": (evil,), "optimizer": evil}
    write_run(tmp_path, LAYERS, TABLE, alert(5, **texts))
    out = here(capsys, "alerts", tmp_path)[1]
    assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert out.count("\nSICK") == 0


@pytest.mark.parametrize("place", ["missing", "file", "empty"])
def test_where_there_is_nothing_it_says_so_with_two(tmp_path: Path, capsys: Any, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    status, out, err = here(capsys, "alerts", tmp_path / place)
    assert (status, out) == (2, "")
    assert "`RUN_DIR` must" in err
    assert "To cure it" in err
