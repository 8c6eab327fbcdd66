"""Under DDP in two real processes, the rank whose batch carries the NaN says where it was born."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.births.cases import BATCH
from lightning_gradwatch import GradWatch, _lightning
from tests.births.test_in_training import BAD, batches, net
from tests.setups.processes import run_ranks, tell
from tests.tasks import Classifier, quiet_trainer

SCRIPT = "from tests.births import test_ranks; test_ranks.train()"
CARRIER = 1


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def train() -> None:
    """As a rank; one of them has a sample that is all zeros."""
    torch.set_num_threads(1)
    rank, directory = int(os.environ["RANK"]), Path(sys.argv[1])
    logging.getLogger("lightning_gradwatch").addHandler(lines := Lines())
    told: dict[str, Any] = {}
    said: list[str] = []
    _lightning.inform = said.append  # type: ignore[assignment]
    for answer in ("skip", "trace"):
        lines.lines.clear()
        pl.seed_everything(1, verbose=False)
        inputs, targets = zip(*batches(40 if rank == CARRIER else BAD), strict=True)
        if rank != CARRIER:
            inputs, targets = (*inputs, *inputs[:10]), (*targets, *targets[:10])
        data = DataLoader(TensorDataset(torch.cat(inputs), torch.cat(targets)), batch_size=BATCH)
        watcher = GradWatch(on_nonfinite=answer)  # type: ignore[arg-type]
        logger = pl.loggers.TensorBoardLogger(directory, name="", version=answer)
        options: dict[str, Any] = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "max_steps": 40}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = Classifier(net(), lr=0.01)
            quiet_trainer(watcher, logger=logger, **options).fit(model, data)
        births = [alert.birth for alert in watcher.alerts]
        is_finite = all(bool(value.isfinite().all()) for value in model.parameters())
        texts = [*lines.lines, *(str(one.message) for one in caught)]
        told[answer] = {"births": births, "texts": texts, "is_finite": is_finite, "said": [*said]}
    tell(told)


@pytest.mark.slow
def test_the_rank_whose_batch_carries_it_tells(tmp_path: Path) -> None:
    ranks = run_ranks(SCRIPT, tmp_path)
    for answer in ("skip", "trace"):
        zero, carrier = (told[answer] for told in ranks)
        assert zero["is_finite"] == carrier["is_finite"] == (answer == "skip")
        place = "born in `net.0`, in the forward pass, test_in_training.py line"
        assert any(place in text for text in carrier["texts"])
        assert zero["births"] == [None]
        assert any("batch of another rank" in text for text in zero["said"])
