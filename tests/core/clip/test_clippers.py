"""All policies on one optimizer: what they share, and what a checkpoint holds of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core.clip import POLICIES, AdaGC, MaxNorm, Percentile, ZScore, make_policies
from lightning_gradwatch.core.clip.clippers import Clippers

SAVED: dict[str, Any] = torch.load(Path(__file__).parents[2] / "data" / "clippers.pt", weights_only=True)
"""By the policy's name the state after 12 steps of ``give``, and what the next but one then was clipped by.

Written when all policies still stood in one file: it is what checkpoints of that time hold.
"""
CHOICES: dict[str, Any] = {
    "percentile": Percentile(25, window=8, first_steps=2),
    "zscore": ZScore(1.0, warmup_steps=3),
    "adagc": AdaGC(warmup_steps=3),
    "norm": MaxNorm(0.5),
}


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.linspace(-1, 2, 12).reshape(4, 3)), nn.Parameter(torch.linspace(1, 2, 5))]


def clippers(name: str, parameters: list[nn.Parameter]) -> Clippers:
    return Clippers(make_policies(CHOICES.get(name, name)), parameters, ["net.0", "net.1"])


def give(parameters: list[nn.Parameter], step: int) -> Tensor:
    """Set the gradients of a step, and say their norms."""
    gradients = []
    for i, p in enumerate(parameters):
        size = 20.0 if step % 5 == 3 else 1.0 + (7 * step + i) % 4
        gradients.append(size * torch.linspace(-1, 0.5 + i, p.numel()).reshape(p.shape))
        p.grad = gradients[-1]
    return torch.stack([gradient.norm() for gradient in gradients])


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Everything in a state by its path, tensors as their numbers."""
    if isinstance(state, Tensor):
        return {f"{prefix}:{state.dtype}": state.tolist()}
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else None
    if parts is None:
        return {prefix: state}
    return {path: leaf for key, part in parts for path, leaf in flat(part, f"{prefix}/{key}").items()}


@pytest.mark.parametrize("name", list(SAVED))
def test_a_checkpoint_of_an_older_version_goes_on_as_it_would_have(name: str) -> None:
    parameters = weights()
    heir = clippers(name, parameters)
    heir.load_state_dict(SAVED[name]["state"])
    assert flat(heir.state_dict()) == flat(SAVED[name]["state"])
    facts = heir.clip_(give(parameters, 13), None)
    torch.testing.assert_close(facts, SAVED[name]["next"], equal_nan=True)
    if any(clipper["memory"] for clipper in SAVED[name]["state"]["clippers"]):
        afresh = clippers(name, parameters).clip_(give(parameters, 13), None)
        assert not torch.equal(afresh.nan_to_num(-1), facts.nan_to_num(-1))


def test_the_older_checkpoint_has_a_state_of_every_policy_of_its_time() -> None:
    assert list(SAVED) == ["percentile", "zscore", "agc", "adagc", "norm", "value"]
    assert set(SAVED) <= {policy.name for policy in POLICIES}
