"""What needs Lightning, or pytest: the Trainer's precisions, prescriptions, and the tests that skip without a GPU."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from .correct import outcome
from .models import mlp, rows
from .pieces import Piece, Row, Setting

ROOT = Path(__file__).parent.parent.parent


def trainers(setting: Setting) -> Iterator[Row]:
    """A sick network in the Trainer's precisions: found at step 9, with a remedy tried in the run's own precision."""
    if find_spec("pytorch_lightning") is None:
        yield Row("everything", "not run", note="pytorch-lightning is not installed")
        return
    precisions: tuple[str, ...] = ("32-true", "bf16-mixed", "16-mixed") if setting.is_gpu else ("32-true", "bf16-mixed")
    for precision in precisions:
        yield _fit(setting, precision)


def _fit(setting: Setting, precision: Any) -> Row:
    import pytorch_lightning as pl

    from lightning_gradwatch import GradWatch

    class Model(pl.LightningModule):
        """Twenty sigmoid layers."""

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(20, 64, nn.Sigmoid)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            """Cross-entropy."""
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """Fused AdamW."""
            return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)

    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    inputs, targets = rows(640, 64)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=32)
    watch = GradWatch(prescribe=10)
    with TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = pl.Trainer(
            max_steps=20,
            accelerator="gpu" if setting.is_gpu else "cpu",
            devices=1,
            precision=precision,
            callbacks=[watch],
            default_root_dir=directory,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
        )
        trainer.fit(Model(), data)
    troubles = [str(w.message) for w in caught if "switched itself off" in str(w.message)]
    kinds = [(alert.kind, alert.step) for alert in watch.alerts]
    tried = [len(alert.prescription["trials"]) for alert in watch.alerts if alert.prescription]
    is_right = kinds == [("vanishing", 9)] and not troubles and bool(tried)
    return outcome(precision, is_right, "; ".join(troubles), alerts=str(kinds), remedies_tried=str(tried))


def own_tests(setting: Setting) -> Iterator[Row]:
    """The tests that skip where there is no GPU."""
    missing = [
        name for name in ("pytest", "pytest_timeout", "xdist", "hypothesis", "sklearn") if find_spec(name) is None
    ]
    if missing or not setting.is_gpu:
        yield Row("pytest", "not run", note=f"not installed: {', '.join(missing)}" if missing else "needs a GPU")
        return
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "needs a GPU" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "gpu or cuda", "-p", "no:cacheprovider", *files]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    last = ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else ran.stderr[-300:]
    yield outcome("pytest", ran.returncode == 0 and "skipped" not in last, last)


FIRST = (Piece("trainer", "With Lightning's Trainer", 60, trainers),)
LAST = (Piece("tests", "The tests that need a GPU", 60, own_tests),)
