"""Laws of a measured way back: factors telescope, a scale changes nothing, graph and weights are left alone."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.core.attribution import graph
from lightning_gradwatch.core.attribution.tracer import Tracer
from lightning_gradwatch.core.attribution.way import Attribution, shares
from lightning_gradwatch.core.modules import modules
from lightning_gradwatch.core.saved import Saved, State
from tests.core.builders import saved_and_loaded

CPU = torch.device("cpu")


def chain(activation: Callable[[], nn.Module], depth: int = 20) -> nn.Sequential:
    return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(16, 16), activation())], nn.Linear(16, 4))


class Residual(nn.Module):
    """Blocks with two ways around each other, pooling at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            new = torch.relu(norm(conv(x)))
            x = new if i == 0 else x + new
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Token embeddings, three blocks of attention, a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 3)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(x)).mean(1))


class Cells(nn.Module):
    """A recurrence written out: the same weights at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.GRUCell(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 12)
        for t in range(x.shape[1]):
            state = self.inner(x[:, t], state)
        return self.head(state)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "sigmoids": (lambda: chain(nn.Sigmoid), lambda: torch.randn(8, 16)),
    "relu in place": (lambda: chain(lambda: nn.ReLU(inplace=True), 6), lambda: torch.randn(8, 16)),
    "residual": (Residual, lambda: torch.randn(8, 3, 6, 6)),
    "attention": (Attention, lambda: torch.randint(20, (8, 10))),
    "cells": (Cells, lambda: torch.randn(8, 7, 8)),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), nn.Tanh(), nn.Linear(16, 4)),
        lambda: torch.randn(8, 16),
    ),
}


def names_of(net: nn.Module) -> dict[int, str]:
    return {id(parameter): name.rpartition(".")[0] for name, parameter in net.named_parameters()}


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(x), torch.arange(8) % 4)


def attribution(net: nn.Module, loss: Tensor, **backward: bool) -> Attribution:
    tracer = Tracer()
    tracer.is_awake = True
    tracer.trace(loss)
    loss.backward(**backward)
    found = tracer.take(names_of(net), CPU)
    assert found is not None
    operations, logs = found
    return Attribution(operations, logs.tolist())


@pytest.mark.parametrize("name", NETWORKS)
def test_along_every_way_the_factors_telescope(name: str) -> None:
    torch.manual_seed(0)
    build, data = NETWORKS[name]
    net = build()
    found = attribution(net, loss_of(net, data()))
    assert len(found.layers) >= 2
    for layer in found.layers:
        lost = sum(link.lost for link in found.way(layer))
        assert lost == pytest.approx(-found.norm_at(layer), abs=1e-3), layer  # the loss's own gradient is 1


@pytest.mark.parametrize("name", ["sigmoids", "relu in place", "residual", "attention"])
def test_norms_are_those_at_the_layers_outputs(name: str) -> None:
    torch.manual_seed(0)
    build, data = NETWORKS[name]
    net, norms = build(), dict[str, float]()

    def watch(layer: str) -> Callable[..., None]:
        def see(_: nn.Module, __: object, output: Tensor) -> None:
            output.register_hook(lambda gradient: norms.update({layer: gradient.double().norm().item()}))

        return see

    layers = {id(module): name for name, module in net.named_modules()}
    for module in modules(net):
        if isinstance(module, (nn.Linear, nn.Conv2d)) and "self_attn" not in layers[id(module)]:
            module.register_forward_hook(watch(layers[id(module)]))
    found = attribution(net, loss_of(net, data()))
    assert len(norms) >= 4
    for layer, norm in norms.items():
        assert found.norm_at(layer) == pytest.approx(math.log10(norm), abs=1e-4), layer


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_holds_all_of_it(name: str) -> None:
    torch.manual_seed(0)
    build, data = NETWORKS[name]
    net = build()
    found = attribution(net, loss_of(net, data()))
    loaded = Attribution.load(Saved(saved_and_loaded(found.state_dict())))
    assert loaded is not None
    assert [loaded.way(layer) for layer in loaded.layers] == [found.way(layer) for layer in found.layers]
    assert (loaded.layers, loaded.head(), loaded.branches()) == (found.layers, found.head(), found.branches())


@pytest.mark.parametrize(
    "damage",
    [
        {"operations": [("weights", "0", 0, ((0, -1),))]},  # it feeds itself
        {"operations": [("weights", "0", 1, ())]},  # there is no such norm
        {"operations": [("weights", "0", -1, ())]},  # none at all
        {"operations": [("loss", "", 0, ()), ("weights", "0", -1, ((0, 0), (0, 0)))]},  # two may bring different ones
        {"operations": [("magic", "0", 0, ())]},
        {"operations": 3},
        {"logs": ["a"]},
    ],
)
def test_what_cannot_be_one_is_not_loaded_and_named(damage: State) -> None:
    saved = Saved({"operations": [("weights", "0", 0, ())], "logs": [0.0], **damage})
    assert Attribution.load(saved) is None
    assert saved.lost
    assert Attribution.load(Saved({})) is None


def test_what_is_lost_is_shared_out_among_the_operations() -> None:
    torch.manual_seed(0)
    net = chain(nn.Sigmoid)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                layer.bias.zero_()
    found = attribution(net, loss_of(net, torch.randn(8, 16)))
    first, *rest = shares(link for link in found.way("0") if link.layer)
    assert (first.group, first.count) == ("sigmoid", 20)
    assert first.factor == pytest.approx(0.24, abs=0.03)  # a sigmoid's slope is a quarter at most
    (weights,) = [share for share in rest if share.group == "weights"]
    assert weights.factor == pytest.approx(1.0, abs=0.15)  # but for the last, they keep every norm


def test_the_scale_of_the_loss_changes_no_factor() -> None:
    ways = []
    for scale in (1.0, 1e4, 1e-6):
        torch.manual_seed(0)
        net = Residual()
        found = attribution(net, loss_of(net, torch.randn(8, 3, 6, 6)) * scale)
        ways.append([link.lost for link in found.way("convs.0") if link.layer])
    assert ways[0]
    assert ways[1] == pytest.approx(ways[0], abs=1e-3)
    assert ways[2] == pytest.approx(ways[0], abs=1e-3)


def test_nothing_stays_on_the_graph_and_the_graph_does_not_stay() -> None:
    net, tracer = chain(nn.Tanh), Tracer()
    tracer.is_awake = True
    inner = net(torch.randn(8, 16))
    tracer.trace(inner.sum())
    ghost, node = weakref.ref(inner), inner.grad_fn
    tracer.forget()
    seconds = tracer.seconds
    inner.sum().backward()
    assert tracer.seconds == seconds  # no hook has run
    assert tracer.take(names_of(net), CPU) is None
    del inner, node
    gc.collect()
    assert ghost() is None


def test_after_it_is_taken_the_graph_is_free() -> None:
    net, tracer = chain(nn.Tanh), Tracer()
    tracer.is_awake = True
    loss = loss_of(net, torch.randn(8, 16))
    tracer.trace(loss)
    loss.backward()
    ghost = weakref.ref(loss)
    kept = tracer.take(names_of(net), CPU)
    del loss
    gc.collect()
    assert ghost() is None
    assert kept is not None


def trained(is_traced: bool) -> list[Tensor]:
    torch.manual_seed(0)
    net, tracer = Attention(), Tracer()
    tracer.is_awake = is_traced
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(5):
        loss = loss_of(net, torch.randint(20, (8, 10)))
        tracer.trace(loss)
        optimizer.zero_grad()
        loss.backward()
        assert (tracer.take(names_of(net), CPU) is not None) == is_traced
        optimizer.step()
    return list(net.parameters())


def test_weights_are_the_same_bit_for_bit() -> None:
    for with_it, without in zip(trained(is_traced=True), trained(is_traced=False), strict=True):
        assert torch.equal(with_it, without)


class Halve(torch.autograd.Function):
    """A function of the user's, which halves a gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient / 2


def test_custom_functions_are_named_as_such() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = Halve.apply(x if x.grad_fn else self.first(x))
            return self.second(x)

    net = Net()
    found = attribution(net, loss_of(net, torch.randn(8, 16)))
    (halves,) = [share for share in shares(found.way("first")) if share.group == "custom"]
    assert halves.count == 3
    assert halves.factor == pytest.approx(0.5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_checkpointed_is_measured_from_outside(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(16, 16), chain(nn.Tanh, 2)[:-1], nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.inner, self.first(x), use_reentrant=reentrant))

    net = Net()
    found = attribution(net, loss_of(net, torch.randn(8, 16)))
    groups = {link.group for link in found.way("first")}
    assert ("checkpoint" in groups) == reentrant
    assert sum(link.lost for link in found.way("first")) == pytest.approx(-found.norm_at("first"), abs=1e-3)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_gradient_that_is_differentiated_once_more_is_measured() -> None:
    net = chain(nn.Tanh, 3)
    loss = loss_of(net, torch.randn(8, 16))
    found = attribution(net, loss, create_graph=True)
    assert found.way("0")
    penalty = sum(parameter.grad.square().sum() for parameter in net.parameters() if parameter.grad is not None)
    assert isinstance(penalty, Tensor)
    penalty.backward()


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_where_a_norm_is_no_number_there_is_no_way(value: float) -> None:
    net = chain(nn.Tanh, 3)
    found = attribution(net, loss_of(net, torch.randn(8, 16)) * value)
    assert found.layers
    assert all(found.way(layer) == [] for layer in found.layers)
    assert found.way("no such layer") == []
    assert math.isnan(found.norm_at("no such layer"))


def test_a_graph_that_is_too_large_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net, tracer = chain(nn.Tanh), Tracer()
    tracer.is_awake = True
    for limit in ("MAX_NODES", "MAX_HOOKS"):
        with monkeypatch.context() as patch:
            patch.setattr(graph, limit, 10)
            loss = loss_of(net, torch.randn(8, 16))
            tracer.trace(loss)
            loss.backward()
            assert tracer.take(names_of(net), CPU) is None


def test_a_loss_without_a_graph_and_a_network_without_weights_are_no_trouble() -> None:
    tracer = Tracer()
    tracer.is_awake = True
    tracer.trace(torch.tensor(1.0))
    assert tracer.take({}, CPU) is None
    leaf = torch.ones(3, requires_grad=True)
    loss = leaf.square().sum()
    tracer.trace(loss)
    loss.backward()
    assert tracer.take({}, CPU) is None


def test_what_fails_is_raised_where_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    net, tracer = chain(nn.Tanh), Tracer()
    tracer.is_awake = True
    loss = loss_of(net, torch.randn(8, 16))
    tracer.trace(loss)
    monkeypatch.setattr("lightning_gradwatch.core.attribution.tracer.norm_of", lambda *_: 1 / 0)
    loss.backward()  # which survives
    with pytest.raises(ZeroDivisionError):
        tracer.take(names_of(net), CPU)


@pytest.mark.parametrize(("scale", "is_strong"), [(1.0, True), (1e-20, False), (1e20, False)])
def test_norms_are_taken_in_float32_only_where_their_squares_fit(scale: float, is_strong: bool) -> None:
    torch.manual_seed(0)
    net = chain(nn.Tanh, 3)
    found = attribution(net, loss_of(net, torch.randn(8, 16)) * scale)
    assert found.is_strong == is_strong


def test_what_a_group_loses_is_known_before_each_layer() -> None:
    torch.manual_seed(0)
    net = Residual()
    found = attribution(net, loss_of(net, torch.randn(8, 3, 6, 6)))
    lost = found.lost_before("pooling")
    assert set(lost) == set(found.layers)
    assert lost["head"] == 0.0
    assert lost["convs.4"] == pytest.approx(math.log10(6), abs=1e-3)  # the root of 36 places
    for layer in found.layers:
        way = [link.lost for link in found.way(layer) if link.group == "pooling"]
        assert lost[layer] == pytest.approx(sum(way), abs=1e-3)
    assert set(found.lost_before("softmax").values()) == {0.0}


class Towers(nn.Module):
    """Two networks side by side and a head of two layers on the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = chain(nn.Tanh, 3), chain(nn.Tanh, 2), chain(nn.Tanh, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.first(x)] * 2 + [self.second(x)] * 2, dim=1))
        return out


def test_branches_reach_from_their_input_ends_to_where_they_meet() -> None:
    torch.manual_seed(0)
    found = attribution(net := Towers(), loss_of(net, torch.randn(8, 16))).branches()
    assert sorted(found) == [
        ("first.0", "first.2", "first.4", "first.6"),
        ("second.0", "second.2", "second.4"),
    ]
    single = chain(nn.Tanh, 3)
    assert attribution(single, loss_of(single, torch.randn(8, 16))).branches() == [("0", "2", "4", "6")]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_belongs_to_two_branches(name: str) -> None:
    torch.manual_seed(0)
    build, data = NETWORKS[name]
    net = build()
    found = attribution(net, loss_of(net, data()))
    members = [layer for branch in found.branches() for layer in branch]
    assert len(members) == len({*members})
    assert {*members} <= {*found.layers}
