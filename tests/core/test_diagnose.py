from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradwatch.core.batch import check_batch
from lightning_gradwatch.core.diagnose import explain
from lightning_gradwatch.core.evidence import Evidence
from lightning_gradwatch.core.records import Alert, AlertKind, Cause, Finding, Layer, Observation
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher
from tests.tasks import deep_net, digits

Feed = Callable[[int, Tensor], Tensor]


@functools.cache
def batches() -> list[tuple[Tensor, ...]]:
    return list(digits())


def classify(output: Tensor, digit: Tensor) -> Tensor:
    return functional.cross_entropy(output.float(), digit)


def watched(
    net: nn.Module,
    steps: int,
    optimizer: Any = torch.optim.SGD,
    loss_of: Callable[[Tensor, Tensor], Tensor] = classify,
    feed: Feed = lambda step, pixels: pixels,
    every: int = 1,
    **options: Any,
) -> list[Alert]:
    """The alerts of a hand-written loop on the digits, those that opened."""
    made = optimizer(net.parameters(), **{"lr": 0.1, **options})
    watcher = Watcher(net, made, Settings(Schedule(20, every)))
    alerts: list[Alert] = []
    for step in range(steps):
        pixels, digit = batches()[step % len(batches())]
        pixels = feed(step, pixels).to(next(net.parameters()).dtype)
        watcher.arm()
        loss = loss_of(net(pixels), digit)
        made.zero_grad()
        loss.backward()
        alerts += watcher.observe(loss=loss, inputs=check_batch(pixels)).alerts
        made.step()
    alerts += watcher.flush().alerts
    return [alert for alert in alerts if alert.until_step is None]


def explained(alerts: list[Alert], kind: AlertKind, cause: Cause) -> Alert:
    """The first alert of that kind, after a check of its words."""
    assert (kind, cause) in [(a.kind, a.cause) for a in alerts]
    for alert in alerts:
        assert alert.cause in get_args(Cause)
        assert alert.remedies
        assert all(remedy in alert.message for remedy in alert.remedies)
        assert alert.evidence[1:] in alert.message
        what, _, rest = alert.message.partition(alert.evidence[1:])
        assert re.search(rf"step {alert.step}\b", what)
        assert "Try: " in rest
        assert not re.search(r"\bnan\b|\binf\b|[{}]", alert.message)
    first = next(a for a in alerts if (a.kind, a.cause) == (kind, cause))
    assert alerts[0].kind == kind
    return first


def scaled(net: nn.Sequential, factor: float, *places: int) -> nn.Sequential:
    """Every linear layer, or those at some places, with weights ``factor`` times as large."""
    with torch.no_grad():
        for i, layer in enumerate(m for m in net if isinstance(m, nn.Linear)):
            layer.weight.mul_(factor if not places or i in places else 1.0)
            layer.bias.zero_()
    return net


def figures(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]


def relu_net(depth: int = 12) -> nn.Sequential:
    return deep_net(nn.ReLU, depth, he_init=True)


def test_a_sound_network_is_left_in_peace() -> None:
    assert watched(scaled(relu_net(), 1.0), 30, lr=0.02) == []


def test_small_initial_weights_are_named_with_their_gain() -> None:
    alert = explained(watched(deep_net(nn.ReLU, 20), 12), "vanishing", "small_init")
    gain = math.sqrt(1 / 3) / math.sqrt(2)  # nn.Linear draws from U(-1, 1) / sqrt(fan-in); ReLU needs sqrt(2)
    assert figures(alert.evidence)[0] == pytest.approx(gain, abs=0.02)
    assert "20 layers" in alert.evidence
    assert f"{alert.value:.1f} decades" in alert.message
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


def test_large_initial_weights_that_make_gradients_explode_are_named_with_their_gain() -> None:
    for net, gain in (
        (scaled(relu_net(), 4.0), 4),  # times He's
        (scaled(deep_net(nn.Tanh, 32), 8 * math.sqrt(3)), 8),  # nn.Linear's own gain is 1 / sqrt(3)
    ):
        alert = explained(watched(net, 12, lr=1e-12), "exploding", "large_init")
        assert figures(alert.evidence)[0] == pytest.approx(gain, rel=0.05)


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
    assert re.match(r"[34]\.\d decades", alert.evidence)
    assert "between 11 and 8" in alert.evidence


def test_nothing_between_many_layers_is_named_where_the_weights_are_sound() -> None:
    class Halve(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - 0.6 * (x - x.detach())

    net = nn.Sequential(*(nn.Sequential(m, Halve()) for m in scaled(deep_net(nn.Tanh, 12), math.sqrt(3))))
    alert = explained(watched(net, 12, lr=0.02), "vanishing", "no_skip_or_norm")
    assert "12 layers in a row with 0 normalisation layers and 0 skip" in alert.evidence


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


def test_layers_cut_off_the_loss_are_named() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    net = relu_net(5)
    net.insert(4, Cut())
    alert = explained(watched(net, 15), "detached", "detached")
    assert alert.message.startswith("0, 2 run but never get a gradient")


def huge(output: Tensor, digit: Tensor) -> Tensor:
    return (output.sum(1) - digit).square().mean()


def test_a_learning_rate_that_is_too_high_is_named() -> None:
    def watch(lr: float) -> list[Alert]:
        return watched(nn.Sequential(nn.Linear(64, 10)), 40, loss_of=huge, lr=lr)

    alert = explained(watch(0.02), "exploding", "learning_rate")
    assert "learning rate of 0.02" in alert.evidence
    explained(watch(10.0), "nonfinite", "learning_rate")
    assert watch(1e-4) == []
    assert "a lower learning rate" in alert.remedies


def random_labels(output: Tensor, digit: Tensor) -> Tensor:
    return functional.cross_entropy(output, torch.arange(len(digit)) % 10)


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


def test_a_bad_batch_is_named_with_its_step() -> None:
    for value in (math.nan, math.inf):

        def spoil(step: int, pixels: Tensor, value: float = value) -> Tensor:
            pixels = pixels.clone()
            pixels[0, 0] = value if step == 7 else pixels[0, 0]
            return pixels

        alert = explained(watched(relu_net(3), 10, feed=spoil), "nonfinite", "bad_data")
        assert "the batch of step 7 itself" in alert.evidence


def test_an_unstable_operation_is_told_by_where_it_breaks() -> None:
    def backward_only(output: Tensor, digit: Tensor) -> Tensor:
        return classify(output, digit) + (output - output).abs().sum().sqrt()

    def in_the_loss(output: Tensor, digit: Tensor) -> Tensor:
        return classify(output, digit) - (0 * output).sum().log()

    alert = explained(watched(relu_net(3), 3, loss_of=backward_only), "nonfinite", "unstable_op")
    assert alert.evidence.startswith("the loss was finite and only the backward pass, first in 4,")
    alert = explained(watched(relu_net(3), 3, loss_of=in_the_loss), "nonfinite", "unstable_op")
    assert alert.evidence.startswith("the loss was not finite before any gradient was")


@pytest.mark.parametrize("every", [1, 10])
def test_a_slip_in_the_schedule_is_told_from_an_unstable_operation(every: int) -> None:
    class Slipping(torch.optim.SGD):
        num_steps = 0

        def step(self, closure: Any = None) -> Any:
            self.num_steps += 1
            self.param_groups[0]["lr"] = 1e9 if self.num_steps >= 30 else 0.01
            return super().step(closure)

    alert = explained(watched(relu_net(3), 60, optimizer=Slipping, every=every, lr=0.01), "nonfinite", "learning_rate")
    assert alert.evidence == "the learning rate has just risen from 0.01 to 1e+09"


def test_the_gates_of_a_recurrent_layer_are_not_blamed_for_what_the_layers_after_it_lose() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.tail = nn.GRU(8, 64), deep_net(nn.ReLU, 12)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.tail(self.read(x.reshape(len(x), 8, 8).transpose(0, 1))[0][-1])
            return out

    explained(watched(Gated(), 12), "vanishing", "small_init")


class Reader(nn.Module):
    """Reads 32 steps of noise; the last output judges."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.judge = nn.RNN(2, 16, nonlinearity="relu" if gain > 1 else "tanh"), nn.Linear(16, 10)
        nn.init.orthogonal_(self.read.get_parameter("weight_hh_l0"), gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.judge(self.read(x.reshape(len(x), 32, 2).transpose(0, 1))[0][-1])
        return out


def test_recurrent_weights_that_forget_are_named_with_their_horizon() -> None:
    alert = explained(
        watched(Reader(0.5), 90, loss_of=random_labels, lr=1e-3, every=2), "vanishing_through_time", "recurrence"
    )
    assert alert.layer == "read"
    horizon = math.log(100) / math.log(2)  # each step halves the gradient, or more
    assert 2 <= figures(alert.message.partition("only ")[2])[0] <= horizon + 2
    assert "of 32 time steps" in alert.message
    assert "32 times on its way back through read" in alert.evidence


def test_recurrent_weights_that_explode_are_named_with_their_growth() -> None:
    alert = explained(watched(Reader(2.0), 12, lr=1e-12), "exploding", "recurrence")
    assert "the 32 time steps of read" in alert.evidence
    assert figures(alert.evidence)[0] >= 3


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


def test_a_float16_overflow_is_named() -> None:
    net = relu_net(3).to(torch.float16)
    explained(watched(net, 3, feed=lambda step, pixels: 20000 * pixels), "nonfinite", "half_precision")


def test_an_eps_above_the_gradient_is_named_whatever_the_precision() -> None:
    net = relu_net(3).to(torch.bfloat16)
    before = [p.detach().clone() for p in net.parameters()]
    alerts = watched(net, 12, torch.optim.Adam, lr=1.0, eps=10.0)
    assert all(float((p != b).float().mean()) > 0.5 for p, b in zip(net.parameters(), before, strict=True))
    explained(alerts, "underflow", "adam_eps")


@pytest.mark.parametrize("kind", get_args(AlertKind))
def test_every_kind_is_explained_even_without_any_evidence(kind: AlertKind) -> None:
    finding = Finding(kind, "alert", 3, None, ("first", "last"), 2.5, 2.0)
    alert = explain(finding, Evidence(), "generator")
    assert (alert.kind, alert.step, alert.layer, alert.value, alert.threshold) == (kind, 3, "first", 2.5, 2.0)
    assert alert.optimizer == "generator"
    assert alert.cause in get_args(Cause)
    assert alert.remedies
    assert "step 3" in alert.message
    assert "Try: " in alert.message
    assert alert.summary.endswith(".")
    assert alert.summary[1:] in alert.message  # the rest of which has places of its own
    assert not [part for part in ("(step 3): ", "Try: ", *alert.remedies) if part in alert.summary]
    assert alert.evidence.lower() not in alert.summary.lower()
    assert not alert.summary.startswith("First")  # which would be another layer


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


class Forgetful(nn.Module):
    """A recurrent reader that forgets, beside layers that learn without it."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.reader, self.rest = Reader(gain), relu_net(3)
        with torch.no_grad():
            self.reader.judge.weight.mul_(0.05)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reader(x) + self.rest(x)
        return out


def test_an_encoder_that_forgets_is_found_while_other_layers_learn() -> None:
    found = watched(Forgetful(0.3), 90, every=2, lr=0.05)
    assert [alert.level for alert in found] == ["notice", "alert"]
    alert = explained(found, "vanishing_through_time", "recurrence")
    assert alert.layer == "reader.read"
    assert "whatever the loss does" in alert.message
    assert "it is not what lowers the loss" in alert.evidence
    assert watched(Forgetful(0.8), 90, every=2, lr=0.05) == []


@pytest.mark.parametrize(
    ("first", "grown", "cause"),
    [(0.0, 500.0, "learning_rate"), (-5.0, 500.0, "recurrence"), (0.0, 1.5, "recurrence")],
)
def test_a_layer_that_updates_have_made_forgetful_is_told_from_one_that_was_so(
    first: float, grown: float, cause: Cause
) -> None:
    evidence = Evidence()
    evidence.horizons, evidence.first_growth = {"read": (3, 64, 5.0)}, {"read": first}
    evidence.shrinkage, evidence.update_ratio, evidence.lr = {"read": grown}, {"read": 3.4}, 20.0
    finding = Finding("vanishing_through_time", "alert", 3, None, ("read",), 5.0, 3.0)
    assert explain(finding, evidence).cause == cause


def found(kind: Any, *layers: str, value: float = 2.5) -> Finding:
    return Finding(kind, "alert", 7, None, layers, value, 2.0)


def test_every_kind_has_a_sentence_of_its_own() -> None:
    """None falls through to the words of another; a kind that nobody has written words for says what it is."""
    kinds = (*get_args(AlertKind), "overheated")
    alerts = {kind: explain(found(kind, "first", "last"), Evidence()) for kind in kinds}
    sentences = {kind: alert.message.partition("tep 7")[0] for kind, alert in alerts.items()}
    assert len(set(sentences.values())) == len(kinds)
    unknown = alerts["overheated"]
    assert "`overheated` is at 2.5" in unknown.message
    assert (unknown.cause, unknown.kind, unknown.layer) == ("unknown", "overheated", "first")
    assert unknown.remedies
    assert "Values are lost in rounding" in alerts["underflow"].message
    assert all(explain(found(kind), Evidence()).message for kind in ("nonfinite", "stalled", "underflow", "overheated"))


NONFINITE = Finding("nonfinite", "alert", 7, None, ("4",), 1.0, 1.0)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("batch", [True, False, None], ids=["bad", "sound", "not looked at"])
@pytest.mark.parametrize("loss", [True, False, None], ids=["bad", "sound", "not known"])
def test_nothing_is_said_of_what_was_not_looked_at(batch: bool | None, loss: bool | None, num_ranks: int) -> None:
    evidence = Evidence()
    evidence.num_ranks = num_ranks
    for is_bad, bad, sound in (
        (batch, evidence.bad_inputs, evidence.sound_inputs),
        (loss, evidence.bad_losses, evidence.sound_losses),
    ):
        if is_bad is not None:
            (bad if is_bad else sound).append(7)
    told = explain(NONFINITE, evidence).evidence
    assert ("holds NaN" in told) == (batch is True)
    if batch is not True:
        assert bool(re.search(r"batch (and loss|and the steps before)[^;]* were", told)) <= (batch is False)
        assert bool(re.search(r"loss (of this rank )?was finite|batch and loss of this rank were", told)) == (
            loss is False
        )
        assert ("loss was not finite" in told) == (loss is True)


def test_a_batch_with_nan_is_not_blamed_where_such_batches_have_done_no_harm() -> None:
    """As where a missing value is NaN, and masked."""

    def spoilt(step: int, pixels: Tensor) -> Tensor:
        pixels = pixels.clone()
        pixels[0, 0] = math.nan
        return pixels

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.num_calls = relu_net(3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.num_calls += 1
            out: Tensor = self.net(x.nan_to_num()) - (0.0 if self.num_calls < 7 else (0 * x.nan_to_num()).sum().log())
            return out

    alert = explained(watched(Masked(), 10, feed=spoilt), "nonfinite", "unstable_op")
    assert "though their batches, too, held NaN" in alert.evidence


def test_what_is_known_of_a_bad_step_is_not_forgotten_before_it_is_told() -> None:
    """The copy that brings it home may hold hundreds of steps that came after it."""
    steps, bad = 300, 7
    norms = torch.ones(steps, 2)
    norms[bad] = math.nan
    observation = Observation(
        step=steps - 1,
        layers=(Layer("4", ("4.weight",)),),
        steps=tuple(range(steps)),
        norms=norms,
        losses=(1.0,) * steps,
        bad_inputs=(False,) * steps,
        lr=0.1,
        dtypes=frozenset(),
        anatomy=None,
        sample=None,
        histogram=None,
        publish=True,
    )
    evidence = Evidence()
    evidence.add(observation, {})
    assert explain(NONFINITE, evidence).evidence.startswith(
        "the loss was finite and only the backward pass, first in 4"
    )
