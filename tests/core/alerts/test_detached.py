from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.core.alerts.detached import DetachedRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Finding, Observation
from tests.core.alerts.trained import explained, relu_net, watched
from tests.core.builders import DETACHED, NAMES, judged, observed, sample_of


class Looks:
    """The rule over several stretches of samples."""

    def __init__(self) -> None:
        self.rule, self.history = DetachedRule(), History()

    def at(self, observation: Observation) -> list[Finding]:
        """What is found in an observation."""
        self.history.add(observation)
        return judged(self.rule, observation, self.history)

    def over(self, steps: int, **options: Any) -> list[tuple[int, Finding]]:
        """What is found in so many alike, with its step."""
        return [(step, found) for step in range(steps) for found in self.at(observed(step, **options))]


def head(*without: int) -> dict[str, Any]:
    """Layers of six without any gradient."""
    norms = [-1.0 if i in without else 1.0 for i in range(6)]
    return {"outputs": norms, "gradients": norms}


def test_layers_that_ran_in_ten_samples_without_a_gradient_are_detached() -> None:
    looks = Looks()
    ((step, finding),) = looks.over(15, **DETACHED)
    assert (step, finding.kind, finding.layers) == (9, "detached", ("l0", "l1"))
    assert looks.rule.scores(looks.history) == {"detached_layers": 2.0}
    ((_, ended),) = looks.over(1)
    assert ended.until_step is not None


def test_what_runs_behind_all_that_is_trained_is_worth_a_notice() -> None:
    ((_, finding),) = Looks().over(15, **head(4, 5))
    assert (finding.kind, finding.level, finding.layers) == ("detached", "notice", ("l4", "l5"))
    ((_, finding),) = Looks().over(15, **head(3, 5))
    assert (finding.level, finding.layers) == ("alert", ("l3", "l5"))
    assert Looks().over(15, **head(*range(6)))[0][1].level == "alert"  # nothing is trained at all


def test_a_notice_of_a_head_rises_with_a_layer_within_the_network_and_names_it() -> None:
    looks, found = Looks(), []
    for step in range(40):
        observation = observed(step, **head(2, 5))
        ran = NAMES if step >= 20 else NAMES - {"l2"}
        found += looks.at(replace(observation, sample=replace(sample_of(observation), ran=ran)))
    assert [(f.step, f.level, f.layers) for f in found] == [(9, "notice", ("l5",)), (9, "alert", ("l2", "l5"))]


def test_a_layer_that_has_had_a_gradient_once_is_not_detached() -> None:
    looks = Looks()
    looks.over(1)
    assert looks.over(30, **DETACHED) == []


def test_layers_that_do_not_run_are_neither_dead_nor_detached() -> None:
    looks = Looks()
    for step in range(30):
        observation = observed(step, **DETACHED)
        assert looks.at(replace(observation, sample=replace(sample_of(observation), ran=NAMES - {"l0", "l1"}))) == []


def test_layers_cut_off_the_loss_are_named() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    net = relu_net(5)
    net.insert(4, Cut())
    alert = explained(watched(net, 15), "detached", "detached")
    assert alert.message.startswith("0, 2 run but never get a gradient")


class Spare(nn.Module):
    """A side branch whose output nobody asks for, or whose input is cut off."""

    def __init__(self, is_fed: bool) -> None:
        super().__init__()
        self.trunk, self.spare, self.head = relu_net(3), nn.Linear(10, 7), nn.Linear(10, 10)
        self.is_fed = is_fed

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x)
        self.spare(features if self.is_fed else features.detach())
        out: Tensor = self.head(features)
        return out


def test_a_head_that_the_loss_does_not_use_is_worth_a_notice_wherever_it_runs() -> None:
    (alert,) = watched(Spare(is_fed=True), 15)
    assert (alert.kind, alert.level, alert.layer) == ("detached", "notice", "spare")
    (alert,) = watched(Spare(is_fed=False), 15)
    assert (alert.kind, alert.level, alert.layer) == ("detached", "alert", "spare")
