"""The gallery, with few steps: sick networks are found, cured ones left alone. Heavy rows need the extra [gallery]."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradwatch import Alert

pytestmark = pytest.mark.slow
GALLERY = Path(__file__).parent.parent / "examples" / "gallery"
LIGHT = ["mlp", "cnn", "rnn", "language_model", "gan", "vae", "unet", "moe", "lora", "half_precision"]
HEAVY = ["translation", "detector"]
STEPS = {"gan": 48, "rnn": 80, "translation": 80}  # two optimizers; alerts that wait for 60 losses
FEW_STEPS = 24


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the rows share; the scripts find each other as when one of them is run."""
    monkeypatch.syspath_prepend(str(GALLERY))
    return importlib.import_module("common")


@pytest.mark.parametrize("name", LIGHT + HEAVY)
def test_sick_networks_are_found_and_cured_ones_are_left_alone(name: str, common: Any, tmp_path: Path) -> None:
    row = common.load(name)
    if isinstance(row, str):
        assert name in HEAVY, row
        pytest.skip(f"needs the extra [gallery]: {row}")
    torch.set_num_threads(1)
    steps = STEPS.get(name, FEW_STEPS)
    outcomes = {network.name: common.train(row, network, tmp_path, steps) for network in row.networks}
    assert [text for pair in row.pairs for text in common.objections(pair, outcomes)] == []
    common.draw(row, outcomes, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    for network in row.networks:
        assert list((tmp_path / name).glob("*/events.out.tfevents.*")), network.name


def test_every_script_is_a_row_of_the_table(common: Any) -> None:
    scripts = {path.stem for path in GALLERY.glob("*.py")} - {"__main__", "common", "prepare"}
    assert scripts == {*LIGHT, *HEAVY}
    main = (GALLERY / "__main__.py").read_text()
    assert all(name in main for name in scripts)


@pytest.mark.usefixtures("common")
def test_a_script_tells_the_verdicts_and_saves_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(GALLERY / "moe.py")
    monkeypatch.setattr(sys, "argv", [script, "--directory", str(tmp_path), "--steps", "12"])
    runpy.run_path(script, run_name="__main__")
    told = capsys.readouterr().out
    assert "sick: hard choice of the expert" in told
    assert "ALERT detached: mixture.router runs but never gets a gradient" in told
    assert told.count("nothing to complain about") == 1
    assert (tmp_path / "moe.png").stat().st_size > 10_000


def test_the_command_writes_table_file_and_pictures(tmp_path: Path) -> None:
    rows = ["moe", "vae"]
    command = [sys.executable, str(GALLERY), "--directory", str(tmp_path), "--steps", "12", "--workers", "1", "--only"]
    result = subprocess.run([*command, *rows], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "gallery.md").read_text()
    assert table.strip() == result.stdout.strip()
    assert "| hard choice of the expert | **detached**: detached | step 9 |" in table
    assert "| weighted by the router | silent |" in table
    moe, vae = json.loads((tmp_path / "gallery.json").read_text())["rows"]
    assert (moe["row"], vae["row"]) == ("moe", "vae")
    sick = vae["pairs"][0]["sick"]
    assert (sick["kind"], sick["cause"], sick["loss"]) == ("nonfinite", "input_scale", "nan")
    assert vae["pairs"][0]["cured"][0]["silent"]
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in rows)


def test_a_miss_a_false_alarm_and_a_wrong_cause_are_named(common: Any) -> None:
    pair = common.load("moe").pairs[0]
    alert = Alert("detached", "alert", 9, None, "router", 1.0, 1.0, "", cause="dead_relu")

    def objections(sick: list[Alert], cured: list[Alert]) -> list[str]:
        alerts = {pair.sick.name: sick, pair.cures[0].name: cured}
        return common.objections(pair, {name: common.Outcome(name, of, [1.0], [], 0.0) for name, of in alerts.items()})

    assert objections([], []) == ["hard choice of the expert: no detached"]
    assert objections([alert], []) == ["hard choice of the expert: ['dead_relu'] instead of detached"]
    assert objections([], [alert])[1:] == ["weighted by the router: false detached at step 9"]
