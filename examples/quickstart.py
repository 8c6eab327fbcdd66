"""Train a network whose gradients vanish, then its cured twin, and see what GradWatch says about both.

Real data (scikit-learn's handwritten digits), two Trainers, well under a minute on two CPU cores:

    python examples/quickstart.py [--directory quickstart_logs]
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, GradWatchWarning

mpl.use("Agg")
from matplotlib import pyplot as plt

STEPS = 300
DEPTH = 20


class DeepClassifier(pl.LightningModule):
    """Twenty linear layers with an activation in between.

    Args:
        activation: The activation's class.
        he_init: Whether weights start with He initialisation instead of torch's default.
    """

    def __init__(self, activation: type[nn.Module], he_init: bool) -> None:
        super().__init__()
        sizes = [64] * DEPTH + [10]
        self.net = nn.Sequential()
        for i in range(DEPTH):
            linear = nn.Linear(sizes[i], sizes[i + 1])
            if he_init:
                nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            self.net.append(linear)
            if i < DEPTH - 1:
                self.net.append(activation())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        pixels, digit = batch
        logits = self.net(pixels)
        loss = nn.functional.cross_entropy(logits, digit)
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", (logits.argmax(1) == digit).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with its usual learning rate."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def digits() -> DataLoader[tuple[Tensor, ...]]:
    """The 1,797 digits of scikit-learn as standardised vectors of 64 pixels, in batches of 64."""
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32)
    pixels = (pixels - pixels.mean()) / pixels.std()
    return DataLoader(TensorDataset(pixels, torch.tensor(data.target)), batch_size=64, shuffle=True, drop_last=True)


def train(name: str, activation: type[nn.Module], he_init: bool, directory: Path) -> GradWatch:
    """Train one network under GradWatch and say in plain words what it found."""
    pl.seed_everything(0, verbose=False)
    gradwatch = GradWatch()
    trainer = pl.Trainer(
        callbacks=[gradwatch],
        logger=TensorBoardLogger(directory, name=name, version=""),
        max_steps=STEPS,
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(DeepClassifier(activation, he_init), digits())
    print(f"\n{name}: {STEPS} steps, final accuracy {trainer.callback_metrics['accuracy']:.0%}")
    for alert in gradwatch.alerts:
        lost = f"{alert.value:.1f} orders of magnitude lost"
        print(f"  ALERT {alert.kind} at step {alert.step}, layer {alert.layer}: {lost}")
        print(f"  {alert.message}")
    if not gradwatch.alerts:
        print("  GradWatch has nothing to complain about.")
    print()
    return gradwatch


def verdict(gradwatch: GradWatch) -> str:
    """The first alert in a few words."""
    for alert in gradwatch.alerts:
        return f"{alert.kind} alert at step {alert.step}"
    return "no alert"


def draw(profiles: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the gradient norm at every layer of the networks, from the input to the loss."""
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for (name, profile), colour, marker in zip(profiles.items(), ("#c0392b", "#1f77b4"), "os", strict=True):
        axes.semilogy(range(1, len(profile) + 1), list(profile.values()), marker=marker, color=colour, label=name)
    axes.set_xlabel("layer: 1 = next to the input, 20 = next to the loss")
    axes.set_ylabel("gradient norm at the layer's output")
    axes.set_xticks(range(1, DEPTH + 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    axes.set_title("Where the gradient dies: the same network before and after the cure", loc="left", fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Train both networks, draw their depth profiles and tell where to look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("quickstart_logs"), help="where the logs go")
    directory: Path = parser.parse_args().directory
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=GradWatchWarning)  # main() prints the alerts itself

    sick = train("sigmoid", nn.Sigmoid, he_init=False, directory=directory)
    cured = train("relu_he", nn.ReLU, he_init=True, directory=directory)

    picture = directory / "depth_profiles.png"
    draw(
        {f"sigmoid, default init: {verdict(sick)}": sick.profile, f"ReLU, He init: {verdict(cured)}": cured.profile},
        picture,
    )
    print(f"The two depth profiles: {picture}")
    print(f"All the curves:         {shlex.quote(sys.executable)} -m tensorboard.main --logdir {directory}")


if __name__ == "__main__":
    main()
