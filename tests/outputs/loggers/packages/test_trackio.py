"""Trackio, without a server: what lies in its database."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch import GradWatch
from lightning_gradwatch.outputs import page
from tests.outputs.loggers.training import train
from tests.test_guide import SECTIONS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def logger_of_the_recipe(project: str, name: str) -> Any:
    """A logger whose class is the one in the recipe."""
    (block,) = SECTIONS["recipes/loggers.md", "A logger for Trackio"]
    names: dict[str, Any] = {}
    exec(block.text, names)
    return names["TrackioLogger"](project, name)


def test_layers_alerts_and_page_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "CLOSE_S", 200.0)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(logger_of_the_recipe("project", "run"), tmp_path, GradWatch(layer_cards=3))
    with closing(sqlite3.connect(tmp_path / "trackio" / "project.db")) as database:
        rows = [(step, json.loads(text)) for step, text in database.execute("select step, metrics from metrics")]
        alerts = list(database.execute("select title, text, step from alerts"))
        manifests = [json.loads(text) for (text,) in database.execute("select manifest from artifact_versions")]
    # layers: norms and distributions
    norms = {key for _, row in rows for key in row if key.startswith("grad_norm/")}
    assert norms == {f"grad_norm/net.{place}" for place in (0, 20, 38)}
    assert [step for step, row in rows if "grad_norm/net.0" in row] == [4, 9, 14, 19, 24, 29]
    first = next(row["grad_log10/net.0"] for _, row in rows if "grad_log10/net.0" in row)
    assert len(first["bins"]) == len(first["values"]) + 1
    # the alert, once
    ((title, text, step),) = alerts
    assert (title, step) == ("GradWatch: vanishing", 9)
    assert "Try: " in text
    # the page, as a panel and with the alerts as an artifact
    (lying,) = (tmp_path / "gradwatch").rglob(page.NAME)
    step, panel = [(step, row["gradwatch/page"]) for step, row in rows if "gradwatch/page" in row][-1]
    assert step == 29
    assert (tmp_path / "trackio" / "media" / panel["file_path"]).read_bytes() == lying.read_bytes()
    assert {frozenset(entry["path"] for entry in manifest) for manifest in manifests} == {
        frozenset({page.NAME, "alerts.jsonl"})
    }
