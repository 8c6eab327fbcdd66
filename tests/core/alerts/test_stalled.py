from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradwatch.core.alerts.stalled import StalledRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.losses import LossHistory
from lightning_gradwatch.core.records import Finding
from tests.core.alerts.trained import explained, relu_net, watched
from tests.core.builders import judged, losses_of, observed, sample_of


def stall(losses: LossHistory, ratio: float = -1.0, **options: Any) -> list[Finding]:
    rule, history, found = StalledRule(), History(), []
    history.losses, history.largest_update = losses, ratio
    for step in range(4):
        observation = observed(step, **options)
        history.sample = sample_of(observation)
        found += judged(rule, observation, history)
    return found


def test_training_is_stalled_when_the_largest_push_is_a_thousandth_of_the_loss() -> None:
    flat = losses_of(*[2.0] * 60)
    (finding,) = stall(flat, gradients=[1e-9, 0.0, -1.0, 1.9e-3, 0.0, 0.0])
    assert (finding.kind, finding.step) == ("stalled", 1)
    assert stall(flat, gradients=[1e-9, 0.0, -1.0, 2.1e-3, 0.0, 0.0]) == []


def test_training_is_stalled_when_the_largest_update_is_tiny() -> None:
    flat = losses_of(*[2.0] * 60)
    assert [f.kind for f in stall(flat, 2.9e-5)] == ["stalled"]
    assert stall(flat, 3.1e-5) == []
    assert stall(flat, -1.0) == []  # not known
    assert stall(flat, 0.0, lr=0.0) == []  # a warm-up that has not begun


def test_training_that_has_improved_is_not_stalled() -> None:
    assert stall(losses_of(*[3.0] * 30, *[2.0] * 30), 1e-9, gradients=[1e-9] * 6) == []
    assert stall(losses_of(*[2.0] * 59), 1e-9, gradients=[1e-9] * 6) == []


def test_a_learning_rate_that_is_too_low_is_named() -> None:
    alert = explained(watched(relu_net(3), 90, lr=1e-8, every=3), "stalled", "learning_rate")
    assert "learning rate of 1e-08" in alert.evidence
    assert "a higher learning rate" in alert.remedies


def test_a_saturated_output_is_named() -> None:
    net = nn.Sequential(nn.Linear(64, 10))
    with torch.no_grad():
        net[0].get_parameter("bias").fill_(11.0)

    def squared(output: Tensor, digit: Tensor) -> Tensor:
        return (output.sigmoid() - functional.one_hot(digit, 10)).square().mean()

    explained(watched(net, 90, loss_of=squared, lr=0.1, every=3), "stalled", "saturated_output")


def test_a_loss_that_falls_without_noise_and_gets_nowhere_is_stalled() -> None:
    def falling(by: float, steps: int = 200) -> LossHistory:
        return losses_of(*[1e15 * (1 - by * step / steps) for step in range(steps)])

    strong = {"gradients": [1e15] * 6}
    assert [f.kind for f in stall(falling(5e-4), 1e-9, **strong)] == ["stalled"]
    assert stall(falling(5e-4, steps=150), 1e-9, **strong) == []  # not yet
    assert stall(falling(5e-3), 1e-9, **strong) == []
    assert stall(falling(5e-4), 1e-3, **strong) == []  # its weights move
    assert stall(falling(5e-4), 1e-3) == []  # also where a large constant in the loss makes every push look small


def test_what_is_done_has_not_stalled() -> None:
    assert stall(losses_of(*[0.5] * 5, *[0.0] * 80), 0.0, gradients=[0.0] * 6) == []
    assert stall(losses_of(*[0.0] * 80), 0.0, gradients=[0.0] * 6) == []


def test_a_warm_up_is_waited_for() -> None:
    def after(rates: list[float]) -> list[Finding]:
        rule, history, found = StalledRule(), History(), []
        history.losses, history.largest_update = losses_of(*[2.0] * 60), 1e-6
        for step, lr in enumerate(rates):
            observation = observed(step, lr=lr)
            history.evidence.steps.add(observation)
            history.sample = sample_of(observation)
            found += judged(rule, observation, history)
        return found

    assert after([1e-6 * step for step in range(1, 20)]) == []
    assert [f.step for f in after([*[1e-6 * step for step in range(1, 11)], *[1e-5] * 5])] == [12]
