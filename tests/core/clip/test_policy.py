"""What every policy has: the gradients that it is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradwatch.core.clip import ClipPolicy, MaxNorm
from tests.core.clip.training import make_clipper
from tests.tasks import with_gradients


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("include", [3], "a glob or a list of globs"),
        ("exclude", [""], "a glob or a list of globs"),
        ("optimizer", 0, "the name of an optimizer"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        MaxNorm(**{argument: value})


def test_a_foreign_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="one of GradWatch's policies"):
        make_clipper(ClipPolicy(), with_gradients(torch.ones(1)))


def test_globs_become_tuples_and_policies_stay_frozen() -> None:
    policy = MaxNorm(2.0, include="net.*", exclude=["net.0", "net.1"], optimizer="generator")
    assert (policy.include, policy.exclude, policy.optimizer) == (("net.*",), ("net.0", "net.1"), "generator")
    assert hash(policy) == hash(MaxNorm(2.0, include=["net.*"], exclude=("net.0", "net.1"), optimizer="generator"))
    with pytest.raises(AttributeError):
        policy.max_norm = 3.0  # type: ignore[misc]
