"""What of a log cannot be read is said, run by run, is never taken for health, and stops the report of no other run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto

from lightning_gradwatch.cli.choice import exit_status
from lightning_gradwatch.cli.logs import Logs
from lightning_gradwatch.outputs import alerts_file
from tests.cli.command import alert, gradwatch, here
from tests.cli.terminal import Terminal
from tests.damaged import NAME, event, middle, noise, spoil, write, write_healthy


def told(capsys: Any, directory: Path, *arguments: Any) -> tuple[int, list[dict[str, Any]]]:
    """What the report says as JSON."""
    status, out, _ = here(capsys, "report", directory, "--json", *arguments)
    found = json.loads(out)
    assert found["exit_status"] == status
    return status, found["runs"]


@pytest.mark.parametrize("place", ["middle", "payload", "end", "zeros", "beginning"])
def test_a_healthy_run_with_corrupt_bytes_is_not_called_healthy(tmp_path: Path, capsys: Any, place: str) -> None:
    file = write_healthy(tmp_path / "run")
    size = file.stat().st_size
    start, content = {
        "beginning": (0, noise(400)),
        "middle": (middle(file), noise(400)),
        "payload": (middle(file) + 40, noise(1)),
        "zeros": (middle(file), bytes(400)),
        "end": (size - 400, noise(400)),
    }[place]
    spoil(file, start, content)
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["status"]) == (2, "unreadable")
    (damage,) = run["damage"]
    assert damage["file"] == NAME
    assert damage["message"] == run["headline"]
    assert 0 < damage["unread_bytes"] <= size
    if place == "beginning":
        assert (damage["after_step"], damage["unread_bytes"]) == (None, size)
    else:
        assert damage["after_step"] == run["last_step"] == run["optimizers"][0]["versions"][0]["last_step"]
        where = f"after step {damage['after_step']}"
        assert run["headline"] == f"Damaged {where}, {damage['unread_bytes']:,} bytes unread: {NAME}."
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 2
    assert "UNREADABLE  Damaged" in out
    assert "bytes unread" in " ".join(out.split())


def test_an_open_alert_that_can_be_read_is_one_and_the_damage_is_said_beside_it(tmp_path: Path, capsys: Any) -> None:
    spoil(file := write_healthy(tmp_path / "run", alert()), middle(file), noise(400))
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["status"], run["num_open"]) == (1, "sick", 1)
    assert run["damage"][0]["after_step"] is not None
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 1
    assert out.index("SICK") < out.index("Damaged after step") < out.index("Why")


def test_a_notice_does_not_vouch_for_what_cannot_be_read(tmp_path: Path, capsys: Any) -> None:
    spoil(file := write_healthy(tmp_path / "run", alert(level="notice")), middle(file), noise(400))
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["status"], run["num_open"]) == (2, "unreadable", 1)


def test_a_run_that_recovered_before_the_damage_may_have_fallen_ill_again(tmp_path: Path, capsys: Any) -> None:
    spoil(file := write_healthy(tmp_path / "run", alert(5, 9)), middle(file), noise(400))
    alerts_file.append(tmp_path / "run", "opened", alert(5))
    alerts_file.append(tmp_path / "run", "ended", alert(5, 9))
    assert told(capsys, tmp_path)[0] == 2


def test_an_alert_that_came_after_the_damage_is_known_from_the_file_of_alerts(tmp_path: Path, capsys: Any) -> None:
    spoil(file := write_healthy(tmp_path / "run"), middle(file), noise(400))
    alerts_file.append(tmp_path / "run", "opened", alert(80))
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["status"], run["last_step"]) == (1, "sick", 80)


def test_a_torn_last_record_is_no_damage(tmp_path: Path, capsys: Any) -> None:
    file = write_healthy(tmp_path / "run")
    os.truncate(file, file.stat().st_size - 9)
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["status"], run["damage"]) == (0, "healthy", [])


def test_an_empty_file_is_no_damage(tmp_path: Path, capsys: Any) -> None:
    write_healthy(tmp_path / "run")
    (tmp_path / "run" / "events.out.tfevents.2.x").touch()
    assert told(capsys, tmp_path)[0] == 0


def test_what_schema_1_wrote_is_no_damage(stored: Path, capsys: Any) -> None:
    _, (run,) = told(capsys, stored)
    assert (run["status"] != "unreadable", run["last_step"], run["damage"]) == (True, 23, [])
    assert len(run["optimizers"][0]["versions"][0]["layers"]) == 7


def test_random_bytes_are_not_called_a_run_that_nobody_watches(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / NAME).write_bytes(noise(1700))
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["status"]) == (2, "unreadable")
    assert run["headline"] == f"Damaged from the beginning, 1,700 bytes unread: {NAME}."
    assert run["damage"][0]["after_step"] is None


@pytest.mark.parametrize("name", ["events.out.tfevents.0.x", "events.out.tfevents.2.x"], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["noise", "error", "link", "loop", "pipe"])
def test_one_file_of_two_that_cannot_be_read_hides_nothing_of_the_other(
    tmp_path: Path, capsys: Any, name: str, kind: str
) -> None:
    write_healthy(tmp_path / "run")
    bad = tmp_path / "run" / name
    if kind == "noise":
        bad.write_bytes(noise(400))
    elif kind == "pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to({"error": "/proc/self/mem", "link": "nowhere", "loop": name}[kind])
    write_healthy(tmp_path / "other")
    status, runs = told(capsys, tmp_path)
    assert status == 2
    assert [(run["run"], run["status"], run["last_step"]) for run in runs] == [
        ("run", "unreadable", 99),
        ("other", "healthy", 99),
    ]
    assert [damage["file"] for damage in runs[0]["damage"]] == [name]
    assert runs[0]["optimizers"][0]["versions"][0]["num_samples"] == 100


def test_a_directory_named_like_an_event_file_holds_nothing_up(tmp_path: Path, capsys: Any) -> None:
    write_healthy(tmp_path / "run")
    write_healthy(tmp_path / "run" / "events.out.tfevents.0.x")
    status, runs = told(capsys, tmp_path)
    assert (status, [run["status"] for run in runs]) == (0, ["healthy", "healthy"])


def test_several_damaged_files_are_all_named_and_many_are_counted(tmp_path: Path, capsys: Any) -> None:
    write_healthy(tmp_path, alert())
    for number in range(2, 9):
        (tmp_path / f"events.out.tfevents.{number}.x").write_bytes(noise(100 + number))
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 1
    assert out.count("bytes unread") == 3
    assert "and 4 more; --json lists them" in out
    assert len(told(capsys, tmp_path)[1][0]["damage"]) == 7


def test_a_file_that_is_exchanged_while_it_is_followed_is_read_anew(tmp_path: Path) -> None:
    write_healthy(tmp_path / "run", alert())
    write_healthy(tmp_path / "still")
    logs = Logs(tmp_path)
    assert exit_status(logs.reload()) == 1
    write_healthy(tmp_path / "new", first=1000).replace(tmp_path / "run" / NAME)
    runs = {run.name: run for run in logs.reload()}
    assert {name: run.verdict.status for name, run in runs.items()} == {"run": "healthy", "still": "healthy"}
    assert logs.open(runs["run"]).document["optimizers"][0]["versions"][0]["first_step"] == 1000
    assert logs.open(runs["still"]).document["optimizers"][0]["versions"][0]["num_samples"] == 100


def test_a_run_that_is_removed_and_made_anew_shows_the_new_one(tmp_path: Path) -> None:
    write_healthy(tmp_path / "run", alert())
    logs = Logs(tmp_path)
    assert exit_status(logs.reload()) == 1
    shutil.rmtree(tmp_path / "run")
    write_healthy(tmp_path / "run", name="events.out.tfevents.2.x")
    (run,) = logs.reload()
    assert run.verdict.status == "healthy"


def test_damage_of_a_live_run_is_noticed_and_grows(tmp_path: Path) -> None:
    file = write_healthy(tmp_path)
    logs = Logs(tmp_path)
    (before,) = logs.reload()
    with file.open("ab") as tail:
        tail.write(noise(100))
    (after,) = logs.reload()
    assert [run.verdict.status for run in (before, after)] == ["healthy", "unreadable"]
    with file.open("ab") as tail:
        tail.write(noise(100))
    (later,) = logs.reload()
    assert later.damage[0]["unread_bytes"] == 200
    assert len({before.stamp, after.stamp, later.stamp}) == 3


def too_deep(directory: Path) -> str:
    """Make a directory whose path is too long for the system, below one that has a name; returns that name."""
    place = os.open(directory, os.O_RDONLY)
    for name in ["deep", *["d" * 250] * 20]:
        os.mkdir(name, dir_fd=place)
        following = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = following
    os.close(place)
    return "deep"


def test_a_directory_that_cannot_be_listed_is_said_and_the_others_are_read(tmp_path: Path, capsys: Any) -> None:
    write_healthy(tmp_path / "run")
    name = too_deep(tmp_path)
    status, runs = told(capsys, tmp_path)
    assert status == 2
    assert [run["status"] for run in runs] == ["unreadable", "healthy"]
    assert runs[0]["run"].startswith(f"{name}{os.sep}")
    assert runs[0]["damage"][0]["message"] == f"The directory cannot be listed ({os.strerror(errno.ENAMETOOLONG)})."


def write_garbage(file: Path, content: bytes, mtime: float | None) -> None:
    """Append to a file, with a time at which that was."""
    with file.open("ab") as tail:
        tail.write(content)
    if mtime is not None:
        os.utime(file, (mtime, mtime))


@pytest.mark.parametrize(
    "content",
    [noise(300) + b"\n", noise(300).replace(b"\n", b""), b"[1, 2]\n", b'{"event\n'],
    ids=["noise", "noise in one line", "a list", "half a line"],
)
def test_lines_of_the_file_of_alerts_that_cannot_be_read_may_have_told_of_an_alert(
    tmp_path: Path, capsys: Any, content: bytes
) -> None:
    event_file = write_healthy(tmp_path)
    later = event_file.stat().st_mtime + 10
    write_garbage(tmp_path / alerts_file.NAME, content, later)
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["status"]) == (2, "unreadable")
    unread = len(content.replace(b"\n", b""))
    assert run["headline"] == f"Damaged, {unread} bytes unread: alerts.jsonl."
    alerts_file.append(tmp_path, "opened", alert(99))
    assert told(capsys, tmp_path)[0] == 1


def test_lines_that_are_older_than_the_document_of_the_alerts_are_repeated_there(tmp_path: Path, capsys: Any) -> None:
    event_file = write_healthy(tmp_path)
    write_garbage(tmp_path / alerts_file.NAME, noise(300) + b"\n", event_file.stat().st_mtime - 1000)
    assert told(capsys, tmp_path)[0] == 0


@pytest.mark.parametrize(
    "content",
    [b'{"event": "ope', b'{"event": "opened", "kind": "dead"\x00\x00', b"{", b"", b"\n"],
    ids=["half a line", "zeros at its end", "one byte", "empty", "an empty line"],
)
def test_a_torn_last_line_of_the_file_of_alerts_is_no_damage(tmp_path: Path, capsys: Any, content: bytes) -> None:
    event_file = write_healthy(tmp_path)
    write_garbage(tmp_path / alerts_file.NAME, content, event_file.stat().st_mtime + 10)
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["damage"]) == (0, [])


def test_a_file_of_alerts_that_cannot_be_read_is_said(tmp_path: Path, capsys: Any) -> None:
    write_healthy(tmp_path)
    (tmp_path / alerts_file.NAME).symlink_to("/proc/self/mem")
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["headline"]) == (2, "Cannot be read (Input/output error): alerts.jsonl.")
    (tmp_path / alerts_file.NAME).unlink()
    (tmp_path / alerts_file.NAME).symlink_to("nowhere")
    assert told(capsys, tmp_path)[0] == 2


def test_a_file_of_alerts_in_which_brackets_nest_without_end_stops_nobody(tmp_path: Path, capsys: Any) -> None:
    later = write_healthy(tmp_path / "run").stat().st_mtime + 10
    write_garbage(tmp_path / "run" / alerts_file.NAME, b"[" * 200_000 + b"\n", later)
    write_healthy(tmp_path / "other")
    status, runs = told(capsys, tmp_path)
    assert (status, [run["status"] for run in runs]) == (2, ["unreadable", "healthy"])


def test_the_names_of_files_and_runs_may_be_no_utf8(tmp_path: Path) -> None:
    spoil(file := write_healthy(tmp_path / "run", name=os.fsdecode(b"tfevents\xfe")), middle(file), noise(400))
    (tmp_path / "run").rename(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    found = gradwatch("report", tmp_path)
    assert found.returncode == 2, found.stderr
    assert "Damaged after step" in found.stdout
    page = gradwatch("report", tmp_path, "--json", "--html", tmp_path / "page.html")
    assert (page.returncode, json.loads(page.stdout)["runs"][0]["status"]) == (2, "unreadable"), page.stderr


def test_the_name_of_a_damaged_file_steers_no_terminal(tmp_path: Path, capsys: Any) -> None:
    write_healthy(tmp_path, alert())
    (tmp_path / "tfevents\x1b]0;owned\x07\n").write_bytes(noise(100))
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 1
    assert not {"\x1b", "\x07"} & set(out)
    assert "]0;owned" in out


def test_watch_says_it_too(tmp_path: Path) -> None:
    spoil(file := write_healthy(tmp_path / "run"), middle(file), noise(400))
    (write_healthy(tmp_path / "sick", alert()).parent / "events.out.tfevents.2.x").write_bytes(noise(1700))
    found = gradwatch("watch", tmp_path, "--until-idle", "0.1", "--every", "0.1")
    assert found.returncode == 1, found.stderr
    sick, run = found.stdout.splitlines()
    assert "sick: sick: Gradients vanish with depth since step 5" in sick
    assert sick.endswith("Damaged from the beginning, 1,700 bytes unread: events.out.tfevents.2.x.")
    assert "unreadable: run: Damaged after step" in run
    found = gradwatch("watch", tmp_path, "--until-idle", "0.1", "--every", "0.1", "--run", "run")
    assert found.returncode == 2
    with Terminal("watch", tmp_path, "--every", "0.1", "--run", "run") as terminal:
        terminal.wait_for("Damaged after step")
        terminal.press(b"\x03")
        assert terminal.end() == 2


def test_an_error_of_our_own_is_not_taken_for_an_alert(tmp_path: Path, capsys: Any) -> None:
    write_healthy(tmp_path)
    status, _, err = here(capsys, "report", tmp_path, "--html", "no\0file")
    assert status == 2
    assert "Traceback" in err


def write_foreign(directory: Path, *events: Event) -> None:
    """A log of somebody else's."""
    directory.mkdir()
    write(directory / NAME, Event(wall_time=1.0, file_version="brain.Event:2"), *events, event(3))


def test_a_foreign_scalar_that_is_none_stops_nobody(tmp_path: Path, capsys: Any) -> None:
    """TensorBoard's own provider fails for all runs at once over a vector among the scalars."""
    vector = Summary.Value(tag="x", tensor=TensorProto(dtype=1, float_val=[1.0, 2.0]))
    vector.tensor.tensor_shape.dim.add(size=2)
    vector.metadata.plugin_data.plugin_name = "scalars"
    vector.metadata.data_class = DATA_CLASS_SCALAR
    write_foreign(tmp_path / "foreign", Event(wall_time=2.0, step=1, summary=Summary(value=[vector])))
    write_healthy(tmp_path / "run")
    status, (run,) = told(capsys, tmp_path)
    assert (status, run["run"], run["last_step"]) == (0, "run", 99)


def test_an_event_of_which_tensorboard_makes_no_sense_is_said(tmp_path: Path, capsys: Any) -> None:
    write_foreign(tmp_path / "run", event(2), Event(wall_time=2.0, meta_graph_def=b"\xff\xff"))
    write_healthy(tmp_path / "run", name="events.out.tfevents.2.x")
    write_healthy(tmp_path / "other")
    status, runs = told(capsys, tmp_path)
    assert (status, [run["status"] for run in runs]) == (2, ["unreadable", "healthy"])
    assert runs[0]["headline"].startswith("An event cannot be taken in (DecodeError(")
    logs = Logs(tmp_path)
    assert [[run.last_step for run in logs.reload()] for _ in range(2)] == [[2, 99], [2, 99]]
