"""The LightningModule that most rows train, and its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Learner(pl.LightningModule):
    """Trains a network on pairs of inputs and targets.

    Args:
        net: The network.
        optimizer: Makes the optimizer from the parameters that are trained.
        loss: The loss of output and target.
        warmup: Steps over which the learning rate rises from zero.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.optimizer, self.warmup = net, loss, optimizer, warmup

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        inputs, target = batch
        loss = self.loss(self.net(inputs), target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer, warmed up if it is to be."""
        return warmed_up(self.optimizer([p for p in self.parameters() if p.requires_grad]), self.warmup)


def warmed_up(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """What ``configure_optimizers`` returns for a learning rate that rises from zero over so many steps."""
    if not steps:
        return optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def adam(lr: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Adam at a learning rate."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def sgd(lr: float, momentum: float = 0.9) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Gradient descent with momentum."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def per_token(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all places of a sequence."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())
