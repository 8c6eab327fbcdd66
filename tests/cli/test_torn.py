"""Logs that are torn, damaged, empty or no logs at all: the command says what it can tell and never fails."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch.cli.choice import exit_status
from lightning_gradwatch.cli.document import encode
from lightning_gradwatch.cli.logs import Logs
from lightning_gradwatch.outputs import alerts_file
from tests.cli.command import COMMAND, alert, environment, gradwatch, here
from tests.tensorboard.browser import write_run

LAYERS = ["a", "b", "c"]


def events(directory: Path) -> Path:
    (file,) = directory.glob("*tfevents*")
    return file


def look(directory: Path) -> tuple[str, int]:
    """Read everything, as a report does: the status, and the number of samples."""
    logs = Logs(directory)
    runs = logs.reload()
    content = encode(logs, runs, directory)
    assert exit_status(runs) == content["exit_status"]
    versions = [v for run in content["runs"] for o in run["optimizers"] for v in o["versions"]]
    return content["runs"][0]["status"], sum(version["num_samples"] for version in versions)


@pytest.mark.parametrize("seed", range(4))
def test_an_event_file_torn_at_any_byte_is_read_up_to_there(logs: Path, tmp_path: Path, seed: int) -> None:
    for run, whole_status in (("sick", "sick"), ("recovered", "recovered")):
        directory = tmp_path / run
        shutil.copytree(logs / run, directory)
        (directory / alerts_file.NAME).unlink()
        file = events(directory)
        whole = file.read_bytes()
        seen = [(0, "not_watched", 0)]
        for size in sorted({*random.Random(seed).sample(range(len(whole)), 10), len(whole)}):
            file.write_bytes(whole[:size])
            seen.append((size, *look(directory)))
        assert [samples for _, _, samples in seen] == sorted(samples for _, _, samples in seen)
        assert seen[-1] == (len(whole), whole_status, 40)
        assert {status for _, status, _ in seen} <= {"not_watched", "unreadable", "healthy", "sick", "recovered"}


def test_a_file_that_grows_is_read_on_from_where_it_was_torn(logs: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    whole = events(logs / "sick").read_bytes()
    file = directory / events(logs / "sick").name
    reader = Logs(directory)
    counts = []
    with file.open("ab") as growing:
        for place in range(0, len(whole), 7001):
            growing.write(whole[place : place + 7001])
            growing.flush()
            found = reader.reload()
            versions = reader.open(found[0]).document["optimizers"] if found else []
            counts.append(versions[0]["versions"][0]["num_samples"] if versions else 0)
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert counts[-1] == 40
    assert reader.reload()[0].verdict.status == "sick"


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_byte_costs_what_comes_after_it_at_most(logs: Path, tmp_path: Path, seed: int) -> None:
    directory = tmp_path / "run"
    shutil.copytree(logs / "sick", directory)
    file = events(directory)
    whole = file.read_bytes()
    chance = random.Random(seed)
    for _ in range(10):
        place = chance.randrange(len(whole))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ chance.randrange(1, 256)]) + whole[place + 1 :])
        status, samples = look(directory)
        assert status == "sick", place  # alerts.jsonl still tells
        assert samples <= 40


def test_a_torn_last_line_of_the_file_of_alerts_is_left_out(tmp_path: Path) -> None:
    alerts_file.append(tmp_path, "opened", alert(5))
    alerts_file.append(tmp_path, "ended", alert(5, 9))
    file = tmp_path / alerts_file.NAME
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole) + 1):
        file.write_bytes(whole[:size])
        expected = "unreadable" if size < first - 1 else "recovered" if size >= len(whole) - 1 else "sick"
        assert look(tmp_path)[0] == expected, size


def test_files_that_are_no_logs_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "events.out.tfevents.1.x").touch()
    (tmp_path / "folder" / "events.out.tfevents.1.x").mkdir(parents=True)
    found = gradwatch("report", tmp_path)
    assert found.returncode == 2
    assert "did not watch" in found.stderr


def test_a_device_in_the_place_of_the_file_of_alerts_is_not_read_for_ever(tmp_path: Path) -> None:
    write_run(tmp_path, LAYERS, {0: [1.0] * 3})
    (tmp_path / alerts_file.NAME).symlink_to("/dev/zero")

    def within_two_gigabytes() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))

    command = [*COMMAND, "report", str(tmp_path)]
    found = subprocess.run(
        command, capture_output=True, env=environment(), preexec_fn=within_two_gigabytes, timeout=60, check=False
    )
    assert found.returncode == 2, found.stderr
    assert b"Cannot be read (it is no regular file): alerts.jsonl." in found.stdout


def test_a_run_of_a_newer_schema_is_unreadable_and_says_why(tmp_path: Path, capsys: Any) -> None:
    script = f"""
import sys
from pathlib import Path
from lightning_gradwatch.reading import schema
schema.SCHEMA_VERSION = 7
from tests.tensorboard.browser import write_run
write_run(Path({str(tmp_path)!r}), ["a", "b", "c"], {{0: [1.0] * 3}})
"""
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, timeout=120)
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 2
    assert "newer GradWatch" in out


def test_a_directory_that_goes_away_while_it_is_read_is_no_failure(logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs / "sick", tmp_path / "sick")
    shutil.copytree(logs / "healthy", tmp_path / "healthy")
    reader = Logs(tmp_path)
    sick, healthy = reader.reload()
    shutil.rmtree(tmp_path / "sick")
    assert reader.open(sick).document["optimizers"] == []
    assert [run.name for run in reader.reload()] == ["healthy"]
    assert reader.open(healthy).document["optimizers"]
