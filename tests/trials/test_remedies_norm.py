from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.trials.models import (
    after,
    assert_same,
    convolutions,
    decades,
    digits,
    images,
    learn,
    mlp,
    refused,
    sequences,
    treated,
)


def normalised(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(getattr(m, "norm", None), nn.Module)]


class Tokens(nn.Module):
    """A perceptron for every token of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(9, nn.ReLU).insert(0, nn.Linear(4, 16)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


@pytest.mark.parametrize(
    ("key", "net", "batch", "kind"),
    [
        ("norm.batch", mlp(9, nn.Sigmoid), digits(), nn.BatchNorm1d),
        ("norm.layer", mlp(9, nn.ReLU), digits(), nn.LayerNorm),
        ("norm.batch", convolutions(12), images(), nn.BatchNorm2d),
        ("norm.layer", convolutions(12), images(), nn.GroupNorm),
        ("norm.layer", Tokens(), sequences(), nn.LayerNorm),
    ],
)
def test_hidden_layers_are_normalised_by_shape_and_the_gradient_passes(
    key: str, net: nn.Module, batch: tuple[Tensor, Tensor], kind: type
) -> None:
    model = treated(key, net, batch).model
    names = normalised(model)
    layers = [name for name, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert names == layers[: len(names)]
    assert len(layers) - 2 <= len(names) < len(layers)
    assert {type(model.get_submodule(name).norm) for name in names} == {kind}
    assert model(batch[0]).shape == net(batch[0]).shape
    assert decades(net, batch) > 2
    assert abs(decades(model, batch)) < 1.5
    kept = {name: tensor for name, tensor in model.state_dict().items() if ".norm." not in name}
    assert_same(kept, net.state_dict())


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.7 * x)


@pytest.mark.parametrize("activation", [nn.Softsign, Swish, nn.PReLU, nn.Mish, nn.GELU])
def test_activations_that_are_spelt_out_are_known_too(activation: Callable[[], nn.Module]) -> None:
    assert normalised(treated("norm.layer", mlp(4, activation), digits()).model) == ["0", "2", "4"]


def test_it_stands_before_the_activation() -> None:
    net = mlp(4, nn.ReLU)
    model = treated("norm.layer", net, digits()).model
    x = digits()[0]
    for layer in (net[0], net[2], net[4]):
        x = torch.relu(nn.functional.layer_norm(layer(x), (16,)))
    torch.testing.assert_close(model(digits()[0]), net[6](x))


@pytest.mark.parametrize(
    ("key", "net", "batch"),
    [
        ("norm.batch", mlp(6, nn.ReLU), digits()),
        ("norm.layer", mlp(6, nn.ReLU), digits()),
        ("norm.batch", convolutions(6), images()),
        ("norm.layer", convolutions(6), images()),
    ],
)
def test_the_code_shown_does_what_is_tried(key: str, net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    ill = treated(key, net, batch)
    shown, tried = after(ill.code, net), ill.model
    assert torch.equal(shown(batch[0]), tried(batch[0]))
    assert_same(shown.state_dict(), tried.state_dict())


def test_statistics_that_are_there_already_are_not_moved_by_a_look() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), *mlp(4, nn.ReLU))
    model = treated("norm.layer", net, digits()).model
    assert "0" not in normalised(model)  # what is normalised already is let alone
    assert torch.equal(model[1].running_mean, torch.zeros(16))
    assert int(model[1].num_batches_tracked) == 0


def test_buffers_that_a_forward_pass_replaces_are_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Tensor
            self.register_buffer("seen", torch.zeros(()))
            self.body = mlp(4, nn.ReLU)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1
            return self.body(x)

    assert int(treated("norm.layer", Counting(), digits()).model.seen) == 0


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("norm.batch", lambda: mlp(2, nn.ReLU)[2:]),  # a single layer is the output
        ("norm.batch", Tokens),
        ("norm.layer", lambda: nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))),
        ("norm.layer", lambda: mlp(4, nn.ReLU).requires_grad_(False).append(nn.Linear(4, 4))),
    ],
)
def test_where_there_is_nothing_to_normalise_it_is_refused(key: str, make: Callable[[], nn.Module]) -> None:
    batch = sequences() if make is Tokens else digits()
    assert "no hidden layer" in refused(key, make(), batch)


def test_a_batch_of_one_has_no_statistics() -> None:
    net = mlp(4, nn.ReLU)
    assert "no hidden layer" in refused("norm.batch", net, digits(count=1))
    learn(treated("norm.layer", net, digits(count=1)).model, digits(count=1))


def test_a_layer_that_is_used_several_times_keeps_one_layer_norm_and_gets_no_batch_norm() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(9):
                x = torch.relu(self.layer(x))
            return self.last(x)

    assert normalised(treated("norm.layer", Again(), digits()).model) == ["layer"]
    assert "no hidden layer" in refused("norm.batch", Again(), digits())


def test_the_dtype_of_the_layer_is_kept() -> None:
    net = mlp(4, nn.ReLU).bfloat16()
    batch = digits()[0].bfloat16(), digits()[1]
    model = treated("norm.batch", net, batch).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
