from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
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


def with_spare(observation: Observation, *spare: str) -> Observation:
    return replace(observation, sample=replace(sample_of(observation), spare=frozenset(spare)))


def test_a_spare_head_is_worth_a_notice() -> None:
    def found(*spare: str) -> Finding:
        looks = Looks()
        (finding,) = [f for step in range(15) for f in looks.at(with_spare(observed(step, **head(3, 5)), *spare))]
        return finding

    assert (found("l3", "l5").level, found("l3", "l5").layers) == ("notice", ("l3", "l5"))
    assert found("l3").level == found().level == "alert"


def test_a_notice_of_a_head_rises_with_a_layer_within_the_network_and_names_it() -> None:
    looks, found = Looks(), []
    for step in range(40):
        observation = observed(step, **head(2, 5))
        ran = NAMES if step >= 20 else NAMES - {"l2"}
        sample = replace(sample_of(observation), ran=ran, spare=frozenset({"l5"}))
        found += looks.at(replace(observation, sample=sample))
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


class Branched(nn.Module):
    """A trunk with a side branch whose output nobody asks for, or is cut off."""

    def __init__(self, is_wanted: bool, is_fed: bool = True) -> None:
        super().__init__()
        self.trunk, self.head = relu_net(3), nn.Linear(10, 10)
        self.side = nn.Sequential(nn.Linear(10, 9), nn.Linear(9, 7))
        self.last = nn.Linear(7, 10)
        self.is_wanted, self.is_fed = is_wanted, is_fed

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x)
        aside = self.side(features if self.is_fed else features.detach())
        beside: Tensor = self.last(aside.detach() if self.is_wanted else torch.ones(len(x), 7))
        out: Tensor = self.head(features) + beside
        return out


SPARE_HEAD, CUT_BRANCH = Branched(is_wanted=False), Branched(is_wanted=True)
UNFED_HEAD = Branched(is_wanted=False, is_fed=False)


@pytest.mark.parametrize(
    ("net", "level"),
    [(SPARE_HEAD, "notice"), (CUT_BRANCH, "alert"), (UNFED_HEAD, "alert")],
    ids=["a spare head", "a branch that is cut", "a head that nothing feeds"],
)
def test_a_head_that_the_loss_does_not_use_is_worth_a_notice_wherever_it_runs(net: nn.Module, level: str) -> None:
    (alert,) = watched(net, 15)
    assert (alert.kind, alert.level, alert.layer) == ("detached", level, "side.0")


class Routed(nn.Module):
    """A layer whose output decides which of two others runs, and with what weight if that is not cut off."""

    def __init__(self, is_local: bool) -> None:
        super().__init__()
        self.router, self.left, self.right = nn.Linear(10, 2), nn.Linear(10, 10), nn.Linear(10, 10)
        self.is_local = is_local

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        choice = logits.softmax(1).argmax(1, keepdim=True)
        if not self.is_local:
            del logits
        out: Tensor = torch.where(choice == 0, self.left(x), self.right(x))
        return out


@pytest.mark.parametrize("is_local", [True, False], ids=["kept until the end", "used at once"])
def test_a_router_that_chooses_without_a_gradient_is_not_a_spare_head(is_local: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.routed, self.head = relu_net(3), Routed(is_local), nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.routed(self.trunk(x)))
            return out

    (alert,) = watched(Net(), 15)
    assert (alert.kind, alert.level, alert.layer) == ("detached", "alert", "routed.router")


class ToSparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(10))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).to_sparse()


def test_an_output_that_cannot_be_followed_is_not_called_spare() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.aside, self.head = relu_net(3), ToSparse(), nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            features = self.trunk(x)
            self.aside(features)
            out: Tensor = self.head(features)
            return out

    (alert,) = watched(Net(), 15)
    assert (alert.level, alert.layer) == ("alert", "aside")
