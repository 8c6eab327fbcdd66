from __future__ import annotations

import math

import pytest

from lightning_gradwatch.core.history.branches import MIN_LAYERS, Branches
from lightning_gradwatch.core.history.profile import Profile
from tests.core.builders import saved_and_loaded

DEEP, OTHER = (tuple(f"{tower}.{i}" for i in range(8)) for tower in ("deep", "other"))


def towers(decades: float) -> Profile:
    """Two towers of eight layers, one behind the other, of which the first loses ``decades``."""
    norms = [10 ** (decades * i / 7) for i in range(8)]
    return Profile(DEEP + OTHER, (*norms, *[1.0] * 8), at_outputs=True)


def followed(samples: int, decades: float = 4.0) -> Branches:
    branches = Branches()
    for _ in range(samples):
        branches.follow([DEEP, OTHER], 16)
        branches.add(towers(decades))
    return branches


def lost(branches: Branches) -> dict[str, float]:
    return {profile.layers[0]: depth.decades for depth, profile in branches.known()}


def test_each_branch_is_judged_by_its_own_layers_after_ten_samples() -> None:
    assert lost(followed(9)) == {}
    assert lost(followed(10)) == pytest.approx({"deep.0": 4 - 2 * 4 / 7, "other.0": 0.0})


def test_short_branches_and_one_that_is_nearly_the_whole_are_left_to_the_whole() -> None:
    branches = Branches()
    for _ in range(12):
        branches.follow([DEEP[: MIN_LAYERS - 1], OTHER], 10)
        branches.add(towers(4.0))
    assert lost(branches) == {}


def test_a_branch_that_is_no_more_is_forgotten() -> None:
    branches = followed(12)
    branches.keep(DEEP)  # the other's layers are gone, and what is left is the whole network
    assert lost(branches) == {}
    branches = followed(12)
    branches.follow([OTHER], 16)
    assert list(lost(branches)) == ["other.0"]


def test_norms_of_weights_say_nothing_of_branches() -> None:
    branches = Branches()
    for _ in range(12):
        branches.follow([DEEP, OTHER], 16)
        branches.add(Profile(DEEP + OTHER, (1.0,) * 16, at_outputs=False))
    assert lost(branches) == {}


def test_a_resumed_run_goes_on_with_its_branches() -> None:
    before, after = followed(9), Branches()
    after.load_state_dict(saved_and_loaded(before.state_dict()))
    for branches in (before, after):
        branches.add(towers(4.0))
    assert lost(after) == lost(before) != {}


@pytest.mark.parametrize("state", [{"layers": [[]]}, {"layers": 3}, {"depths": {"deep.0": {"recent": [math.nan]}}}])
def test_a_damaged_state_starts_afresh(state: dict[str, object]) -> None:
    branches = Branches()
    branches.load_state_dict(state)
    assert lost(branches) == {}
