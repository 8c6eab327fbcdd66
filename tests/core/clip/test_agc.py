"""AGC against its paper, written down a second time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.core.clip import AGC
from lightning_gradwatch.core.clip.agc import unitwise_norms
from tests.core.clip.training import DTYPES, clip, make_clipper, one_rounding


def paper_agc(weight: Any, gradient: Any, clip_factor: float, floor: float) -> Any:
    """Brock et al. 2021, equation 3, on numpy arrays, unit by unit."""
    if weight.ndim > 1:
        return np.stack([paper_agc(w.ravel(), g.ravel(), clip_factor, floor).reshape(w.shape)
                         for w, g in zip(weight, gradient, strict=True)])  # fmt: skip
    allowed, norm = clip_factor * max(float(np.linalg.norm(weight)), floor), float(np.linalg.norm(gradient))
    return gradient * (allowed / norm) if norm > allowed else gradient


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0])
def test_agc_is_the_papers_unit_by_unit(size: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.double)
    parameters = [nn.Parameter(torch.randn(s, dtype=wide).to(dtype)) for s in ((6, 4), (4,), (3, 2, 2, 2), ())]
    with torch.no_grad():
        parameters[0][2].zero_()
    for p in parameters:
        p.grad = (size * torch.randn(p.shape, dtype=wide)).to(dtype)
    assert parameters[0].grad is not None
    parameters[0].grad[1] = 0
    before = [p.grad.to(wide).clone().numpy() for p in parameters if p.grad is not None]
    clipping = clip(make_clipper(AGC(0.05, 1e-2), parameters), parameters)
    for p, was, factor in zip(parameters, before, clipping.coefficients.tolist(), strict=True):
        assert p.grad is not None
        expected = paper_agc(p.detach().to(wide).numpy(), was, 0.05, 1e-2)
        np.testing.assert_allclose(p.grad.to(wide).numpy(), expected, **one_rounding(dtype))
        assert factor == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(was), rel=1e-4)


def test_agc_lets_weights_leave_zero() -> None:
    parameter = nn.Parameter(torch.zeros(3, 4))
    parameter.grad = torch.ones(3, 4)
    clip(make_clipper(AGC(), [parameter]), [parameter])
    assert unitwise_norms(parameter.grad).flatten().tolist() == pytest.approx([0.01 * 1e-3] * 3)


def test_on_the_host_only_a_gradient_with_a_unit_above_its_limit_is_written() -> None:
    parameters = [nn.Parameter(torch.ones(4, 5)) for _ in range(2)]
    gradients = [torch.full((4, 5), 1e-3), torch.full((4, 5), 1e-3)]
    gradients[1][3] = 1
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    versions = [gradient._version for gradient in gradients]
    clip(make_clipper(AGC(), parameters), parameters)
    assert [g._version > version for g, version in zip(gradients, versions, strict=True)] == [False, True]
    assert gradients[1].norm(dim=1).tolist() == pytest.approx([1e-3 * 5**0.5] * 3 + [0.01 * 5**0.5])


def test_agc_takes_the_rows_of_a_sparse_gradient_as_units() -> None:
    torch.manual_seed(0)
    weight = torch.randn(9, 4)
    sparse = torch.sparse_coo_tensor(torch.tensor([[5, 1, 5, 7]]), torch.randn(4, 4), (9, 4))
    outcomes = []
    for gradient in (sparse, sparse.to_dense()):
        parameter = nn.Parameter(weight.clone())
        parameter.grad = gradient
        clipping = clip(make_clipper(AGC(), [parameter]), [parameter])
        outcomes.append((parameter.grad, clipping.coefficients))
    assert outcomes[0][0].is_sparse
    torch.testing.assert_close(outcomes[0][0].to_dense(), outcomes[1][0])
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1])


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("clip_factor", 0.0, "a number, positive and finite"),
        ("min_weight_norm", 0.0, "a number, positive and finite"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        AGC(**{argument: value})
