from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lightning_gradwatch.trials.model import CannotApply, TrialModel
from tests.trials.models import (
    KEYS,
    assert_same,
    convolutions,
    cross_entropy,
    decades,
    digits,
    mlp,
    pasted,
    refused,
    treated,
)


def small(net: nn.Module, factor: float = 0.4) -> nn.Module:
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(factor)
    return net


class Tanh(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)


def test_he_initialisation_lets_the_gradient_reach_the_first_layers_of_a_relu_network() -> None:
    net = small(mlp(12, nn.ReLU))
    assert decades(net, digits()) > 4
    assert abs(decades(treated("init.he", net, digits()).model, digits())) < 1.5


@pytest.mark.parametrize("key", ["init.xavier", "init.orthogonal"])
def test_xavier_and_orthogonal_do_so_for_tanh(key: str) -> None:
    net = small(mlp(12, nn.Tanh), 0.2)
    assert decades(net, digits()) > 4
    assert abs(decades(treated(key, net, digits()).model, digits())) < 1.5


def test_orthogonal_weights_have_the_gain_of_the_activations_around_them() -> None:
    for activation, gain in ((nn.Tanh, 1.0), (nn.ReLU, math.sqrt(2))):
        weight = treated("init.orthogonal", mlp(4, activation), digits()).model[0].weight
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(16))
    functional = nn.Sequential(nn.Linear(16, 16), Tanh(), nn.Linear(16, 4))
    weight = treated("init.orthogonal", functional, digits()).model[0].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(16))


def test_the_variance_of_he_holds_for_transposed_convolutions_too() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(64, 16, 5), nn.Conv2d(16, 64, 5))
    batch = torch.randn(2, 64, 8, 8), torch.zeros(2)
    weights = [layer.weight for layer in treated("init.he", net, batch).model]
    for weight, fan_in in zip(weights, (64 * 25, 16 * 25), strict=True):
        assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)


@pytest.mark.parametrize("key", ["init.he", "init.xavier", "init.orthogonal", "init.zero_bias"])
@pytest.mark.parametrize("net", [mlp(4, nn.ReLU), convolutions(3), nn.MultiheadAttention(16, 2)])
def test_the_code_shown_does_what_is_tried(key: str, net: nn.Module) -> None:
    if isinstance(net, nn.MultiheadAttention):
        nn.init.ones_(net.out_proj.bias)
    assert_same(pasted(key, net).state_dict(), treated(key, net, digits()).model.state_dict())


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again = (treated("init.he", mlp(4, nn.ReLU), digits()).model.state_dict() for _ in range(2))
    assert_same(first, again)


def test_frozen_tied_reparametrised_zero_and_normalising_weights_stay() -> None:
    torch.manual_seed(0)
    lora = nn.Linear(8, 8, bias=False)
    net = nn.ModuleDict(
        {
            "embedding": nn.Embedding(10, 8),
            "tied": nn.Linear(8, 10, bias=False),
            "frozen": nn.Linear(8, 8).requires_grad_(False),
            "weight_normed": weight_norm(nn.Linear(8, 8)),
            "spectral": spectral_norm(nn.Linear(8, 8)),
            "lora": lora,
            "norm": nn.BatchNorm1d(8),
            "recurrent": nn.LSTM(8, 8),
            "trained": nn.Linear(8, 8),
        }
    )
    net["tied"].weight = net["embedding"].weight
    nn.init.zeros_(lora.weight)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = treated("init.he", net, digits()).model
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"trained.weight", "trained.bias"}
    assert model["tied"].weight is model["embedding"].weight
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in net.parameters()]


def test_weight_norm_of_the_old_kind_is_let_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(CannotApply, match="not reparametrised"):
        KEYS["init.he"].apply(TrialModel(layer, digits()))
    assert_same(layer.state_dict(), before)


def test_half_precision_stays_half() -> None:
    model = treated("init.he", mlp(4, nn.ReLU).half(), digits()).model
    assert {p.dtype for p in model.parameters()} == {torch.float16}


def test_a_network_without_such_layers_is_refused() -> None:
    net = nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8))
    assert "no linear or convolutional layer" in refused("init.he", net, digits())


def test_a_lazy_layer_is_not_drawn_before_it_is_there() -> None:
    with pytest.raises(CannotApply, match="no linear or convolutional layer"):
        KEYS["init.he"].apply(TrialModel(nn.Sequential(nn.LazyLinear(8)), digits()))


def test_biases_go_back_to_zero_and_the_weights_stay() -> None:
    net = mlp(6, nn.ReLU)
    nn.init.constant_(net[2].bias, -100.0)
    batch = digits()
    cross_entropy(net, batch).backward()
    assert not net[0].weight.grad.any()
    model = treated("init.zero_bias", net, batch).model
    for name, tensor in model.state_dict().items():
        assert not tensor.any() if name.endswith("bias") else torch.equal(tensor, net.state_dict()[name])
    cross_entropy(model, batch).backward()
    assert model[0].weight.grad.any()


def test_biases_that_are_zero_already_are_refused() -> None:
    net = nn.Sequential(nn.Linear(16, 4, bias=False))
    assert refused("init.zero_bias", net, digits()) == "no bias of a trained layer that is not zero"
