"""Diffusion-like UNet on the digits: without skips and normalisation its gradients vanish; the usual form trains.

The network predicts the noise in an image. It is given the strength of the noise (Ho et al. 2020). The usual form has
residual blocks with GroupNorm, and skips between the two sides. Its last convolution starts at zero, so all gradients
behind it are exactly zero at the first step. That is healthy.

    python examples/gallery/unet.py [--directory D] [--steps N]
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from common import Network, Pair, Row, Task, batches, digits, show
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, BLOCKS = 16, 4


class Block(nn.Module):
    """Two convolutions, told the noise level, beside a skip and behind normalisation, or neither."""

    def __init__(self, inputs: int, is_usual: bool) -> None:
        super().__init__()
        self.is_usual = is_usual
        self.norms = nn.ModuleList(nn.GroupNorm(4, n) if is_usual else nn.Identity() for n in (inputs, WIDTH))
        self.first, self.second = nn.Conv2d(inputs, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.level = nn.Linear(1, WIDTH)
        self.beside = nn.Conv2d(inputs, WIDTH, 1) if inputs != WIDTH and is_usual else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Images to images of the same size."""
        hidden = self.first(F.silu(self.norms[0](x))) + self.level(level)[:, :, None, None]
        hidden = self.second(F.silu(self.norms[1](hidden)))
        output: Tensor = hidden + self.beside(x) if self.is_usual else hidden
        return output


class UNet(nn.Module):
    """Two resolutions."""

    def __init__(self, is_usual: bool) -> None:
        super().__init__()
        self.is_usual = is_usual
        self.stem, self.last = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 1, 3, padding=1)
        self.down, self.middle = (nn.ModuleList(Block(WIDTH, is_usual) for _ in range(BLOCKS)) for _ in range(2))
        self.up = nn.ModuleList(Block(2 * WIDTH if i == 0 and is_usual else WIDTH, is_usual) for i in range(BLOCKS))
        if is_usual:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The noise in images of 8x8 pixels."""
        x = self.stem(x)
        for block in self.down:
            x = block(x, level)
        fine, x = x, F.avg_pool2d(x, 2)
        for block in self.middle:
            x = block(x, level)
        x = F.interpolate(x, scale_factor=2.0)
        x = torch.cat([x, fine], dim=1) if self.is_usual else x
        for block in self.up:
            x = block(x, level)
        noise: Tensor = self.last(F.silu(x))
        return noise


class Denoiser(pl.LightningModule):
    """Learns to tell the noise that was mixed in."""

    def __init__(self, is_usual: bool) -> None:
        super().__init__()
        self.net = UNet(is_usual)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The squared error of the noise."""
        images = batch[0].reshape(-1, 1, 8, 8)
        angle, noise = torch.rand(len(images), 1) * torch.pi / 2, torch.randn_like(images)
        mixed = angle.cos()[:, :, None, None] * images + angle.sin()[:, :, None, None] * noise
        loss = F.mse_loss(self.net(mixed, angle), noise)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


ROW = Row(
    name="unet",
    title="Diffusion-like UNet on digits",
    steps=200,
    pairs=(
        Pair(
            Network("no skips, no normalisation", lambda: Task(Denoiser(is_usual=False), batches(*digits(), size=32))),
            "vanishing",
            "small_init no_skip_or_norm",
            (Network("the usual form", lambda: Task(Denoiser(is_usual=True), batches(*digits(), size=32))),),
        ),
    ),
    measure="squared error of the noise",
)

if __name__ == "__main__":
    show(ROW)
