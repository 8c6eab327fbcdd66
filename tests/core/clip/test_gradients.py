"""Gradients of every container, dtype and device are changed in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.operators import Operators
from lightning_gradwatch.core.clip import AdaGC, ClipPolicy, MaxNorm, MaxValue
from lightning_gradwatch.core.clip.gradients import multiply_all_, multiply_each_, multiply_half_
from tests.core.clip.training import (
    OF_THE_TOTAL,
    clip,
    dense,
    make_clipper,
    name_of,
    norms_of,
    one_rounding,
)
from tests.tasks import with_gradients


def many_kinds() -> list[Tensor | None]:
    torch.manual_seed(1)
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 3, 0]]), torch.randn(3, 2), (5, 2))
    conjugate = torch.randn(4, dtype=torch.complex64).conj()
    return [
        torch.randn(3, 3),
        None,
        twice,
        conjugate,
        torch.randn(2).double(),
        torch.randn(4).bfloat16(),
        torch.empty(0),
    ]


def test_a_cpu_writes_only_to_gradients_that_are_clipped() -> None:
    gradients = [torch.full((3,), -0.0), torch.ones(2)]
    versions = [gradient._version for gradient in gradients]
    multiply_all_(gradients, torch.tensor(1.0))
    assert [gradient._version for gradient in gradients] == versions
    multiply_all_(gradients, torch.tensor(0.5))
    assert gradients[1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("policy", [MaxNorm(0.3), AdaGC(lambda_abs=0.3), MaxValue(0.2)], ids=name_of)
def test_every_container_is_clipped_as_if_it_were_dense(policy: ClipPolicy) -> None:
    parameters = with_gradients(*many_kinds())
    others = [
        g if g is None else dense(g).resolve_conj().to(torch.promote_types(g.dtype, torch.double)) for g in many_kinds()
    ]
    norms = norms_of(parameters)
    before = float(norms.clamp(min=0).norm())
    clipping = clip(make_clipper(policy, parameters), parameters)
    limit = 0.3 / (before + 1e-6)
    if not isinstance(policy, MaxValue):
        expected = [g if g is None else g * limit for g in others]
    else:
        limit = 0.2
        expected = [
            g if g is None
            else torch.complex(g.real.clamp(-limit, limit), g.imag.clamp(-limit, limit)) if g.is_complex()
            else g.clamp(-limit, limit)
            for g in others
        ]  # fmt: skip
    for ours, right in zip(parameters, expected, strict=True):
        if right is None:
            assert ours.grad is None
            continue
        assert ours.grad is not None
        torch.testing.assert_close(dense(ours.grad).to(right.dtype), right, **one_rounding(ours.dtype))
    after = norms_of(parameters)
    assert clipping.total_norm.item() == pytest.approx(before, rel=1e-6)
    assert clipping.clipped_norm.item() == pytest.approx(float(after.clamp(min=0).norm()), rel=1e-3)
    total = clipping.total_norm.item()
    assert clipping.coefficient.item() == pytest.approx(
        clipping.clipped_norm.item() / total if total else 1.0, rel=1e-5
    )
    ratios = torch.where(norms > 0, after / norms, 1.0)
    torch.testing.assert_close(clipping.coefficients, ratios, rtol=5e-3, atol=0)


def test_half_precision_is_multiplied_by_a_number_of_single_precision() -> None:
    """0.999 is 1 in bfloat16: with a rounded coefficient nothing would be clipped at all."""
    tensor, factor = torch.linspace(-3, 3, 1001).bfloat16(), torch.tensor(0.999)
    expected = (tensor.double() * 0.999).bfloat16()
    multiply_half_([tensor], factor)
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize("policy", [*OF_THE_TOTAL, AdaGC(lambda_abs=0.5)], ids=name_of)
def test_parameters_may_live_on_several_devices(policy: ClipPolicy) -> None:
    alone, mixed = with_gradients(torch.ones(3)), with_gradients(torch.ones(3))
    mixed.append(nn.Parameter(torch.empty(2, device="meta")))
    mixed[1].grad = torch.empty(2, device="meta")
    one, two = make_clipper(policy, alone), make_clipper(policy, mixed)
    for _ in range(6):
        one.clip_(torch.tensor([2.0]))
        two.clip_(torch.tensor([2.0, 0.0]))
    assert alone[0].grad is not None
    assert mixed[0].grad is not None
    assert torch.equal(alone[0].grad, mixed[0].grad)


def test_gradients_of_one_device_and_dtype_are_multiplied_together() -> None:
    gradients = [torch.ones(2), torch.ones(2).double(), torch.ones(3), torch.ones(2, device="meta"), torch.ones(())]
    for multiply in (
        lambda: multiply_all_(gradients, torch.tensor(0.5)),
        lambda: multiply_each_(gradients, [torch.tensor(0.5)] * 5),
    ):
        with Operators() as operators:
            multiply()
        assert operators.seen["aten::_foreach_mul_"] == 3
    assert [g.flatten()[0].item() for g in gradients if g.device.type == "cpu"] == [0.25] * 4
