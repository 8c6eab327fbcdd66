"""Quantities of the user's own, from a hand-written loop to a publication."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core.quantities.quantity import ScaleKind
from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.core.watcher import Watcher
from tests.tasks import deep_net


@dataclass(frozen=True)
class Largest:
    """The largest element of a layer's gradients."""

    name: str = "largest"
    label: str = "Largest element"
    hint: str = "Largest element of a layer's gradient"
    scale: ScaleKind = "log"
    unit: str = ""
    missing: str = "no gradient"

    def measure(self, weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
        return torch.stack([gradient.abs().amax() for gradient in gradients]).amax()


class Wrong(Largest):
    """Returns something else."""

    def __init__(self, returned: Any) -> None:
        super().__init__(name="wrong")
        object.__setattr__(self, "returned", returned)

    def measure(self, weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
        if isinstance(self.returned, Exception):  # type: ignore[attr-defined]
            raise self.returned  # type: ignore[attr-defined]
        return self.returned  # type: ignore[attr-defined, no-any-return]


def measured(net: nn.Module, *quantities: Any, scale: float | None = None, said: Any = None) -> Snapshot:
    """The latest snapshot with weights in five steps, all sampled."""
    settings = Settings(Schedule(5, 5), quantities=quantities)
    watcher = Watcher(net, torch.optim.SGD(net.parameters(), 0.1), settings, tell=said)
    factor = None if scale is None else torch.tensor(scale)
    found: list[Snapshot] = []
    for _ in range(5):
        net.zero_grad()
        watcher.arm()
        loss = net(torch.ones(2, 64)).square().mean()
        (loss if factor is None else loss * factor).backward()
        report = watcher.observe(loss=loss.detach(), loss_scale=factor, gradients_scaled=scale is not None)
        found += [snapshot for snapshot in report.snapshots if snapshot.weight_norm is not None]
    return found[-1]


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_it_is_measured_layer_by_layer_unscaled(scale: float | None) -> None:
    net = deep_net(depth=3)
    found = measured(net, Largest(), scale=scale).extra["largest"].tolist()
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    expected = [max(p.grad.abs().max().item() for p in layer.parameters() if p.grad is not None) for layer in layers]
    assert found == pytest.approx([value / (scale or 1.0) for value in expected])


def test_a_layer_without_a_gradient_has_none() -> None:
    net = deep_net(depth=3)
    first = next(module for module in net.modules() if isinstance(module, nn.Linear))
    for parameter in first.parameters():
        parameter.requires_grad_(False)
    assert measured(net, Largest()).extra["largest"].tolist()[0] == MISSING


def test_the_log_can_say_what_it_is() -> None:
    (declared,) = measured(deep_net(depth=3), Largest()).declared
    assert (declared.name, declared.label, declared.missing) == ("largest", "Largest element", "no gradient")


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (RuntimeError("no idea"), "no idea"),
        (torch.ones(3), r"shape \(\), but shape \(3,\) came"),
        (0.5, "but float came"),
        (None, "but NoneType came"),
        (torch.tensor(-2.0), "must not return negative numbers"),
    ],
    ids=["raises", "shape", "no tensor", "nothing", "negative"],
)
def test_one_that_fails_costs_itself_alone(returned: Any, why: str) -> None:
    said: list[str] = []
    snapshot = measured(deep_net(depth=3), Largest(), Wrong(returned), said=lambda left: said.append(str(left)))
    assert list(snapshot.extra) == ["largest"]
    (line,) = said
    assert line.startswith("GradWatch leaves out your quantity `wrong` from now on")
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(line)


def test_what_is_not_finite_is_shown_as_it_is() -> None:
    found = measured(deep_net(depth=3), Wrong(torch.tensor(torch.inf))).extra["wrong"].tolist()
    assert found == [torch.inf] * 3


def test_one_that_takes_a_name_of_the_house_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`quantities\[0\].name` must be a name that GradWatch does not use"):
        measured(deep_net(depth=3), Largest(name="grad_norm"))


def test_one_that_changes_a_gradient_is_left_out() -> None:
    @dataclass(frozen=True)
    class Spoils(Largest):
        name: str = "spoils"

        def measure(self, weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
            gradients[0].zero_()
            return gradients[0].abs().max()

    said: list[str] = []
    assert measured(deep_net(depth=3), Spoils(), said=lambda left: said.append(str(left))).extra == {}
    assert "has changed a weight or a gradient in place" in said[0]


def test_a_class_is_no_quantity() -> None:
    with pytest.raises(ValueError, match=r"`quantities\[0\]` must be an instance, not a class"):
        measured(deep_net(depth=3), Largest)
