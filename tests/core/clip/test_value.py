"""A fixed value is torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradwatch.core.clip import MaxValue
from tests.core.clip.training import Training


def test_a_fixed_value_is_torchs_own() -> None:
    training, other = Training(MaxValue(0.4)), Training(MaxValue(0.4))
    other.draw()
    torch.nn.utils.clip_grad_value_(other.parameters, 0.4)
    _, clipping = training.step()
    assert all(torch.equal(a, b) for a, b in zip(training.gradients(), other.gradients(), strict=True))
    assert clipping.threshold.item() == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("max_value", 0, "a number, positive and finite"),
        ("max_value", None, "a number, positive and finite"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        MaxValue(**{argument: value})
