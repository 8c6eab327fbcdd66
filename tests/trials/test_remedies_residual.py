from __future__ import annotations

from typing import Any

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
    mlp,
    refused,
    treated,
)


class Block(nn.Module):
    """Two convolutions with a shared activation, and no skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Identity())
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.activation(self.second(self.activation(self.first(x))))
        return output


def blocks(count: int) -> Any:
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *stem, *(Block(6) for _ in range(count)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )


@pytest.mark.parametrize(
    ("net", "batch"), [(mlp(14, nn.ReLU), digits()), (convolutions(14), images()), (mlp(14, nn.Sigmoid), digits())]
)
def test_around_each_layer_the_gradient_finds_a_way(net: Any, batch: tuple[Tensor, Tensor]) -> None:
    model = treated("residual.layers", net, batch).model
    assert_same(model.state_dict(), net.state_dict())
    assert model(batch[0]).shape == net(batch[0]).shape
    lost = decades(net, batch)
    assert lost > 3
    assert decades(model, batch) < lost - 2


def test_around_each_block_the_gradient_finds_a_way() -> None:
    net, batch = blocks(7), images()
    model = treated("residual.blocks", net, batch).model
    assert decades(net, batch) > 3 > 1 > abs(decades(model, batch))
    x = net[:2](batch[0])
    for block in net[2:9]:
        x = x + block(x)
    torch.testing.assert_close(model(batch[0]), net[9:](x))


@pytest.mark.parametrize(
    ("key", "net", "batch"),
    [
        ("residual.layers", mlp(6, nn.ReLU), digits()),
        ("residual.layers", convolutions(6), images()),
        ("residual.blocks", blocks(4), images()),
    ],
)
def test_the_code_shown_does_what_is_tried(key: str, net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    ill = treated(key, net, batch)
    assert torch.equal(after(ill.code, net)(batch[0]), ill.model(batch[0]))


def test_where_there_are_skips_or_no_equal_shapes_it_is_refused() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(nn.Linear(16, 16) for _ in range(4)), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return self.head(x)

    assert refused("residual.layers", Skipping(), digits()) == "there are skip connections already"
    shrinking = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    assert "equal shapes" in refused("residual.layers", shrinking, digits())
    assert "equal shapes" in refused("residual.blocks", shrinking, digits())


def test_frozen_layers_and_the_output_keep_their_function() -> None:
    net = mlp(6, nn.ReLU)
    net[2].requires_grad_(False)
    net[-1] = nn.Linear(16, 16)
    model = treated("residual.layers", net, (digits()[0], digits()[1])).model
    hooked = [name for name, m in model.named_modules() if m._forward_hooks]
    assert hooked == ["4", "6", "8"]
