"""AutoClip against numpy's percentile."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradwatch.core.clip import Percentile
from lightning_gradwatch.core.clip.percentile import percentile_threshold
from tests.core.clip.training import Training, clip, make_clipper
from tests.tasks import with_gradients


@given(
    st.lists(st.floats(2.0**-10, 2.0**10, width=32) | st.just(math.nan), min_size=1, max_size=30),
    st.floats(0.125, 100, width=32),
)
def test_the_percentile_is_numpys_and_ignores_skipped_steps(history: list[float], percentile: float) -> None:
    found = percentile_threshold(torch.tensor(history), percentile).item()
    known = [value for value in history if not math.isnan(value)]
    assert found == pytest.approx(np.percentile(known, percentile) if known else math.inf, rel=1e-4)


@pytest.mark.parametrize(("history", "percentile"), [(torch.ones(3), 0), (torch.ones(3), 101), (torch.ones(0), 10)])
def test_a_percentile_of_nothing_is_refused(history: Tensor, percentile: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        percentile_threshold(history, percentile)


@pytest.mark.parametrize("percentile", [10.0, 62.5, 100.0])
def test_autoclip_clips_at_the_percentile_of_its_window(percentile: float) -> None:
    training, totals = Training(Percentile(percentile, window=7, first_steps=3)), []
    for step in range(40):
        before, clipping = training.step()
        totals.append(math.hypot(*(float(g.norm()) for g in before)))
        threshold = np.percentile(totals[-7:], percentile) if step >= 3 else min(totals)
        assert clipping.threshold.item() == pytest.approx(threshold, rel=1e-5)
        factor = min(1.0, threshold / totals[-1])
        for was, now in zip(before, training.gradients(), strict=True):
            torch.testing.assert_close(now, was * factor, rtol=1e-5, atol=0)
        assert clipping.clipped_norm.item() == pytest.approx(min(threshold, totals[-1]), rel=1e-5)


def test_tiny_gradients_are_clipped_by_the_same_share() -> None:
    """An absolute epsilon as in torch's clipping would shrink norms of 1e-8 a hundredfold."""
    factors = []
    for size in (1.0, 1e-8):
        parameters = with_gradients(torch.ones(1))
        clipper = make_clipper(Percentile(50, first_steps=0), parameters)
        for value in (1.0, 2.0, 4.0):
            parameters[0].grad = torch.tensor([value * size])
            clipping = clip(clipper, parameters)
        factors.append(clipping.coefficients.item())
    assert factors == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("percentile", 0, r"a number, in \(0, 100\]"),
        ("percentile", 100.5, r"a number, in \(0, 100\]"),
        ("percentile", math.nan, r"a number, in \(0, 100\]"),
        ("percentile", "high", r"a number, in \(0, 100\]"),
        ("window", 1, "an integer of 2 or more"),
        ("window", 2.5, "an integer of 2 or more"),
        ("first_steps", -1, "an integer of 0 or more"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        Percentile(**{argument: value})
