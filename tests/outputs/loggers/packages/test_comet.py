"""Comet, offline: what lies in the archive that would be uploaded."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
from lightning.pytorch.loggers import CometLogger

from lightning_gradwatch import GradWatch
from lightning_gradwatch.outputs import page
from tests.outputs.loggers.training import train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def test_layers_alerts_and_page_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "CLOSE_S", 200.0)
    monkeypatch.setenv("COMET_START_ONLINE", "false")  # Lightning's own `online=False` switches the experiment off
    logger = CometLogger(offline_directory=str(tmp_path / "comet"), api_key="none")
    train(logger, tmp_path, GradWatch(layer_cards=3))
    logger.experiment.end()
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with ZipFile(archive) as opened:
        messages = [json.loads(line) for line in opened.read("messages.json").decode().splitlines()]
        files = {name: opened.read(name) for name in opened.namelist()}
    metrics = [one["payload"]["metric"] for one in messages if one["type"] == "metric_msg"]
    norms = [(m["metricName"], m["step"]) for m in metrics if m["metricName"].startswith("grad_norm/")]
    assert {name for name, _ in norms} == {f"grad_norm/net.{place}" for place in (0, 20, 38)}
    assert [step for name, step in norms if name == "grad_norm/net.0"] == [4, 9, 14, 19, 24, 29]
    # distributions, the alert as a text, the page and the file of alerts as assets
    uploads = [one["payload"] for one in messages if one["type"] == "file_upload"]
    assert {
        (upload["upload_type"], upload["additional_params"]["fileName"])
        for upload in uploads
        if upload["upload_type"] in ("asset", "histogram3d")
    } == {
        *(("histogram3d", f"grad_log10/net.{place}") for place in (0, 20, 38)),
        ("asset", page.NAME),
        ("asset", "alerts.jsonl"),
    }
    (text,) = [upload for upload in uploads if upload["upload_type"] == "text-sample"]
    assert text["metadata"] == {"kind": "vanishing", "layer": "net.0", "cause": "saturating_activation"}
    assert b"Try: " in files[text["file_path"]]
    # the page as HTML
    (lying,) = (tmp_path / "comet").rglob(page.NAME)
    shown = [one["payload"]["htmlOverride"] for one in messages if one["type"] == "htmlOverride"]
    assert len(shown) in (1, 2)  # that of the alert, if it was made before the run ended, and that of the end
    assert shown[-1] == lying.read_text()
    # open alerts
    others = [one["payload"] for one in messages if one["type"] == "log_other"]
    marks = [one["value"] for one in others if one["key"] == "gradwatch/open_alerts"]
    assert marks == ["none", "vanishing since step 9 in net.0"]
