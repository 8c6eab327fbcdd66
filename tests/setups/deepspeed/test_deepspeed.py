"""DeepSpeed in two real processes, against one process that holds everything and sees the same batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.setups.deepspeed.deepspeed_training import ACCUMULATING, measure
from tests.setups.processes import run_ranks
from tests.setups.published import Numbers, numbers
from tests.tasks import read_events

OUTPUTS = "gradwatch/layers/output_grad_norm"
LAYERS = ["net.0", "net.1", "net.3", "net.4", "net.5"]
Told = tuple[Path, list[dict[str, Any]]]
pytestmark = pytest.mark.slow


def told_by(function: str, directory: Path) -> Told:
    """What each rank tells, when it runs a function of the training module."""
    home = "tests.setups.deepspeed"
    script = f"from {home} import deepspeed_training as training\n\ntraining.run(training.{function})\n"
    return directory, run_ranks(script, directory)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    """One process, on the whole batches."""
    found = {}
    for name, options in (("", {}), (" accumulating", ACCUMULATING)):
        directory = tmp_path_factory.mktemp("alone")
        measure(0, directory, **options)
        found[name] = numbers(directory)
    return found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_one", tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_all", tmp_path_factory.mktemp("measured"))


def assert_same(directory: Path, alone: Numbers) -> None:
    """Every number at every step to 1e-5.

    The loss of a rank is the mean over its own half of the batch, so that the gradients at its layers' outputs are
    twice those of the whole batch; the root mean square over both ranks is larger by the root of two.
    """
    here = numbers(directory)
    assert here.keys() == alone.keys()
    assert len({tag for tag, _ in here}) > 20
    for place, value in alone.items():
        expected = torch.tensor(value, dtype=torch.float64)
        if place[0] == OUTPUTS:
            expected = torch.where(expected > 0, expected * 2**0.5, expected)
        found = torch.tensor(here[place], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, equal_nan=True, msg=str(place))


def assert_named(directory: Path) -> None:
    content = read_events(directory).SummaryMetadata("gradwatch/layers/grad_norm_steps").plugin_data.content
    assert json.loads(content)["layers"] == LAYERS


def test_the_numbers_are_those_of_one_process(usual: Told, alone: dict[str, Numbers]) -> None:
    directory, ranks = usual
    assert_same(directory / "2", alone[""])
    assert_named(directory / "2")
    assert ranks[0] == ranks[1]
    assert not ranks[0]["2"]["is_off"]


@pytest.mark.parametrize("how", ["", " accumulating"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_at_every_stage_the_numbers_are_those_of_one_process(
    usual: Told, measured: Told, alone: dict[str, Numbers], stage: int, how: str
) -> None:
    name = f"{stage}{how}"
    directory, ranks = usual if name == "2" else measured
    assert_same(directory / name, alone[how])
    assert_named(directory / name)
    assert ranks[0][name] == ranks[1][name]
    assert not ranks[0][name]["is_off"]
