"""A watch that fails on one of two ranks, each with a part of the gradients: none waits, and the training goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.setups.failing import BACKWARD, FAILURES, assert_survived
from tests.setups.processes import run_ranks

pytestmark = pytest.mark.slow

ALL = {**FAILURES, **BACKWARD}
SCRIPTS = {
    "fsdp1": """
from tests.setups import failing, fsdp1_training as training

def train(watch):
    return training.train("policy", watch, make_optimizer=training.sgd)

training.run(lambda _: failing.train_all({**failing.FAILURES, **failing.BACKWARD}, train, training.full_weights))
""",
    "fsdp2": """
from tests.setups import failing, sharded_training as training
from tests.setups.fsdp1_training import run

def train(watch):
    return training.train("fsdp", watch)

run(lambda _: failing.train_all({**failing.FAILURES, **failing.BACKWARD}, train, training.full_weights))
""",
}


@pytest.fixture(scope="module", params=SCRIPTS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_ranks(SCRIPTS[request.param], tmp_path_factory.mktemp(request.param))
    return found


@pytest.mark.parametrize("what", ALL)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_watch_that_fails_on_one_rank_ends_on_all_and_the_training_goes_on(
    ranks: list[dict[str, Any]], rank: int, what: str
) -> None:
    assert_survived(ranks, rank, what, ALL[what])
