"""Real trainings, small and short, and what they leave in their event files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from tests.setups.test_optimizers import Gan, in_order
from tests.tasks import Classifier, Poison, Sponge, deep_net, digits, quiet_trainer, small_net

STORED_RUN = Path(__file__).parents[1] / "data" / "schema-1.zip"
"""An event file, packed: TensorBoard in a clone must not take it for a run."""
SICK_LAYERS = [f"net.{i}" for i in range(0, 24, 2)]


class Reader(nn.Module):
    """Reads a digit pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        output: Tensor = self.head(self.rnn(pixels[..., None])[0][:, -1])
        return output


class Recurrent(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 64, batch_first=True)

    def forward(self, sequences: Tensor) -> Tensor:
        output: Tensor = self.rnn(sequences)[0][:, -1]
        return output


def train(
    directory: Path,
    module: Any,
    *callbacks: Any,
    max_steps: int = 40,
    log_every_n_steps: int = 2,
    **options: Any,
) -> None:
    """Train on the digits, with alerts kept off the console; the options are those of the logger."""
    pl.seed_everything(1, verbose=False)
    logger = TensorBoardLogger(directory, name="", version="", **options)
    trainer = quiet_trainer(*callbacks, logger=logger, max_steps=max_steps, log_every_n_steps=log_every_n_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        trainer.fit(module, digits())


def watch(**options: Any) -> GradWatch:
    """With a histogram at every second point."""
    return GradWatch(histogram_every=2, **options)


def write_logs(directory: Path) -> None:
    """One run of each kind that the tab knows."""
    train(directory / "sick", Classifier(deep_net(nn.Sigmoid, depth=12)), watch())
    train(directory / "healthy", Classifier(small_net()), watch())
    train(directory / "recovered", Classifier(small_net()), watch(), Poison(13), Sponge())
    train(directory / "recurrent", Classifier(Reader()), watch(), max_steps=20)
    train(directory / "gan", Gan(in_order), watch(), max_steps=20)
    train(directory / "clipped", Classifier(small_net()), watch(auto_clip=0.5), max_steps=10)
    train(directory / "group" / "plain", Classifier(small_net()), max_steps=6)


def write_stored_run(directory: Path) -> None:
    """The run that is kept in ``tests/data``, to be read by all later versions: few layers, few points, one alert."""
    net = nn.Sequential(nn.Unflatten(1, (16, 4)), Recurrent(), deep_net(nn.Sigmoid, depth=7)[2:])
    train(directory, Classifier(net), watch(), max_steps=24, log_every_n_steps=6)


if __name__ == "__main__":
    import sys

    {"all": write_logs, "stored": write_stored_run}[sys.argv[1]](Path(sys.argv[2]))
