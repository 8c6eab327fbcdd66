from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core.alerts.underflow import UnderflowRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Finding
from tests.core.alerts.trained import classify, explained, relu_net, watched
from tests.core.builders import judged, observed


def underflow(dtype: str = "float32", lr: float | None = 0.1, is_scaled: Any = False, **shares: Any) -> list[Finding]:
    rule, history, found = UnderflowRule(), History(), []
    for step in range(4):
        observation = observed(step, dtype=dtype, lr=lr, **shares)
        history.add(observation, is_scaled)
        found += judged(rule, observation, history)
    return found


@pytest.mark.parametrize(
    ("dtype", "name", "threshold"),
    [
        ("float16", "output_zeros", 0.9),
        ("float16", "unchanged", 0.8),
        ("bfloat16", "unchanged", 0.8),
        ("float32", "below_eps", 0.9),
    ],
)
def test_rounding_that_swallows_the_middle_layer_is_found_at_the_second_look(
    dtype: str, name: str, threshold: float
) -> None:
    (finding,) = underflow(dtype, **{name: threshold + 0.01})
    assert (finding.kind, finding.step) == ("underflow", 1)
    assert underflow(dtype, **{name: threshold - 0.01}) == []


@pytest.mark.parametrize(
    ("dtype", "name"), [("float16", "output_zeros"), ("bfloat16", "unchanged"), ("float32", "below_eps")]
)
def test_the_value_of_an_underflow_is_the_share_that_is_lost(dtype: str, name: str) -> None:
    (finding,) = underflow(dtype, **{name: 0.95})
    assert finding.value == pytest.approx(0.95)


def test_what_is_no_matter_of_rounding_is_no_underflow() -> None:
    assert underflow("float32", unchanged=1.0) == []
    assert underflow("bfloat16", lr=0.0, unchanged=1.0) == []


def test_zeros_under_autocast_are_rounding_unless_the_loss_is_scaled() -> None:
    (finding,) = underflow("float32", output_zeros=0.95)  # known of float16 gradients alone
    assert finding.kind == "underflow"
    assert finding.value == pytest.approx(0.95)
    assert underflow("float32", output_zeros=0.85) == []
    assert underflow("float32", is_scaled=True, output_zeros=0.95) == []
    assert [f.kind for f in underflow("float16", is_scaled=True, output_zeros=0.95)] == ["underflow"]


def test_an_eps_above_the_gradient_is_named() -> None:
    alert = explained(watched(relu_net(3), 12, torch.optim.Adam, lr=1e-3, eps=10.0), "underflow", "adam_eps")
    assert "100% of the elements lies below Adam's eps" in alert.evidence
    assert watched(relu_net(3), 12, torch.optim.Adam, lr=1e-3) == []


def test_updates_that_bfloat16_loses_are_named() -> None:
    net = relu_net(3).to(torch.bfloat16)
    alert = explained(watched(net, 12, lr=1e-6), "underflow", "half_precision")
    assert "bfloat16 weights did not change" in alert.evidence


def test_gradients_that_float16_loses_are_named() -> None:
    net = relu_net(3).to(torch.float16)
    alert = explained(
        watched(net, 12, loss_of=lambda output, digit: 1e-7 * classify(output, digit)), "underflow", "half_precision"
    )
    assert "float16 gradients are exactly zero" in alert.evidence


def test_an_eps_above_the_gradient_is_named_whatever_the_precision() -> None:
    net = relu_net(3).to(torch.bfloat16)
    before = [p.detach().clone() for p in net.parameters()]
    alerts = watched(net, 12, torch.optim.Adam, lr=1.0, eps=10.0)
    assert all(float((p != b).float().mean()) > 0.5 for p, b in zip(net.parameters(), before, strict=True))
    explained(alerts, "underflow", "adam_eps")


class Autocast(nn.Module):
    """Float32 weights, half-precision arithmetic."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = relu_net(3), dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            out: Tensor = self.net(x)
        return out


def test_gradients_that_autocast_to_float16_loses_are_named() -> None:
    def faint(output: Tensor, digit: Tensor) -> Tensor:
        return 1e-7 * classify(output, digit)

    alert = explained(watched(Autocast(torch.float16), 12, loss_of=faint), "underflow", "half_precision")
    assert "float16 gradients are exactly zero" in alert.evidence
    assert watched(Autocast(torch.bfloat16), 12, loss_of=faint) == []
    assert watched(Autocast(torch.float16), 12) == []
