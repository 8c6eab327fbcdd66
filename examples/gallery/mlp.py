"""Deep MLP on the digits: sigmoids or too small an initialisation starve its early layers; how to cure each.

A sigmoid passes on at most a quarter of the gradient. One cure is an activation that passes on all of it, with the
initialisation that fits it (He for ReLU and SiLU). Another is normalisation, which keeps the inputs of the sigmoids
where their slope is large. Weights that are too small also shrink the gradient in every layer. Xavier's scale keeps the
gradient level behind tanh.

    python examples/gallery/mlp.py [--directory D] [--steps N]
"""

from __future__ import annotations

import math

from common import Learner, Network, Pair, Row, Task, batches, digits, sgd, show
from torch import nn

DEPTH, WIDTH = 20, 64


def mlp(activation: type[nn.Module], gain: float | None = None, batch_norm: bool = False) -> nn.Sequential:
    """Twenty linear layers.

    Args:
        activation: What follows each but the last.
        gain: Standard deviation of the weights times the root of the fan-in; None for torch's default.
        batch_norm: Whether to normalise before each activation.
    """
    net = nn.Sequential()
    for i in range(DEPTH):
        linear = nn.Linear(64 if i == 0 else WIDTH, 10 if i == DEPTH - 1 else WIDTH)
        if gain is not None:
            nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
            nn.init.zeros_(linear.bias)
        net.append(linear)
        if i < DEPTH - 1:
            net.extend([nn.BatchNorm1d(WIDTH), activation()] if batch_norm else [activation()])
    return net


def task(net: nn.Module, lr: float = 0.02) -> Task:
    """Classify the digits."""
    return Task(Learner(net, sgd(lr)), batches(*digits()))


HE, XAVIER = math.sqrt(2), 1.0
ROW = Row(
    name="mlp",
    title="Deep MLP on digits",
    steps=300,
    pairs=(
        Pair(
            Network("20 sigmoid layers", lambda: task(mlp(nn.Sigmoid))),
            "vanishing",
            "saturating_activation",
            (
                Network("ReLU, He init", lambda: task(mlp(nn.ReLU, HE))),
                Network("SiLU, He init", lambda: task(mlp(nn.SiLU, HE))),
                Network("BatchNorm between the sigmoids", lambda: task(mlp(nn.Sigmoid, batch_norm=True), 0.1)),
            ),
        ),
        Pair(
            Network("20 tanh layers, small init", lambda: task(mlp(nn.Tanh, 0.3))),
            "vanishing",
            "small_init",
            (
                Network("tanh, Xavier init", lambda: task(mlp(nn.Tanh, XAVIER))),
                Network("ReLU, He init", lambda: task(mlp(nn.ReLU, HE))),
            ),
        ),
    ),
)

if __name__ == "__main__":
    show(ROW)
