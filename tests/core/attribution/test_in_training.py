"""Attribution in real trainings: the alert says where the gradient is lost, and nobody else notices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import lightning_gradwatch
from lightning_gradwatch import Alert, GradWatch
from lightning_gradwatch.core.attribution.graph import Graph
from lightning_gradwatch.core.attribution.tracer import Tracer
from lightning_gradwatch.core.modules import modules
from tests.tasks import Classifier, deep_net, digits, fit, quiet_trainer, watchers_of

pytestmark = pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")


def alert_of(net: nn.Module, **options: Any) -> Alert:
    watch = GradWatch()
    fit(watch, Classifier(net), digits(), max_steps=12, **options)
    (alert,) = watch.alerts
    return alert


def test_an_alert_says_in_which_operations_the_gradient_is_lost() -> None:
    alert = alert_of(deep_net(depth=12))
    assert alert.cause == "saturating_activation"
    assert alert.evidence.startswith("between the loss and net.0 the gradient loses")
    assert "in 11 sigmoids (each lets 2" in alert.evidence
    assert "11 layers' weights (a gain of 0.5" in alert.evidence
    found = alert.attribution
    assert found is not None
    assert found["layer"] == alert.layer == "net.0"
    assert [share["group"] for share in found["shares"]] == ["sigmoid", "weights"]
    assert sum(share["lost"] for share in found["shares"]) == pytest.approx(found["lost"], abs=0.01)
    assert [stage["layer"] for stage in found["stages"]] == [f"net.{2 * i}" for i in range(11, 0, -1)]
    assert sum(sum(stage["lost"].values()) for stage in found["stages"]) == pytest.approx(found["lost"], abs=0.05)


def test_many_stages_are_put_together() -> None:
    found = alert_of(deep_net(nn.ReLU, depth=70)).attribution
    assert found is not None
    assert 20 <= len(found["stages"]) <= 40
    assert sum(sum(stage["lost"].values()) for stage in found["stages"]) == pytest.approx(found["lost"], abs=0.05)


def test_accumulated_batches_and_half_precision_are_measured() -> None:
    assert alert_of(deep_net(depth=12), accumulate_grad_batches=2).attribution is not None
    assert alert_of(deep_net(depth=12), precision="bf16-mixed").attribution is not None


def test_only_samples_that_seek_causes_hook_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    hung: list[int] = []
    hang, steps = Tracer._hang, list[None]()

    def noted(tracer: Tracer, graph: Graph) -> None:
        hung.append(len(steps))
        hang(tracer, graph)

    monkeypatch.setattr(Tracer, "_hang", noted)

    class Steps(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            steps.append(None)

    watch = GradWatch(dense_steps=10, sample_every_n_steps=1000)
    quiet_trainer(watch, Steps(), max_steps=30).fit(Classifier(deep_net(nn.ReLU, 6, he_init=True)), digits())
    assert hung == [0, 4]


def test_what_was_found_when_causes_were_sought_outlives_samples_that_seek_none() -> None:
    watch = GradWatch(dense_steps=10, sample_every_n_steps=1000)
    quiet_trainer(watch, max_steps=10).fit(Classifier(deep_net(nn.ReLU, 6, he_init=True)), digits())
    (watcher,) = watchers_of(watch)
    evidence = watcher._digest.judge.history.evidence
    assert watcher.latest is not None
    assert watcher.latest.thorough is not None  # the tenth sample, which sought none
    assert watcher.latest.thorough.inputs is None
    assert watcher.latest.thorough.attribution is None
    assert len(evidence.inputs) == 6
    assert evidence.attribution is not None


def test_a_measurement_that_fails_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no graph today")

    monkeypatch.setattr("lightning_gradwatch.core.attribution.tracer.read", fail)
    watch = GradWatch()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(watch, Classifier(deep_net(depth=12)), digits(), max_steps=12)
    (alert,) = watch.alerts
    assert alert.attribution is None
    assert alert.evidence == "11 sigmoids without normalisation pass on at most a quarter of the gradient each"
    assert sum("what each operation does to the gradient" in str(one.message) for one in said) == 1


class Pooled(nn.Module):
    """Convolutions at 64 x 64 places, their mean, and four linear layers."""

    def __init__(self, activation: type[nn.Module], he_init: bool, depth: int = 4) -> None:
        super().__init__()
        convs = [(nn.Conv2d(6 if i else 1, 6, 3, padding=1), activation()) for i in range(depth)]
        self.convs = nn.Sequential(*(part for pair in convs for part in pair))
        linears = [(nn.Linear(32 if i else 6, 32), nn.ReLU()) for i in range(3)]
        self.head = nn.Sequential(*(part for pair in linears for part in pair), nn.Linear(32, 10))
        for module in modules(self):
            if he_init and isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        places = nn.functional.interpolate(x.view(-1, 1, 8, 8), scale_factor=8)
        return self.head(self.convs(places).mean((2, 3)))


def alerts_of_pooled(activation: type[nn.Module], he_init: bool, depth: int = 4) -> list[str]:
    pl.seed_everything(0, verbose=False)
    watch = GradWatch()
    model = Classifier(Pooled(activation, he_init, depth), lr=1e-3, optimizer=torch.optim.Adam)
    quiet_trainer(watch, max_steps=25).fit(model, digits(32))
    return [alert.kind for alert in watch.alerts]


def test_a_mean_over_many_places_starves_nobody() -> None:
    assert alerts_of_pooled(nn.ReLU, he_init=True) == []


def test_what_is_lost_besides_a_mean_is_found() -> None:
    assert alerts_of_pooled(nn.Sigmoid, he_init=False, depth=8) == ["vanishing"]


class Headed(pl.LightningModule):
    """Three healthy layers, whatever stands between the last one and the loss."""

    def __init__(self, num_outputs: int, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.head = deep_net(nn.ReLU, 3, he_init=True), head
        self.net[-1] = nn.Linear(64, num_outputs)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.mse_loss(self.head(self.net(batch[0])), (batch[1] % 2).float()[:, None])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("head", "culprit"),
    [
        (lambda outputs: outputs.softmax(1), "1 softmax"),
        (lambda outputs: (outputs - 100.0).relu(), "1 ReLU or clamp"),
        (lambda outputs: (outputs + 100.0).clamp(max=1.0), "1 ReLU or clamp"),
        (lambda outputs: torch.sigmoid(1000.0 * outputs - 1e5), "1 sigmoid"),
    ],
    ids=["softmax over one unit", "a dead output", "clipped outputs", "saturated outputs"],
)
def test_a_head_that_passes_nothing_is_named(head: Callable[[Tensor], Tensor], culprit: str) -> None:
    watch = GradWatch()
    quiet_trainer(watch, max_steps=8).fit(Headed(1, head), digits())
    (alert,) = watch.alerts
    assert (alert.kind, alert.cause) == ("dead", "saturated_output")
    assert alert.evidence == (
        f"the gradient is exactly zero before it reaches net.4: {culprit} between it and the loss passes nothing on"
    )


class Slow(Headed):
    """The same at a rate at which nothing moves."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-13)


@pytest.mark.parametrize(
    ("head", "cause"),
    [
        (lambda outputs: outputs - 1e6, "target_scale"),
        (lambda outputs: torch.sigmoid(outputs + 14), "saturated_output"),
    ],
    ids=["targets of a million", "a saturated sigmoid"],
)
def test_targets_out_of_reach_are_told_from_a_saturated_output(head: Callable[[Tensor], Tensor], cause: str) -> None:
    watch = GradWatch()
    quiet_trainer(watch, max_steps=100).fit(Slow(1, head), digits())
    (alert,) = watch.alerts
    assert (alert.kind, alert.cause) == ("stalled", cause)
    if cause == "target_scale":
        assert "the gradient at the output of net.4 has a norm of 2" in alert.evidence


class TwoBranches(pl.LightningModule):
    """One branch learns; of the other no unit is ever above zero, or nothing counts in the loss."""

    def __init__(self, bias: float, weight: float) -> None:
        super().__init__()
        self.first, self.second = deep_net(nn.ReLU, 4, he_init=True), deep_net(nn.ReLU, 4, he_init=True)
        nn.init.constant_(self.second[4].get_parameter("bias"), bias)
        self.weight = weight

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        scores = self.first(batch[0]) + self.weight * self.second(batch[0])
        return nn.functional.cross_entropy(scores, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("bias", "weight", "expected"),
    [(-100.0, 1.0, [("dead", "dead_relu", "second.0")]), (0.0, 1.0, []), (0.0, 0.0, [])],
    ids=["dead", "alive", "left out of the loss"],
)
def test_a_branch_that_is_dead_is_found_though_its_sister_learns(
    bias: float, weight: float, expected: list[tuple[str, str, str]]
) -> None:
    watch, module = GradWatch(), TwoBranches(bias, weight)
    quiet_trainer(watch, max_steps=20).fit(module, digits())
    assert [(alert.kind, alert.cause, alert.layer) for alert in watch.alerts] == expected
    assert all(alert.step >= 8 for alert in watch.alerts)


class Adversaries(pl.LightningModule):
    """Two networks, each with an optimizer, of which one is sick."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sick, self.well = deep_net(depth=12), deep_net(nn.ReLU, 6, he_init=True)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        for optimizer, net in zip(self.optimizers(), (self.sick, self.well), strict=True):
            loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.sick, self.well)]


def test_each_optimizer_is_shown_the_way_of_its_own_loss() -> None:
    watch = GradWatch()
    quiet_trainer(watch, max_steps=40).fit(Adversaries(), digits())
    (alert,) = watch.alerts
    assert alert.attribution is not None
    assert alert.attribution["layer"] == "sick.0"
    sick, well = (watcher._digest.judge.history.evidence.attribution for watcher in watchers_of(watch))
    assert sick is not None
    assert well is not None
    assert set(sick.layers) == {f"sick.{2 * i}" for i in range(12)}
    assert set(well.layers) == {f"well.{2 * i}" for i in range(6)}


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_hand_written_loop_may_announce_its_loss(is_announced: bool) -> None:
    net = deep_net(depth=12)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with lightning_gradwatch.watch(net, optimizer) as session:
        for (pixels, digit), _ in zip(digits(), range(12), strict=False):
            session.before_forward()
            loss = nn.functional.cross_entropy(net(pixels), digit)
            optimizer.zero_grad()
            if is_announced:
                session.before_backward(loss)
            loss.backward()
            session.step(loss)
            optimizer.step()
        (alert,) = session.alerts
    assert alert.cause == "saturating_activation"
    assert (alert.attribution is not None) == is_announced
    assert list(session.profile) == [str(2 * i) for i in range(12)]
    with pytest.raises(ValueError, match="this run is over"):
        session.before_backward(torch.tensor(1.0))
