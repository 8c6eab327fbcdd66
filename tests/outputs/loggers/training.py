"""Trainings whose alert opens at step 9, for loggers of every family."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_gradwatch import GradWatch
from lightning_gradwatch.outputs.page import NAME
from tests.tasks import Classifier, deep_net, fit

MAX_S = 200.0


class UntilPage(pl.Callback):
    """Trains on, slowly, until a page lies below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = any(self._directory.rglob(NAME)) or time.monotonic() - self._began > MAX_S
        if trainer.global_step > 20:
            time.sleep(0.1)


def train(loggers: Any, directory: Path, watch: GradWatch | None = None, **options: Any) -> GradWatch:
    """Train a network whose gradients vanish, with points at every fifth step."""
    watch = watch or GradWatch()
    settings = {"max_steps": 30, "log_every_n_steps": 5, "default_root_dir": directory, **options}
    fit(watch, Classifier(deep_net()), logger=loggers, **settings)
    assert [(alert.kind, alert.step) for alert in watch.alerts] == [("vanishing", 9)]
    return watch
