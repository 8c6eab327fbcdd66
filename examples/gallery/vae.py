"""VAE on the digits: with raw pixels exp(log_variance) is too large for float32; with standardised pixels it trains.

The encoder answers with the logarithm of a variance. The exponential of it is in both terms of the loss. With pixels
from 0 to 255, its first answers are in the hundreds. Float32 cannot hold the exponential of such numbers.

    python examples/gallery/vae.py [--directory D] [--steps N]
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from common import Network, Pair, Row, Task, batches, digits, show
from torch import Tensor, nn
from torch.nn import functional as F

CODE, WIDTH = 8, 64


class Variational(pl.LightningModule):
    """A variational autoencoder (Kingma and Welling 2014) of three layers on either side."""

    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Linear(64, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU()
        self.encoder = nn.Sequential(*hidden, nn.Linear(WIDTH, 2 * CODE))
        hidden = nn.Linear(CODE, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU()
        self.decoder = nn.Sequential(*hidden, nn.Linear(WIDTH, 64))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The negative evidence bound, per image."""
        images, _ = batch
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        error = F.mse_loss(self.decoder(code), images, reduction="none").sum(1)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
        loss: Tensor = (error + divergence).mean()
        self.log("loss", error.mean() / images.var(0).sum(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Gradient descent with momentum."""
        return torch.optim.SGD(self.parameters(), lr=5e-3, momentum=0.9)


def task(is_raw: bool) -> Task:
    """Reconstruct the digits; raw ones have pixels from 0 to 255, as image files do."""
    images, labels = digits()
    if is_raw:
        images = (images - images.min()) / (images.max() - images.min()) * 255
    return Task(Variational(), batches(images, labels))


ROW = Row(
    name="vae",
    title="VAE on digits",
    steps=400,
    pairs=(
        Pair(
            Network("raw pixels, 0 to 255", lambda: task(is_raw=True)),
            "nonfinite exploding",
            "input_scale unstable_op",
            (Network("standardised pixels", lambda: task(is_raw=False)),),
        ),
    ),
    measure="share of the variance not restored",
)

if __name__ == "__main__":
    show(ROW)
