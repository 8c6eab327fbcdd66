"""A fixed value is torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradwatch.core.clip import MaxValue
from tests.core.clip.training import Training, clip, make_clipper


def test_a_fixed_value_is_torchs_own() -> None:
    training, other = Training(MaxValue(0.4)), Training(MaxValue(0.4))
    other.draw()
    torch.nn.utils.clip_grad_value_(other.parameters, 0.4)
    _, clipping = training.step()
    assert all(torch.equal(a, b) for a, b in zip(training.gradients(), other.gradients(), strict=True))
    assert clipping.threshold.item() == pytest.approx(0.4)


def test_on_the_host_only_a_gradient_with_an_element_above_the_limit_is_written() -> None:
    gradients = [torch.linspace(-1, 1, 900).view(30, 30), torch.full((30, 30), 0.4), torch.full((30, 30), 1e-5)]
    parameters = [nn.Parameter(torch.zeros(30, 30)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    before, versions = gradients[0].norm(), [gradient._version for gradient in gradients]
    clipping = clip(make_clipper(MaxValue(0.5), parameters), parameters)
    assert [g._version > version for g, version in zip(gradients, versions, strict=True)] == [True, False, False]
    assert gradients[0].abs().max() == 0.5
    assert clipping.coefficients.tolist() == pytest.approx([(gradients[0].norm() / before).item(), 1, 1])


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
