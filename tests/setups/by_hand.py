"""A training loop in plain torch, without Lightning and without GradWatch: the oracle of the tests beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from tests.tasks import digits

LossOf = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Step:
    """L2 norms of the gradients of one step: of all parameters, by layer, and at the outputs of the linear layers."""

    total: float
    layers: dict[str, float]
    outputs: dict[str, float]


def loss_of(net: nn.Module, batch: Any) -> Tensor:
    """The loss of ``tests.tasks.Classifier``."""
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def train_by_hand(
    net: nn.Module,
    steps: int,
    loss: LossOf = loss_of,
    lr: float = 0.1,
    prefix: str = "net.",
    batches: int | None = None,
) -> list[Step]:
    """Train with plain SGD on the (first) batches of the digits, over and over, and measure every step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    data = islice(cycle(islice(digits(), batches)), steps)
    return [_step(net, optimizer, loss, batch, prefix) for batch in data]


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, loss_of: LossOf, batch: Any, prefix: str) -> Step:
    outputs: list[tuple[str, Tensor]] = []
    linear = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    handles = [
        module.register_forward_hook(lambda *args, name=name: outputs.append((name, args[-1])))
        for name, module in linear.items()
    ]
    loss = loss_of(net, batch)
    for handle in handles:
        handle.remove()
    at_outputs = torch.autograd.grad(loss, [tensor for _, tensor in outputs], retain_graph=True, allow_unused=True)
    optimizer.zero_grad()
    loss.backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    step = Step(
        torch.nn.utils.get_total_norm(gradients).item(),
        {prefix + name: _norm([p.grad for p in module.parameters()]) for name, module in linear.items()},
        {
            prefix + name: _norm([g for (n, _), g in zip(outputs, at_outputs, strict=True) if n == name])
            for name in linear
        },
    )
    optimizer.step()
    return step


def _norm(gradients: list[Tensor | None]) -> float:
    squares: float = sum(g.double().square().sum().item() for g in gradients if g is not None)
    return squares**0.5
