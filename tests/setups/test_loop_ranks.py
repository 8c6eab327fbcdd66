"""Fabric, and a plain loop, in two real processes, against one process that sees the whole batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.setups import fabric_training, loop_training
from tests.setups.processes import run_ranks
from tests.tasks import read_events, scalars

pytestmark = pytest.mark.slow
LOOPS = {"fabric": fabric_training, "plain": loop_training}
KINDS, NUM_STEPS = ("ddp", "fsdp1", "fsdp2"), 8
Told = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(loop: str, tmp_path_factory: pytest.TempPathFactory) -> Told:
    directory, train = tmp_path_factory.mktemp("alone"), LOOPS[loop].train
    return directory, [train("alone", directory), train("alone", directory / "clipped", auto_clip=1e-3)]


@pytest.fixture(scope="module")
def ranks(loop: str, tmp_path_factory: pytest.TempPathFactory) -> Told:
    directory, home = tmp_path_factory.mktemp("ranks"), LOOPS[loop].__name__
    return directory, run_ranks(f"from {home} import run\n\nrun()\n", directory)


@pytest.mark.parametrize("kind", KINDS)
def test_total_norms_and_weights_are_those_of_one_process(kind: str, alone: Told, ranks: Told) -> None:
    (directory, (plain, clipped)), (there, told) = alone, ranks
    for rank in told:
        assert rank[kind]["plain"]["steps"] == NUM_STEPS
        assert rank[kind]["plain"]["probe"] == pytest.approx(plain["probe"], rel=1e-5)
        assert rank[kind]["clipped"] == pytest.approx(clipped["probe"], rel=1e-5)
    assert plain["probe"] != pytest.approx(clipped["probe"], rel=1e-3)  # so clipping did something
    expected = scalars(read_events(directory), "gradwatch/total_norm")
    assert list(expected) == [1, 3, 5, 7]
    assert scalars(read_events(there / kind), "gradwatch/total_norm") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_have_the_models_own_names_and_every_rank_sees_them(kind: str, alone: Told, ranks: Told) -> None:
    plain = alone[1][0]
    for rank in ranks[1]:
        assert list(rank[kind]["plain"]["profile"]) == list(plain["profile"])
    assert list(plain["profile"]) == ["0", "2", "4", "6"]
