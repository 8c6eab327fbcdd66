"""A fixed norm is torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradwatch.core.clip import MaxNorm
from tests.core.clip.training import DTYPES, clip, make_clipper, one_rounding
from tests.tasks import with_gradients


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fixed_norm_is_torchs_own_in_every_dtype(dtype: torch.dtype, max_norm: float) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(30, 7, dtype=torch.promote_types(dtype, torch.float32)) for _ in range(3)]
    parameters = with_gradients(*[g.to(dtype) for g in gradients])
    others = with_gradients(*[g.to(dtype).to(g.dtype).clone() for g in gradients])
    clipping = clip(make_clipper(MaxNorm(max_norm), parameters), parameters)
    total = torch.nn.utils.clip_grad_norm_(others, max_norm)
    assert clipping.total_norm.item() == pytest.approx(total.item(), rel=1e-6)
    for ours, torchs in zip(parameters, others, strict=True):
        assert ours.grad is not None
        assert torchs.grad is not None
        torch.testing.assert_close(ours.grad.to(torchs.grad.dtype), torchs.grad, **one_rounding(dtype))


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("max_norm", -1.0, "a number, positive and finite"),
        ("max_norm", True, "a number, positive and finite"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        MaxNorm(**{argument: value})
