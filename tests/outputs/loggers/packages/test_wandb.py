"""W&B, offline: what lies in the file that would be uploaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_gradwatch import GradWatch
from lightning_gradwatch.outputs import page
from tests.outputs.loggers.training import UntilPage, train

HEADER, BLOCK, FULL, LAST = 7, 32768, 1, 4
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(page, "CLOSE_S", 200.0)


def records(path: Path) -> Iterator[Any]:
    """The records of a file: LevelDB's log format, behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(content):
        rest = BLOCK - place % BLOCK
        if rest < HEADER:  # padding
            place += rest
            continue
        size, part = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if part in (FULL, LAST):
            yield Record.FromString(whole)
            whole = b""


class Arrived:
    """What lies below a directory of the run there."""

    def __init__(self, directory: Path) -> None:
        import wandb

        wandb.finish()
        wandb.teardown()  # until its process has ended, not all is on the disk
        (path,) = directory.rglob("run-*.wandb")
        self.files = path.parent / "files"
        self.records = list(records(path))

    def rows(self) -> list[dict[str, Any]]:
        """What was logged, row by row."""
        rows = []
        for record in self.records:
            rows += [_nested(record.history.item)] if record.HasField("history") else []
        return rows

    def values(self, key: str) -> list[Any]:
        """The values of a key, with the step."""
        return [(row["trainer/global_step"], row[key]) for row in self.rows() if key in row]

    def summary(self, key: str) -> list[Any]:
        """What a key of the summary was set to."""
        updates = [_nested(record.summary.update) for record in self.records if record.HasField("summary")]
        return [update[key] for update in updates if key in update]


def _nested(items: Any) -> dict[str, Any]:
    """Values by their keys; those of an object are written one by one."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        within = found
        for name in outer:
            within = within.setdefault(name, {})
        within[last] = json.loads(item.value_json)
    return found


def test_layers_alerts_and_page_arrive(tmp_path: Path) -> None:
    train(WandbLogger(project="project", save_dir=tmp_path), tmp_path, GradWatch(layer_cards=3))
    arrived = Arrived(tmp_path)
    # norms of as many layers as have cards, from the input to the loss, under one prefix
    norms = {key for row in arrived.rows() for key in row if key.startswith("grad_norm/")}
    assert norms == {"grad_norm/net.0", "grad_norm/net.20", "grad_norm/net.38"}
    assert [step for step, _ in arrived.values("grad_norm/net.0")] == [4, 9, 14, 19, 24, 29]
    assert [step for step, _ in arrived.values("gradwatch/vanishing")] == [4, 9, 14, 19, 24, 29]
    # histograms
    (step, first), *_ = arrived.values("grad_log10/net.0")
    assert step == 0
    assert first["_type"] == "histogram"
    assert len(first["bins"]) == len(first["values"]) + 1
    assert sum(first["values"]) > 100
    assert first["bins"][-1] < 0
    # the alert, once
    (alert,) = [record.alert for record in arrived.records if record.HasField("alert")]
    assert alert.title == "GradWatch: vanishing since step 9"
    assert "Try: " in alert.text
    assert arrived.summary("gradwatch/open_alerts")[-1] == "vanishing since step 9 in net.0"
    # the page, as a panel and with the alerts as an artifact
    step, panel = arrived.values("gradwatch/page")[-1]
    assert step == 29
    assert panel["_type"] == "html-file"
    (lying,) = tmp_path.rglob(page.NAME)
    assert (arrived.files / panel["path"]).read_bytes() == lying.read_bytes()
    assert len(lying.read_bytes()) == panel["size"] > 100_000
    artifact = [record.artifact for record in arrived.records if record.HasField("artifact")][-1]
    assert {entry.path for entry in artifact.manifest.contents} == {page.NAME, "alerts.jsonl"}


def test_a_page_is_there_while_training_goes_on(tmp_path: Path) -> None:
    stopping = UntilPage(tmp_path)
    train(WandbLogger(project="project", save_dir=tmp_path), tmp_path, callbacks=(stopping,), max_steps=100_000)
    first, last = Arrived(tmp_path).values("gradwatch/page")
    assert 9 < first[0] <= last[0]
    assert first[1]["sha256"] != last[1]["sha256"]


def test_no_cards_and_no_record_leave_the_run_level_numbers_and_the_alert(tmp_path: Path) -> None:
    watch = GradWatch(layer_cards=0, record=False)
    train(WandbLogger(project="project", save_dir=tmp_path), tmp_path, watch)
    arrived = Arrived(tmp_path)
    keys = {key for row in arrived.rows() for key in row}
    assert "gradwatch/vanishing" in keys
    assert not {key for key in keys if key.startswith(("grad_norm/", "grad_log10/", "gradwatch/page"))}
    assert sum(record.HasField("alert") for record in arrived.records) == 1
    assert not list(tmp_path.rglob(page.NAME))


def test_one_record_and_one_page_beside_the_first_of_several(tmp_path: Path) -> None:
    train([CSVLogger(tmp_path, "csv"), WandbLogger(project="project", save_dir=tmp_path)], tmp_path)
    # that of the alert, if it was made before the run ended, and that of the end
    assert len(Arrived(tmp_path).values("gradwatch/page")) in (1, 2)
    (lying,), (events,) = tmp_path.rglob(page.NAME), tmp_path.rglob("*tfevents*")
    assert lying.parent == events.parent == tmp_path / "csv" / "version_0"


def test_the_notebook_shows_what_lies_in_wandb(tmp_path: Path) -> None:
    root, target = Path(__file__).parents[4], tmp_path / "executed.ipynb"
    command = [sys.executable, str(root / ".ci/notebook.py"), str(root / "examples/with_wandb.ipynb"), str(target)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / "ipython")}
    ran = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    said = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert "vanishing since step 9 in net.0" in said
    assert said.count("grad_norm/net.") == 8
    assert list(tmp_path.rglob("run-*.wandb"))
