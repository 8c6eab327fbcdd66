"""LoRA: a network trained on the digits is adapted to their mirror images; both factors at zero never start.

LoRA (Hu et al. 2022) adds B A to a frozen weight, with B = 0 and A random. The gradient of A is exactly zero at the
first step, and that is healthy. If A = 0, too, the gradient of B is zero as well, and nothing ever moves.

    python examples/gallery/lora.py [--directory D] [--steps N]
"""

from __future__ import annotations

import torch
from common import Learner, Network, Pair, Row, Task, adam, batches, digits, show
from torch import Tensor, nn
from torch.nn import functional as F

RANK, WIDTH, DEPTH = 4, 64, 5


class LoRA(nn.Module):
    """A frozen linear layer plus a trained product of two thin matrices."""

    def __init__(self, base: nn.Linear, is_zero: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = nn.Linear(base.in_features, RANK, bias=False), nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)
        if is_zero:
            nn.init.zeros_(self.a.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer."""
        output: Tensor = self.base(x) + self.b(self.a(x))
        return output


def pretrained() -> nn.Sequential:
    """A classifier after 200 steps on the digits."""
    net = nn.Sequential()
    for i in range(DEPTH):
        net.extend([nn.Linear(64 if i == 0 else WIDTH, 10 if i == DEPTH - 1 else WIDTH), nn.ReLU()])
    net.pop(-1)
    optimizer, (images, labels) = torch.optim.Adam(net.parameters(), lr=3e-3), digits()
    for _ in range(200):
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return net


def task(is_zero: bool) -> Task:
    """Adapt to mirror images."""
    net, (images, labels) = pretrained(), digits()
    adapted = nn.Sequential(*(LoRA(part, is_zero) if isinstance(part, nn.Linear) else part for part in net))
    mirrored = images.reshape(-1, 8, 8).flip(2).flatten(1)
    return Task(Learner(adapted, adam(3e-3)), batches(mirrored, labels))


ROW = Row(
    name="lora",
    title="LoRA: adapting to mirrored digits",
    steps=200,
    pairs=(
        Pair(
            Network("A = 0 and B = 0", lambda: task(is_zero=True)),
            "dead stalled",
            "small_init",
            (Network("A random, B = 0", lambda: task(is_zero=False)),),
        ),
    ),
)

if __name__ == "__main__":
    show(ROW)
