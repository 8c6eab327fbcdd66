"""AdaGC against its paper, written down a second time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_gradwatch.core.clip import AdaGC
from tests.core.clip.training import Training, clip, make_clipper
from tests.tasks import with_gradients


class PaperAdaGC:
    """Wang et al. 2025, algorithm 1 without Adam, on Python floats."""

    def __init__(self, policy: AdaGC) -> None:
        self.policy, self.steps = policy, 0
        self.running: list[float] = []

    def factors(self, norms: list[float]) -> list[float]:
        policy, self.steps = self.policy, self.steps + 1
        if self.steps <= policy.warmup_steps:
            factor = min(policy.lambda_abs / math.hypot(*norms), 1.0)
            clipped = [factor * n for n in norms]
            self.running = [min(g, n) for g, n in zip(self.running, clipped, strict=True)] if self.running else clipped
            return [factor] * len(norms)
        factors = [min(policy.lambda_rel * g / n, 1.0) for g, n in zip(self.running, norms, strict=True)]
        for i, factor in enumerate(factors):
            self.running[i] = policy.beta * self.running[i] + (1 - policy.beta) * factor * norms[i]
        return factors


def test_adagc_is_the_papers() -> None:
    policy = AdaGC(lambda_rel=1.1, beta=0.9, lambda_abs=2.0, warmup_steps=10)
    training, paper = Training(policy), PaperAdaGC(policy)
    for _ in range(100):
        before, clipping = training.step()
        factors = paper.factors([float(g.norm()) for g in before])
        assert clipping.coefficients.tolist() == pytest.approx(factors, rel=1e-4)
        for was, now, factor in zip(before, training.gradients(), factors, strict=True):
            torch.testing.assert_close(now, was * factor, rtol=1e-4, atol=0)
    assert len({round(f, 6) for f in factors}) > 1


def test_adagc_frees_a_tensor_whose_gradients_begin_with_zero_or_late() -> None:
    parameters = with_gradients(torch.ones(1), torch.zeros(1), None)
    clipper = make_clipper(AdaGC(warmup_steps=2, lambda_abs=10.0), parameters)
    for _ in range(5):
        clip(clipper, parameters)
    for p in parameters:
        p.grad = torch.full_like(p, 2.0)
    assert clip(clipper, parameters).coefficients.tolist() == pytest.approx([1.05 / 2, 1.0, 1.0])
    for p in parameters:
        p.grad = torch.full_like(p, 4.0)
    assert clip(clipper, parameters).coefficients.tolist()[1:] == pytest.approx([1.05 * 2 / 4] * 2)


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("lambda_rel", math.inf, "a number, positive and finite"),
        ("lambda_abs", -1.0, "a number, positive and finite"),
        ("beta", 0.0, r"a number, in \(0, 1\)"),
        ("warmup_steps", 0, "an integer of 1 or more"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        AdaGC(**{argument: value})
