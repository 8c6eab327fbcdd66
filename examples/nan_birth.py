"""One of 1,797 images makes the loss NaN. GradWatch names the line of code and the image.

    python examples/nan_birth.py [--directory nan_logs]

The network standardises each image by itself. For a blank image that is 0 / 0.
"""

from __future__ import annotations

import argparse

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch

BLANK = 1234


class Standardise(nn.Module):
    """Brings each image to mean 0 and deviation 1."""

    def forward(self, images: Tensor) -> Tensor:
        """Images and result of shape (batch, 64)."""
        centred = images - images.mean(dim=1, keepdim=True)
        return centred / centred.std(dim=1, keepdim=True)


class Digits(LightningModule):
    """Tells digits apart."""

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardise()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of images and their digits."""
        images, digits = batch
        loss = nn.functional.cross_entropy(self.net(self.standardise(images)), digits)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5, help="passes over the images (default: 5)")
    parser.add_argument("--directory", default="nan_logs", help="where logs go (default: nan_logs)")
    arguments = parser.parse_args()
    seed_everything(0)
    images, digits = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32) / 16
    images[BLANK] = 0.0
    loader = DataLoader(TensorDataset(images, torch.tensor(digits)), batch_size=64, shuffle=True)
    # the step that went wrong is left out, so that the weights stay whole, and is then looked at on a copy
    watch = GradWatch(on_nonfinite="skip")
    trainer = Trainer(
        default_root_dir=arguments.directory, max_epochs=arguments.epochs, log_every_n_steps=5, callbacks=[watch]
    )
    trainer.fit(Digits(), loader)
    for alert in watch.alerts:
        print(f"\nstep {alert.step}: {alert.message}")


if __name__ == "__main__":
    main()
