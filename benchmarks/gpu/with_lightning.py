"""What needs Lightning, or pytest: the Trainer's precisions, prescriptions, and the tests that skip without a GPU."""

from __future__ import annotations

import functools
import importlib
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from .correct import outcome
from .models import mlp, rows
from .pieces import Piece, Row, Setting, tried
from .training import no_waiting

ROOT = Path(__file__).parent.parent.parent
HOOKS = (
    "on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end",
)  # fmt: skip
TROUBLES = ("switched itself off", "leaves out", "cannot look", "could not try", "can no longer clip")
NEEDED = ("pytest", "pytest_timeout", "xdist", "hypothesis", "sklearn", "pytorch_lightning", "lightning", "tensorboard")
TEST_SECONDS = 60


def trainers(setting: Setting) -> Iterator[Row]:
    """A sick network in the Trainer's precisions: found, a remedy tried in the run's own precision, nothing waited for.

    Lightning itself waits for the device, so what waits raises in GradWatch's hooks alone.
    """
    if _lightning() is None:
        yield Row("everything", "not run", note="Lightning is not installed")
        return
    precisions: tuple[str, ...] = ("16-mixed", "bf16-mixed", "32-true", "bf16-true")
    for precision in precisions if setting.is_gpu else ("bf16-mixed", "32-true"):
        yield tried(f"nothing waits, {precision}", partial(_waits, setting, precision))
    for precision in precisions[:3] if setting.is_gpu else ("bf16-mixed", "32-true"):
        yield tried(f"prescriptions, {precision}", partial(_prescribes, setting, precision))


def _lightning() -> Any:
    """Either of its namespaces; None if it is not installed."""
    if find_spec("pytorch_lightning") is not None:
        return importlib.import_module("pytorch_lightning")
    return importlib.import_module("lightning.pytorch") if find_spec("lightning") is not None else None


def _waits(setting: Setting, precision: str) -> Row:
    from lightning_gradwatch import GradWatch

    watch: Any = GradWatch(dense_steps=3, sample_every_n_steps=5, log_every_n_steps=4, histogram_every=1)
    for name in HOOKS:
        setattr(watch, name, _guarded(getattr(watch, name)))
    is_half = precision.endswith("-true") and not precision.startswith("32")
    troubles = _fit(setting, precision, watch, nn.ReLU, torch.bfloat16 if is_half else torch.float32)
    return outcome(f"nothing waits, {precision}", not troubles, "; ".join(troubles))


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook in which nothing may wait, from the second step on: the first one makes the plan."""

    @functools.wraps(hook)
    def guarded(trainer: Any, *args: Any, **kwargs: Any) -> None:
        with no_waiting() if trainer.global_step else nullcontext():
            hook(trainer, *args, **kwargs)

    return guarded


def _prescribes(setting: Setting, precision: str) -> Row:
    from lightning_gradwatch import GradWatch

    watch = GradWatch(prescribe=5)
    troubles = _fit(setting, precision, watch, nn.Sigmoid)
    kinds = [(alert.kind, alert.step) for alert in watch.alerts]
    tried_ones = [len(alert.prescription["trials"]) for alert in watch.alerts if alert.prescription]
    is_right = [kind for kind, _ in kinds] == ["vanishing"] and not troubles and sum(tried_ones) > 0
    name = f"prescriptions, {precision}"
    return outcome(name, is_right, "; ".join(troubles), alerts=str(kinds), remedies_tried=str(tried_ones))


def _fit(
    setting: Setting, precision: Any, watch: Any, activation: type[nn.Module], dtype: torch.dtype = torch.float32
) -> list[str]:
    """Train twenty steps; what GradWatch had to do without."""
    pl = _lightning()

    class Model(pl.LightningModule):  # type: ignore[name-defined, misc]
        """Twenty layers."""

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(20, 64, activation)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            """Cross-entropy."""
            return nn.functional.cross_entropy(self.net(batch[0]).float(), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """Fused AdamW."""
            return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)

    for name in (pl.__name__, f"{pl.__name__}.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    inputs, targets = rows(640, 64)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs.to(dtype), targets), batch_size=32)
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
    said = [str(warning.message) for warning in caught]
    return [line for line in said if any(words in line for words in TROUBLES)]


def own_tests(setting: Setting) -> Iterator[Row]:
    """The tests that skip where there is no GPU: they have it in their name."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing or not setting.is_gpu:
        note = f"not installed: {', '.join(missing)}; the pieces above check the same" if missing else "needs a GPU"
        yield Row("pytest", "not run", note=note)
        return
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if 'reason="needs a GPU"' in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "on_a_gpu", "-p", "no:cacheprovider", *map(str, marked)]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        yield Row("pytest", "not run", note=f"not through after {TEST_SECONDS} s")
        return
    last = ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else ran.stderr[-300:]
    yield outcome("pytest", ran.returncode == 0 and "skipped" not in last, last)


FIRST = (Piece("trainer", "With Lightning's Trainer", 38, trainers),)
LAST = (Piece("tests", "The tests that need a GPU", 15, own_tests),)
