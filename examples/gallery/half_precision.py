"""Half precision: float16 without loss scaling rounds small gradients to zero; a GradScaler or bfloat16 keeps them.

A network restores digits whose brightness is given in small units, so that errors and gradients are small. float16 has
no number between 0 and 6e-8. ``Trainer(precision="16-mixed")`` scales the loss up before the backward pass, and
bfloat16 has the range of float32. (On a GPU that string is all you need. On a CPU Lightning needs the plugin that is
used here.)

    python examples/gallery/half_precision.py [--directory D] [--steps N]
"""

from __future__ import annotations

from typing import Any

import torch
from common import Learner, Network, Pair, Row, Task, batches, digits, sgd, show
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F

UNIT = 5e-5


def mlp() -> nn.Sequential:
    """Four layers with He initialisation that start by answering zero."""
    layers = [nn.Linear(64, 64) for _ in range(4)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(layers[-1].weight)
    first, second, third, last = layers
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), last)


class Faint(Learner):
    """Trains on the squared error in the small unit, and logs it relative to answering zero."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        inputs, target = batch
        loss = F.mse_loss(self.net(inputs).float(), target.float())
        self.log("loss", loss.detach() / UNIT**2, prog_bar=True)
        return loss


def task(**trainer: Any) -> Task:
    """Restore the digits in the small unit."""
    images, _ = digits()
    return Task(Faint(mlp(), sgd(0.5)), batches(images, UNIT * images, size=256), trainer)


def mixed(is_scaled: bool) -> MixedPrecision:
    """Autocast to float16, with or without a loss scale."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", enabled=is_scaled))


CURES = (
    Network("16-mixed: float16 with a GradScaler", lambda: task(plugins=mixed(is_scaled=True))),
    Network("bf16-mixed", lambda: task(precision="bf16-mixed")),
)
ROW = Row(
    name="half_precision",
    title="Half precision",
    steps=400,
    pairs=(
        Pair(
            Network("float16 weights, no loss scale", lambda: task(precision="16-true")),
            "underflow",
            "half_precision",
            CURES,
        ),
        Pair(
            Network("autocast to float16, no loss scale", lambda: task(plugins=mixed(is_scaled=False))),
            "underflow",
            "half_precision",
            CURES,
        ),
    ),
    measure="error (answering zero: 1)",
)

if __name__ == "__main__":
    show(ROW)
