"""Trains the networks of a row under GradWatch."""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from common.rows import Network, Outcome, Row
from lightning_gradwatch import GradWatch, GradWatchWarning


class _Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Read what the module has logged."""
        self.values.append(float(trainer.callback_metrics["loss"]))


def train(row: Row, network: Network, directory: Path, steps: int | None = None, progress: bool = False) -> Outcome:
    """Train one network under GradWatch; its curves go to TensorBoard files in the directory."""
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    for name in ("pytorch_lightning", "lightning.pytorch"):  # where both are installed, either may be who speaks
        logging.getLogger(name).setLevel(logging.ERROR)
    task, losses = network.build(), _Losses()
    gradwatch = GradWatch(**task.gradwatch)
    arguments: dict[str, Any] = {
        "max_steps": steps or row.steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        **task.trainer,
    }
    trainer = pl.Trainer(
        callbacks=[gradwatch, losses],
        logger=TensorBoardLogger(directory / row.name, name=network.name.replace(" ", "_"), version=""),
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        **arguments,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", "GradWatch, ", GradWatchWarning)  # its alerts are told by whoever called
        trainer.fit(task.module, task.data)
    seconds = time.perf_counter() - start
    profile = list(gradwatch.profile.values())
    if row.profile is not None:
        profile = row.profile(task.module, next(iter(task.data)))
    return Outcome(network.name, gradwatch.alerts, losses.values, profile, seconds)


def load(name: str) -> Row | str:
    """The row of a script, or what it lacks."""
    try:
        row: Row = importlib.import_module(name).ROW
    except ModuleNotFoundError as missing:
        return f"no module named {missing.name}: pip install -c constraints.txt '.[gallery]'"
    except FileNotFoundError as missing:
        return str(missing)
    return row


def train_by_name(row_name: str, index: int, directory: Path, steps: int | None) -> Outcome:
    """Train one network of a row; for processes of their own, which cannot be handed a network."""
    row = load(row_name)
    assert isinstance(row, Row)
    return train(row, row.networks[index], directory, steps)
