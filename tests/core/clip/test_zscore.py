"""ZClip against its paper, written down a second time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gradwatch.core.clip import ZScore
from tests.core.clip.training import Training


class PaperZClip:
    """Kumar et al. 2025, section 3, on Python floats."""

    def __init__(self, z_threshold: float, alpha: float, warmup_steps: int) -> None:
        self.limit, self.alpha, self.warmup_steps = z_threshold, alpha, warmup_steps
        self.seen: list[float] = []

    def target(self, norm: float) -> float:
        if len(self.seen) < self.warmup_steps:
            self.seen.append(norm)
            self.mean, self.variance = float(np.mean(self.seen)), float(np.var(self.seen))
            return norm
        z = (norm - self.mean) / (math.sqrt(self.variance) + 1e-6 * self.mean)
        if z > self.limit:
            norm = self.mean + self.limit**2 * math.sqrt(self.variance) / z
        self.mean = self.alpha * self.mean + (1 - self.alpha) * norm
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (norm - self.mean) ** 2
        return norm


def test_zclip_is_the_papers() -> None:
    training, paper, num_clipped = Training(ZScore(2.0, 0.9, 10)), PaperZClip(2.0, 0.9, 10), 0
    for _ in range(150):
        before, clipping = training.step()
        total = math.hypot(*(float(g.norm()) for g in before))
        target = paper.target(total)
        num_clipped += target < total
        for was, now in zip(before, training.gradients(), strict=True):
            torch.testing.assert_close(now, was * (target / total), rtol=1e-3, atol=0)
        assert (clipping.total_norm > clipping.threshold).item() == (target < total)
    assert 5 < num_clipped < 50


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("z_threshold", -2.5, "a number, positive and finite"),
        ("alpha", 1.0, r"a number, in \(0, 1\)"),
        ("warmup_steps", 1, "an integer of 2 or more"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        ZScore(**{argument: value})
