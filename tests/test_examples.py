"""The examples, run as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tasks import read_events, scalars

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN_LEVEL = {
    "gradwatch/total_norm",
    "gradwatch/total_norm_min",
    "gradwatch/total_norm_median",
    "gradwatch/total_norm_max",
    "gradwatch/vanishing",
    "gradwatch/decades_lost",
    "gradwatch/alerts",
    "gradwatch/nonfinite_steps",
}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--directory", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return directory, result.stdout


def test_quickstart_says_what_was_found_in_plain_words(quickstart: tuple[Path, str]) -> None:
    _, text = quickstart
    assert "ALERT vanishing at step 9, layer net.0: 11.1 orders of magnitude lost" in text
    assert "in 19 sigmoids (each lets 24% through)" in text
    assert "Try: ReLU, GELU or SiLU with He initialisation" in text
    assert text.count("nothing to complain about") == 1
    assert "tensorboard.main --logdir" in text


@pytest.mark.parametrize("run", ["sigmoid", "relu_he"])
def test_quickstarts_event_files_have_every_tag(quickstart: tuple[Path, str], run: str) -> None:
    events = read_events(quickstart[0] / run)
    tags = events.Tags()
    cards = [f"net.{2 * i}" for i in (0, 3, 5, 8, 11, 14, 16, 19)]  # eight of the twenty layers, with both ends
    assert set(tags["scalars"]) >= RUN_LEVEL
    assert {tag for tag in tags["scalars"] if tag.startswith("grad_norm/")} == {f"grad_norm/{card}" for card in cards}
    assert set(tags["histograms"]) == {f"grad_log10/{card}" for card in cards}
    assert list(scalars(events, "gradwatch/total_norm")) == list(scalars(events, "loss")) == list(range(4, 300, 5))


def test_quickstarts_sick_network_alerts_and_its_twin_does_not(quickstart: tuple[Path, str]) -> None:
    directory, _ = quickstart
    (line,) = (directory / "sigmoid/alerts.jsonl").read_text().splitlines()
    alert = json.loads(line)
    assert (alert["kind"], alert["level"]) == ("vanishing", "alert")
    assert alert["step"] < 15
    assert not (directory / "relu_he/alerts.jsonl").exists()
    assert max(scalars(read_events(directory / "relu_he"), "gradwatch/vanishing").values()) < 0.5
    assert (directory / "depth_profiles.png").stat().st_size > 10_000


def test_a_hand_written_loop_sees_what_the_trainer_sees(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "plain_torch.py"), "--directory", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "ALERT vanishing at step 9" in result.stdout
    assert "19 sigmoids without normalisation" in result.stdout
    events = read_events(tmp_path)
    assert set(events.Tags()["scalars"]) >= RUN_LEVEL
    assert list(scalars(events, "gradwatch/total_norm")) == list(range(9, 60, 10))
    documents = [event.tensor_proto.string_val[0] for event in events.Tensors("gradwatch/alert_document")]
    assert b'"kind": "vanishing"' in documents[-1]


def test_the_small_gpt_learns_alike_in_fabric_and_in_a_plain_loop(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "small_gpt.py"), "--directory", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    told = [line.partition(": the loss fell from ") for line in result.stdout.splitlines() if "the loss fell" in line]
    (_, _, by_fabric), (_, _, by_hand) = told
    first, last = map(float, by_fabric.split(" to "))
    assert by_fabric == by_hand
    assert last < first - 2
    norms = [scalars(read_events(tmp_path / name), "gradwatch/total_norm") for name in ("fabric", "plain")]
    assert list(norms[0]) == [9, 19, 29, 39, 49, 59]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert "GradWatch" not in result.stderr  # it is healthy
    for name in ("fabric", "plain"):
        assert torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["watch"]["num_steps"] == 31
