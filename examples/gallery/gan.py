"""GAN on the digits: the gradients of a deep generator vanish; BatchNorm, as in DCGAN, cures it.

The generator has 14 layers with torch's default initialisation and without normalisation. So almost no gradient from
the discriminator reaches its first layers (Radford et al. 2016). GradWatch watches each optimizer separately.

    python examples/gallery/gan.py [--directory D] [--steps N]
"""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
from common import Network, Pair, Row, Task, batches, digits, show
from torch import Tensor, nn
from torch.nn import functional as F

NOISE, WIDTH, DEPTH = 16, 64, 14


def make_generator(batch_norm: bool) -> nn.Sequential:
    """Noise to flat images."""
    net = nn.Sequential()
    for i in range(DEPTH - 1):
        net.append(nn.Linear(WIDTH if i else NOISE, WIDTH))
        net.extend([nn.BatchNorm1d(WIDTH), nn.ReLU()] if batch_norm else [nn.ReLU()])
    return net.append(nn.Linear(WIDTH, 64))


def make_discriminator() -> nn.Sequential:
    """Flat images to the logit of being real."""
    slope = 0.2
    hidden = nn.Linear(64, 128), nn.LeakyReLU(slope), nn.Linear(128, 128), nn.LeakyReLU(slope)
    return nn.Sequential(*hidden, nn.Linear(128, 1))


def energy_distance(first: Tensor, second: Tensor) -> Tensor:
    """Distance between two samples of images, zero if they are alike (Szekely and Rizzo 2013)."""
    cross, within, without = (torch.cdist(a, b).mean() for a, b in ((first, second), (first, first), (second, second)))
    return 2 * cross - within - without


class Adversarial(pl.LightningModule):
    """Alternating updates by manual optimization; logs how far the generated digits are from real ones."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, make_discriminator()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the discriminator, then the generator."""
        real, _ = batch
        of_generator, of_discriminator = cast(list[Any], self.optimizers())
        fake = self.generator(torch.randn(len(real), NOISE))
        judged = F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(fake.detach())).mean()
        self.update(of_discriminator, judged)
        self.update(of_generator, F.softplus(-self.discriminator(fake)).mean())
        self.log("loss", energy_distance(fake.detach(), real), prog_bar=True)

    def update(self, optimizer: Any, loss: Tensor) -> None:
        """One step of one optimizer."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        """One Adam each."""
        parts = self.generator, self.discriminator
        return [torch.optim.Adam(part.parameters(), lr=5e-4, betas=(0.5, 0.99)) for part in parts]


def task(batch_norm: bool) -> Task:
    """Learn to draw digits."""
    return Task(Adversarial(make_generator(batch_norm)), batches(*digits()))


ROW = Row(
    name="gan",
    title="GAN on digits",
    steps=800,  # two optimizers: 400 batches
    pairs=(
        Pair(
            Network("14-layer generator, default init", lambda: task(batch_norm=False)),
            "vanishing",
            "small_init no_skip_or_norm",
            (Network("14-layer generator, BatchNorm", lambda: task(batch_norm=True)),),
        ),
    ),
    axis="layer: the generator, then the discriminator",
    measure="energy distance to real digits",
)

if __name__ == "__main__":
    show(ROW)
