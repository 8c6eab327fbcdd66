from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core.alerts.dead import DeadRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.saved import Saved
from tests.core.alerts.trained import batches, explained, figures, relu_net, watched
from tests.core.builders import judged, observed, silent


class Looks:
    """The rule over several stretches of samples."""

    def __init__(self) -> None:
        self.rule, self.history = DeadRule(), History()

    def at(self, observation: Observation) -> list[Finding]:
        """What is found in an observation."""
        self.history.add(observation)
        return judged(self.rule, observation, self.history)

    def over(self, steps: int, **options: Any) -> list[tuple[int, Finding]]:
        """What is found in so many alike, with its step."""
        return [(step, found) for step in range(steps) for found in self.at(observed(step, **options))]


def test_silence_at_the_input_end_is_dead_with_the_fifth_sample() -> None:
    looks = Looks()
    ((step, finding),) = looks.over(12, **silent(0, 4))
    assert (step, finding.kind, finding.layers) == (4, "dead", ("l0", "l4"))
    assert (finding.value, looks.rule.scores(looks.history)) == (0.5, {"dead_layers": 2.0})


def test_silence_at_the_loss_end_alone_is_not_dead() -> None:
    assert Looks().over(12, **silent(2, 3, 4, 5)) == []


def test_nothing_is_dead_when_nothing_is_left_to_learn() -> None:
    assert Looks().over(12, loss=0.0, **silent(*range(6))) == []


def test_the_dead_are_resurrected_by_five_samples_with_a_gradient() -> None:
    looks = Looks()
    looks.over(6, **silent(0, 1))
    found = looks.over(6)
    assert [(step, f.kind) for step, f in found] == [(4, "dead")]
    assert found[0][1].until_step is not None
    assert looks.rule.scores(looks.history) == {"dead_layers": 0.0}


def test_one_sample_with_a_gradient_starts_the_count_of_the_dead_anew() -> None:
    looks = Looks()
    assert not any(looks.over(4, **silent(0, 1)) + looks.over(1) for _ in range(5))


def test_dead_units_are_named_where_they_are() -> None:
    net = relu_net(6)
    with torch.no_grad():
        net[4].get_parameter("bias").fill_(-100.0)
    alert = explained(watched(net, 12), "dead", "dead_relu")
    assert "100% of the units at the input of 6" in alert.evidence
    assert "0, 2, 4" in alert.message


def raw(step: int, pixels: Tensor) -> Tensor:
    return 1000 * pixels + 5000


def test_an_input_that_is_not_normalised_is_named_with_its_range() -> None:
    alert = explained(watched(relu_net(3), 12, feed=raw, lr=1e-3), "dead", "input_scale")
    pixels = raw(0, batches()[9][0])  # of the ninth step, the last thorough look before or at the alert
    std, low, high = figures(alert.evidence)
    assert std == pytest.approx(float(pixels.std()), rel=0.1)
    assert low == pytest.approx(float(pixels.min()), rel=0.1)
    assert high == pytest.approx(float(pixels.max()), rel=0.1)
    assert watched(relu_net(3), 12, lr=1e-3) == []  # the remedy


class LowRank(nn.Module):
    """A frozen layer beside a trained product of two thin matrices."""

    def __init__(self, base: nn.Linear, is_zero: bool) -> None:
        super().__init__()
        self.base, rows = base.requires_grad_(False), base.out_features
        self.a, self.b = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, rows, bias=False)
        for factor in (self.a, self.b) if is_zero else (self.b,):
            nn.init.zeros_(factor.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.b(self.a(x))
        return out


def test_a_product_whose_factors_both_start_at_zero_is_named_with_them() -> None:
    def adapted(is_zero: bool) -> nn.Sequential:
        return nn.Sequential(*(LowRank(m, is_zero) if isinstance(m, nn.Linear) else m for m in relu_net(3)))

    alert = explained(watched(adapted(is_zero=True), 12), "dead", "small_init")
    assert "0.a, 0.b, 2.a and 3 more are exactly zero" in alert.evidence
    assert watched(adapted(is_zero=False), 12) == []  # as LoRA starts


def test_a_network_that_starts_at_zero_is_told_from_dead_units() -> None:
    net = relu_net(4)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    alert = explained(watched(net, 12), "dead", "small_init")
    assert "0, 2, 4 and 1 more are exactly zero" in alert.evidence


def with_losses(looks: Looks, *losses: float) -> Looks:
    looks.history.losses.add(losses)
    return looks


def test_nothing_is_dead_when_next_to_nothing_is_left_of_the_loss() -> None:
    """As of a logit whose loss is 1e-8, with a gradient that rounds to exactly zero."""
    done = with_losses(Looks(), *[1.0] * 10, *[1e-5] * 10)
    assert done.over(12, loss=1e-5, **silent(*range(6))) == []
    begun = with_losses(Looks(), *[1.0] * 10, *[1e-3] * 10)
    assert [step for step, _ in begun.over(12, loss=1e-3, **silent(*range(6)))] == [4]


def come_and_go(looks: Looks, steps: int, loss: float = 1.0) -> list[Finding]:
    """Silence in two samples of three."""
    return [
        found for step in range(steps) for found in looks.at(observed(step, loss=loss, **silent(*[0, 1][: step % 3])))
    ]


def test_zeros_that_come_and_go_are_dead_while_the_loss_is_flat() -> None:
    looks = Looks()
    (finding,) = come_and_go(looks, 70)
    assert (finding.kind, finding.until_step) == ("dead", None)
    assert finding.step >= 59  # before that no loss can be called flat
    learned = with_losses(Looks(), *[5.0] * 30)
    assert come_and_go(learned, 70) == []  # less than a quarter of the loss is left


def test_what_came_and_went_is_remembered_over_a_resume() -> None:
    looks, resumed = Looks(), Looks()
    come_and_go(looks, 8)
    resumed.rule.load_state_dict(Saved.of(looks.rule.state_dict()))
    assert resumed.rule.state_dict() == looks.rule.state_dict()


def test_layers_that_die_late_are_found_within_fifteen_steps() -> None:
    net = relu_net(6)

    def kill(step: int, pixels: Tensor) -> Tensor:
        if step == 45:
            with torch.no_grad():
                net[4].get_parameter("bias").fill_(-100.0)
        return pixels

    (alert,) = watched(net, 90, feed=kill, every=10, lr=1e-3)
    assert alert.kind == "dead"
    assert 45 <= alert.step < 60
