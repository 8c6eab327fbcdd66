from __future__ import annotations

import math
import re
import statistics

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core.alerts.vanishing import VanishingRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.losses import LossHistory
from lightning_gradwatch.core.history.profile import Profile
from lightning_gradwatch.core.records import Alert, Finding
from lightning_gradwatch.core.watcher import Watcher
from tests.core.alerts.trained import batches, classify, explained, figures, relu_net, scaled, watched
from tests.core.builders import losses_of, observed, profile, sample_of
from tests.tasks import deep_net


class Looks:
    """The rule, shown one profile after the other.

    Args:
        threshold: That of the rule.
        losses: What the loss has done.
    """

    def __init__(self, threshold: float = 0.5, losses: LossHistory | None = None) -> None:
        self.rule, self.history = VanishingRule(threshold), History()
        self.history.losses = losses or self.history.losses

    def at(self, step: int, seen: Profile) -> Finding | None:
        """What is found at a step."""
        observation = observed(step)
        self.history.profile, self.history.sample = seen, sample_of(observation)
        self.history.depth.add(seen)
        self.history.parts = [(self.history.depth, seen)]
        return self.rule.update(observation, self.history)


def opened_at(threshold: float, decades: float, at_outputs: bool = True) -> int | None:
    looks = Looks(threshold)
    for step in range(30):
        finding = looks.at(step, profile(decades, at_outputs))
        if finding is not None:
            return finding.step
    return None


def test_the_alert_opens_at_two_decades_with_the_twentieth_sample_and_with_the_tenth_at_a_quarter_more() -> None:
    assert opened_at(0.5, 2.01) == 19
    assert opened_at(0.5, 1.99) is None
    assert opened_at(0.5, 2.49) == 19
    assert opened_at(0.5, 2.51) == 9
    assert opened_at(0.75, 2.99) is None
    assert opened_at(0.75, 3.01) == 19
    assert opened_at(0.75, 3.76) == 9


def test_a_borderline_loss_that_is_shed_in_the_first_steps_is_none() -> None:
    looks = Looks()
    assert [looks.at(step, profile(2.6 - 0.05 * step)) for step in range(30)] == [None] * 30


def test_weights_gradients_must_lose_two_and_a_half_decades() -> None:
    assert opened_at(0.5, 2.49, at_outputs=False) is None
    assert opened_at(0.5, 2.51, at_outputs=False) == 19
    assert opened_at(0.5, 3.13, at_outputs=False) == 9


def test_one_wild_sample_opens_nothing() -> None:
    looks = Looks()
    assert all(looks.at(step, profile(9.0 if step % 5 == 0 else 0.0)) is None for step in range(100))


def test_an_alert_ends_when_it_ends_and_not_in_between() -> None:
    looks = Looks()
    changes = [(step, looks.at(step, profile(d))) for step, d in enumerate([3.0] * 15 + [1.6] * 10 + [1.4] * 10)]
    found = [(step, change) for step, change in changes if change is not None]
    assert [step for step, _ in found] == [9, 27]
    assert found[0][1].until_step is None
    assert (found[1][1].step, found[1][1].until_step) == (9, 26)


def test_the_finding_names_the_starving_and_the_fed_end() -> None:
    looks = Looks()
    for step in range(10):
        finding = looks.at(step, Profile(("a", "b", "c", "d", "e", "f"), (1e-7, 1e-9, 1e-5, 1e-4, 1.0, 2.0), True))
    assert finding is not None
    assert finding.layers == ("b", "f")
    assert finding.value == pytest.approx(8.15, abs=0.01)


def test_weights_gradients_do_not_mix_with_output_gradients() -> None:
    looks = Looks()
    for step in range(20):
        assert looks.at(step, profile(0.0)) is None
    assert looks.at(20, profile(9.0, at_outputs=False)) is None
    assert looks.history.depth.decades == 0.0
    found = [looks.at(step, profile(9.0, at_outputs=False)) for step in range(21, 40)]
    assert [f.kind for f in found if f is not None] == ["vanishing"]  # five in a row: the outputs are gone for good


def test_a_seam_between_two_towers_is_no_vanishing_but_a_cliff_in_a_small_net_is() -> None:
    towers = Profile(tuple(f"l{i}" for i in range(30)), (1e-5,) * 15 + (2e-3,) * 15, at_outputs=True)
    small = Profile(("a", "b", "c", "d", "e", "f"), (1e-5,) * 3 + (2e-3,) * 3, at_outputs=True)
    between = Looks()
    assert [between.at(step, towers) for step in range(30)] == [None] * 30
    looks = Looks()
    assert [f.step for step in range(30) if (f := looks.at(step, small)) is not None] == [19]


def test_a_deep_slope_is_vanishing_however_level_its_steps() -> None:
    norms = tuple(10 ** (-3 + 0.1 * i) for i in range(40))
    looks, slope = Looks(), Profile(tuple(f"l{i}" for i in range(40)), norms, at_outputs=True)
    assert [f.step for step in range(30) if (f := looks.at(step, slope)) is not None] == [9]


FALLING = [10 * 0.99**i for i in range(100)]


@pytest.mark.parametrize(
    ("decades", "losses", "patience", "opens"),
    [(2.2, FALLING[:30], 1.25, False), (2.6, FALLING[:30], 1.25, True), (2.6, FALLING, 1.5, False)],
)
def test_a_borderline_loss_can_wait_while_the_loss_is_falling(
    decades: float, losses: list[float], patience: float, opens: bool
) -> None:
    looks = Looks(losses=losses_of(*losses))
    assert looks.history.losses.patience == patience
    assert any(looks.at(step, profile(decades)) for step in range(20)) is opens


def test_small_initial_weights_are_named_with_their_gain() -> None:
    alert = explained(watched(deep_net(nn.ReLU, 20), 12), "vanishing", "small_init")
    gain = math.sqrt(1 / 3) / math.sqrt(2)  # nn.Linear draws from U(-1, 1) / sqrt(fan-in); ReLU needs sqrt(2)
    assert figures(alert.evidence)[0] == pytest.approx(gain, abs=0.02)
    assert "20 layers" in alert.evidence
    assert f"{alert.value:.1f} orders of magnitude" in alert.message
    assert alert.layer in alert.message
    assert watched(relu_net(20), 12, lr=0.01) == []  # the remedy


def test_sigmoids_are_named_and_counted() -> None:
    alert = explained(watched(deep_net(nn.Sigmoid, 10), 12), "vanishing", "saturating_activation")
    assert "9 sigmoids" in alert.evidence


def test_functional_sigmoids_are_named_too() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(m for m in deep_net(nn.Sigmoid, 10) if isinstance(m, nn.Linear))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                x = torch.sigmoid(layer(x))
            out: Tensor = self.layers[-1](x)
            return out

    alert = explained(watched(Functional(), 12), "vanishing", "saturating_activation")
    assert "9 sigmoids" in alert.evidence
    assert "layers.0" in alert.message


def test_tanh_units_at_their_rails_are_named_with_their_share() -> None:
    net = scaled(deep_net(nn.Tanh, 9), math.sqrt(3))
    for linear in list(net)[:-1:2]:
        nn.init.constant_(linear.get_parameter("bias"), 2.5)
    hidden, at_rails = batches()[9][0], []
    for module in list(net)[:-1]:
        hidden = module(hidden).detach()
        at_rails += [float((hidden.abs() > 0.95).float().mean())] if isinstance(module, nn.Tanh) else []
    alert = explained(watched(net, 12, lr=1e-12), "vanishing", "large_init")
    assert figures(alert.evidence)[0] == pytest.approx(100 * statistics.median(at_rails), abs=1)
    assert "units sit at the rails" in alert.evidence


def test_decaying_weights_are_named_with_what_is_left_of_them() -> None:
    net = scaled(relu_net(8), 1.0)
    alert = explained(watched(net, 40, lr=0.02, weight_decay=4.0), "vanishing", "weight_decay")
    left = figures(alert.evidence)[0] / 100
    assert left <= 0.5
    kept = 1 - 0.02 * 4.0  # in each step; weights are measured at every fifth sample
    assert kept**alert.step - 0.01 <= left <= kept ** (alert.step - 5) + 0.01


def test_one_odd_layer_is_named_as_the_cliff() -> None:
    net = scaled(scaled(relu_net(), 1.0), 1e-2, 4, 5, 6)
    alert = explained(watched(net, 12, lr=0.02), "vanishing", "cliff")
    assert all(f"{name} at" in alert.evidence for name in ("8", "10", "12"))
    assert figures(alert.evidence)[1] == pytest.approx(math.sqrt(2) / 100, rel=0.2)


def test_a_cliff_without_odd_weights_is_found_in_the_gradient() -> None:
    class Faint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - 0.9999 * (x - x.detach())

    net = scaled(deep_net(nn.Tanh, 9), math.sqrt(3))
    net.insert(9, Faint())  # passes the signal on, and a ten-thousandth of the gradient
    alert = explained(watched(net, 12, lr=0.02), "vanishing", "cliff")
    assert re.match(r"[34]\.\d orders of magnitude", alert.evidence)
    assert "between 11 and 8" in alert.evidence


def test_nothing_between_many_layers_is_named_where_the_weights_are_sound() -> None:
    class Halve(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - 0.6 * (x - x.detach())

    net = nn.Sequential(*(nn.Sequential(m, Halve()) for m in scaled(deep_net(nn.Tanh, 12), math.sqrt(3))))
    alert = explained(watched(net, 12, lr=0.02), "vanishing", "no_skip_or_norm")
    assert "12 layers in a row with 0 normalisation layers and 0 skip" in alert.evidence


def test_the_gates_of_a_recurrent_layer_are_not_blamed_for_what_the_layers_after_it_lose() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.tail = nn.GRU(8, 64), deep_net(nn.ReLU, 12)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.tail(self.read(x.reshape(len(x), 8, 8).transpose(0, 1))[0][-1])
            return out

    explained(watched(Gated(), 12), "vanishing", "small_init")


def test_an_explanation_survives_a_resume() -> None:
    net = scaled(relu_net(8), 1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=4.0)
    watcher = Watcher(net, optimizer)
    opened: list[Alert] = []
    for step in range(40):
        if step == 12:
            state, watcher = watcher.state_dict(), Watcher(net, optimizer)
            watcher.load_state_dict(state)
        pixels, digit = batches()[step % len(batches())]
        watcher.arm()
        loss = classify(net(pixels), digit)
        optimizer.zero_grad()
        loss.backward()
        opened += watcher.observe(loss=loss).alerts
        optimizer.step()
    assert ("vanishing", "weight_decay") in [(a.kind, a.cause) for a in opened]


class Letters(nn.Module):
    """Reads pixels as letters, embedded at a scale, or as they are."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.letters, self.read, self.judge = nn.Embedding(5, 16), nn.LSTM(16, 32), nn.Linear(32, 10)
        nn.init.normal_(self.letters.weight, std=scale)

    def forward(self, x: Tensor) -> Tensor:
        codes = (2 * x).long().clamp(0, 4).transpose(0, 1)
        out: Tensor = self.judge(self.read(self.letters(codes))[0].mean(0))
        return out


@pytest.mark.parametrize("lr", [30.0, 100.0, 300.0])
def test_what_updates_have_blown_up_is_a_matter_of_the_learning_rate_alone(lr: float) -> None:
    alerts = watched(Letters(), 40, lr=lr)
    assert alerts[0].kind in ("exploding", "vanishing")
    explained(alerts, alerts[0].kind, "learning_rate")
    assert {alert.cause for alert in alerts} == {"learning_rate"}


def test_an_embedding_that_starts_large_is_named_by_what_it_gives() -> None:
    alert = explained(watched(Letters(scale=1e4), 40, lr=300.0), "vanishing", "input_scale")
    assert figures(alert.evidence)[0] == pytest.approx(1e4, rel=0.5)


class Branches(nn.Module):
    """Sigmoids throughout: a trunk, a branch that hardly counts, and behind it in the order the heads on the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.branch = deep_net(nn.Sigmoid, 7)[:-1], deep_net(nn.Sigmoid, 6)
        self.heads = nn.ModuleList(nn.Linear(64, 10) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.trunk(x)
        late: Tensor = 1e-5 * self.branch(hidden)
        return late + sum(head(hidden) for head in self.heads)


def test_branches_that_run_one_after_the_other_make_no_cliff() -> None:
    alert = explained(watched(Branches(), 12), "vanishing", "saturating_activation")
    assert "11 sigmoids" in alert.evidence


class Towers(nn.Module):
    """Two networks side by side, the deep one first or last in the order in which they run."""

    def __init__(self, deep: nn.Module, other: nn.Module, is_deep_first: bool) -> None:
        super().__init__()
        self.deep, self.other, self.is_deep_first = deep, other, is_deep_first

    def forward(self, x: Tensor) -> Tensor:
        towers = (self.deep, self.other) if self.is_deep_first else (self.other, self.deep)
        out: Tensor = sum(tower(x) for tower in towers)
        return out


@pytest.mark.parametrize("is_deep_first", [True, False], ids=["runs first", "runs last"])
def test_a_tower_that_starves_is_found_beside_one_that_learns(is_deep_first: bool) -> None:
    net = Towers(deep_net(nn.Sigmoid, 8), relu_net(12), is_deep_first)
    alert = explained(watched(net, 15, is_traced=True), "vanishing", "saturating_activation")
    assert alert.layer == "deep.0"
    assert re.search(r"from layers such as deep\.14 to layers such as deep\.0 they shrink", alert.message)


@pytest.mark.parametrize("is_deep_first", [True, False], ids=["runs first", "runs last"])
def test_a_tower_that_the_loss_asks_little_of_does_not_starve(is_deep_first: bool) -> None:
    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = relu_net(8)

        def forward(self, x: Tensor) -> Tensor:
            return 1e-4 * self.net(x)  # type: ignore[no-any-return]

    net = Towers(relu_net(12), Faint(), is_deep_first)
    assert [a.kind for a in watched(net, 25, is_traced=True) if a.layer.startswith("deep.")] == []
