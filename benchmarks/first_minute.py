"""What a newcomer sees in the first minute: the tab 10, 30 and 60 seconds after ``fit`` was called.

A 20-layer sigmoid network trains on the digits with nothing set but ``callbacks=[GradWatch()]``, at the pace of a
network that takes a tenth of a second a step; TensorBoard runs beside it, and Chromium looks:

    python -m benchmarks.first_minute [--pictures docs/pictures] [--seconds 10 30 60]

Needs Playwright and a Chromium: the installed one, or that of ``playwright install chromium``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from benchmarks.screenshots import chromium, shrink, tensorboard
from examples.quickstart import DeepClassifier, digits
from lightning_gradwatch import GradWatch

SECONDS_A_STEP = 0.1
WIDTH, HEIGHT = 1280, 900


class Slow(pl.Callback):
    """Takes its time, as a larger network does."""

    def on_train_batch_end(self, *_: Any) -> None:
        """After each batch."""
        time.sleep(SECONDS_A_STEP)


def train(directory: Path, seconds: float) -> None:
    """A user's first training, until it is stopped; its run is called ``sigmoid``."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        callbacks=[GradWatch(), Slow()],
        max_epochs=-1,
        max_time=timedelta(seconds=seconds + 30),
        accelerator="cpu",
        logger=pl.loggers.TensorBoardLogger(directory, name="sigmoid", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(DeepClassifier(nn.Sigmoid, he_init=False), digits())


def photograph(address: str, moments: list[float], pictures: Path, begin: float) -> None:
    """The tab at each of these moments, in seconds since ``begin``."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(f"{address}/#gradwatch&run=sigmoid")
        for moment in moments:
            time.sleep(max(begin + moment - time.time(), 0))
            picture = pictures / f"first_minute_{moment:g}s.png"
            page.screenshot(path=picture)
            shrink(picture)


def main() -> None:
    """Train, serve, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("docs/pictures"), help="where the pictures go")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 30, 60], help="when they are taken")
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # a process of its own, started before the clock: what is timed is the training, not the imports
        training = multiprocessing.get_context("fork").Process(
            target=train, args=(Path(folder), max(arguments.seconds)), daemon=True
        )
        begin = time.time()
        training.start()
        with tensorboard(Path(folder)) as address:
            photograph(address, sorted(arguments.seconds), arguments.pictures, begin)
        training.terminate()
        training.join()


if __name__ == "__main__":
    main()
