"""A plain loop under torch's DDP and FSDP in two real processes, against one process that sees the whole batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.setups.loop_training import KINDS, NUM_STEPS, train
from tests.setups.processes import run_ranks
from tests.tasks import read_events, scalars

pytestmark = pytest.mark.slow
Told = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Told:
    directory = tmp_path_factory.mktemp("alone")
    return directory, [train("alone", directory), train("alone", directory / "clipped", auto_clip=1e-3)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Told:
    directory = tmp_path_factory.mktemp("ranks")
    return directory, run_ranks("from tests.setups.loop_training import run\n\nrun()\n", directory)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_layers_and_weights_are_those_of_one_process(kind: str, alone: Told, ranks: Told) -> None:
    (directory, (plain, clipped)), (there, told) = alone, ranks
    for rank in told:
        assert rank[kind]["plain"]["steps"] == NUM_STEPS
        assert rank[kind]["plain"]["probe"] == pytest.approx(plain["probe"], rel=1e-5)
        assert rank[kind]["clipped"] == pytest.approx(clipped["probe"], rel=1e-5)
        assert list(rank[kind]["plain"]["profile"]) == ["0", "2", "4", "6"]
    assert plain["probe"] != pytest.approx(clipped["probe"], rel=1e-3)  # so clipping did something
    expected = scalars(read_events(directory), "gradwatch/total_norm")
    assert list(expected) == [1, 3, 5, 7]
    assert scalars(read_events(there / kind), "gradwatch/total_norm") == pytest.approx(expected, rel=1e-5)
