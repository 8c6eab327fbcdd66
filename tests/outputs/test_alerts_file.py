"""The alerts file: complete lines whatever happened to the last one, bounded, and open incidents are never lost."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs import alerts_file
from tests.builders import alert
from tests.tasks import Classifier, deep_net, digits, fit, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*add the following callbacks.*")


def texts(directory: Path) -> list[str]:
    return (directory / alerts_file.NAME).read_text().splitlines()


def test_a_line_is_an_event_with_its_time_its_run_and_the_alert(tmp_path: Path) -> None:
    alerts_file.append(tmp_path, "opened", alert(), "version_0")
    line = json.loads(texts(tmp_path)[0])
    assert list(line) == ["event", "time", "run", *(field.name for field in fields(Alert))]
    assert (line["event"], line["run"]) == ("opened", "version_0")
    assert datetime.now(timezone.utc) - datetime.fromisoformat(line["time"]) < timedelta(minutes=5)
    assert {name: line[name] for name in asdict(alert())} == json.loads(json.dumps(asdict(alert())))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_line_is_json_for_every_reader(tmp_path: Path, value: float) -> None:
    alerts_file.append(tmp_path, "opened", alert(value=value))
    assert '"value": null' in texts(tmp_path)[0]


@pytest.mark.parametrize(
    "torn",
    [b'{"event": "opened", "ki', b"{", b"\x00\x00\x00", b'{"event": "\xc3', b"[1]", b"null", b"[" * 200_000],
    ids=range(7),
)
def test_after_a_torn_line_a_new_one_begins(tmp_path: Path, torn: bytes) -> None:
    alerts_file.append(tmp_path, "opened", alert(1))
    with (tmp_path / alerts_file.NAME).open("ab") as file:
        file.write(torn)
    assert alerts_file.entries(tmp_path) == {("opened", "vanishing", 1, "")}
    alerts_file.append(tmp_path, "opened", alert(2))
    alerts_file.append(tmp_path, "ended", alert(2, 3))
    assert [line["step"] for line in alerts_file.read(tmp_path)] == [1, 2, 2]
    assert (tmp_path / alerts_file.NAME).read_bytes().endswith(b"\n")


def test_every_cut_of_a_file_can_be_read_and_continued(tmp_path: Path) -> None:
    for step in range(3):
        alerts_file.append(tmp_path, "opened", alert(step))
    path = tmp_path / alerts_file.NAME
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        complete = whole[:length].count(b"\n")
        before = len(alerts_file.read(tmp_path))
        assert before in (complete, complete + 1)  # without its end a line may be whole
        alerts_file.append(tmp_path, "opened", alert(7))
        assert [line["step"] for line in alerts_file.read(tmp_path)] == [*range(before), 7]


def test_ten_thousand_alerts_leave_bounded_files_that_tell_what_is_open(tmp_path: Path) -> None:
    alerts_file.append(tmp_path, "opened", alert(0))
    for step in range(10_000):
        alerts_file.append(tmp_path, "opened", alert(step, kind="dead"))
        alerts_file.append(tmp_path, "ended", alert(step, step + 1, kind="dead"))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 2
    for path in tmp_path.iterdir():
        assert path.stat().st_size < alerts_file.MAX_BYTES + 1000
    assert json.loads(texts(tmp_path)[0])["event"] == "continued"
    assert json.loads(texts(tmp_path)[0])["kind"] == "vanishing"
    assert [line["step"] for line in alerts_file.read(tmp_path) if line["event"] == "ended"] == list(range(10_000))


def test_files_that_were_put_aside_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts_file, "MAX_BYTES", 3000)
    alerts_file.append(tmp_path, "opened", alert(0))
    for step in range(200):
        alerts_file.append(tmp_path, "opened", alert(step, kind="dead"))
        alerts_file.append(tmp_path, "ended", alert(step, step + 1, kind="dead"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alerts.jsonl", "alerts.jsonl.1", "alerts.jsonl.2"]
    lines = alerts_file.read(tmp_path)
    steps = [line["step"] for line in lines if line["event"] == "ended"]
    assert steps == list(range(steps[0], 200))
    assert {line["event"] for line in lines if line["kind"] == "vanishing"} == {"continued"}
    alerts_file.append(tmp_path, "ended", alert(0, 200))
    for step in range(200, 260):
        alerts_file.append(tmp_path, "opened", alert(step, kind="dead"))
        alerts_file.append(tmp_path, "ended", alert(step, step + 1, kind="dead"))
    assert "vanishing" not in (tmp_path / alerts_file.NAME).read_text()


def sick() -> Any:
    return Classifier(deep_net(nn.Sigmoid), lr=0.01)


def test_a_run_resumed_elsewhere_repeats_what_is_open_once(tmp_path: Path) -> None:
    with pytest.warns(GradWatchWarning):
        trainer = fit(GradWatch(), sick(), directory=tmp_path / "first", max_steps=15)
    trainer.save_checkpoint(tmp_path / "at15.ckpt")
    for steps in (20, 25):
        trainer = quiet_trainer(GradWatch(), directory=tmp_path / "second", max_steps=steps)
        trainer.fit(sick(), digits(), ckpt_path=tmp_path / "at15.ckpt")  # a warning would be an error here
    first, second = (alerts_file.read(tmp_path / name) for name in ("first", "second"))
    assert [(line["event"], line["kind"], line["run"]) for line in first] == [("opened", "vanishing", "first")]
    assert [(line["event"], line["kind"], line["run"]) for line in second] == [("continued", "vanishing", "second")]
    assert {**second[0], "event": "", "time": "", "run": ""} == {**first[0], "event": "", "time": "", "run": ""}


def test_a_run_resumed_in_its_directory_repeats_nothing(tmp_path: Path) -> None:
    with pytest.warns(GradWatchWarning):
        trainer = fit(GradWatch(), sick(), directory=tmp_path, max_steps=15)
    trainer.save_checkpoint(tmp_path / "at15.ckpt")
    before = texts(tmp_path)
    trainer = quiet_trainer(GradWatch(), directory=tmp_path, max_steps=25)
    trainer.fit(sick(), digits(), ckpt_path=tmp_path / "at15.ckpt")
    assert texts(tmp_path) == before
