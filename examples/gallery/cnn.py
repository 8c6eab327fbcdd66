"""Deep plain CNN on the digits, as in VGG: the default initialisation starves it; BatchNorm or skips cure it.

torch draws the weights of a convolution at 0.41 of the scale that ReLU needs. Over 22 layers almost nothing of the
gradient is left. BatchNorm restores the scale after each layer. A residual block (He et al. 2016) lets the gradient
pass beside its two convolutions. With zero-init residual each block starts as the identity. Its first convolution then
has a gradient of exactly zero at the first step, and that is healthy.

    python examples/gallery/cnn.py [--directory D] [--steps N]
"""

from __future__ import annotations

import torch
from common import Learner, Network, Pair, Row, Task, batches, digits, sgd, show
from torch import Tensor, nn

DEPTH, CHANNELS = 22, 16


def convolution(inputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with torch's default initialisation."""
    return nn.Conv2d(inputs, CHANNELS, 3, stride, padding=1)


def plain(batch_norm: bool) -> nn.Sequential:
    """Convolutions one after the other, the image halved at the second."""
    net = nn.Sequential(nn.Unflatten(1, (1, 8, 8)))
    for i in range(DEPTH):
        net.append(convolution(1 if i == 0 else CHANNELS, stride=2 if i == 1 else 1))
        net.extend([nn.BatchNorm2d(CHANNELS), nn.ReLU()] if batch_norm else [nn.ReLU()])
    return net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)])


class Residual(nn.Module):
    """Two normalised convolutions beside a skip."""

    def __init__(self, zero_init: bool) -> None:
        super().__init__()
        last_norm = nn.BatchNorm2d(CHANNELS)
        if zero_init:
            nn.init.zeros_(last_norm.weight)
        first = convolution(CHANNELS), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)
        self.branch = nn.Sequential(*first, convolution(CHANNELS), last_norm)

    def forward(self, x: Tensor) -> Tensor:
        """The input plus the branch, activated."""
        return torch.relu(x + self.branch(x))


def resnet(zero_init: bool) -> nn.Sequential:
    """As many convolutions, in residual blocks."""
    stem = nn.Unflatten(1, (1, 8, 8)), convolution(1, stride=2), nn.BatchNorm2d(CHANNELS), nn.ReLU()
    blocks = (Residual(zero_init) for _ in range((DEPTH - 1) // 2))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10))


def task(net: nn.Module) -> Task:
    """Classify the digits."""
    return Task(Learner(net, sgd(0.05)), batches(*digits()))


ROW = Row(
    name="cnn",
    title="Deep plain CNN (VGG-like) on digits",
    steps=200,
    pairs=(
        Pair(
            Network("22 plain convolutions, default init", lambda: task(plain(batch_norm=False))),
            "vanishing",
            "small_init no_skip_or_norm",
            (
                Network("BatchNorm", lambda: task(plain(batch_norm=True))),
                Network("residual connections (ResNet)", lambda: task(resnet(zero_init=False))),
                Network("zero-init residual", lambda: task(resnet(zero_init=True))),
            ),
        ),
    ),
)

if __name__ == "__main__":
    show(ROW)
