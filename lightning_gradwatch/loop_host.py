"""A hand-written training loop as the host of a session."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import lightning_gradwatch
from lightning_gradwatch import scaling
from lightning_gradwatch.console import shown_in_lines
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.errors import GradWatchWarning
from lightning_gradwatch.given import Given
from lightning_gradwatch.host import RunInfo
from lightning_gradwatch.paths import at, writing

T = TypeVar("T")

_LOG = logging.getLogger("lightning_gradwatch")


class LoopHost:
    """A hand-written loop as the host of a session: one process, or the ranks of a process group.

    Args:
        given: The model.
        optimizers: Those that step.
        log_dir: Where our files go, a directory or a URL; None for no files.
        scaler: The loss scaler; None for none.
        loss_fn: How a copy of the model computes the loss of a batch; None if nothing is to be tried on copies.

    Attributes:
        num_steps: Optimizer steps that have ended.
        should_stop: Whether an alert has asked for the end of training.
        metrics: Scores of the latest sample by their names.
    """

    def __init__(
        self,
        given: Given,
        optimizers: Sequence[Optimizer],
        log_dir: str | Path | None = None,
        scaler: object = None,
        loss_fn: Callable[..., Tensor] | None = None,
    ) -> None:
        self.num_steps = 0
        self.should_stop = False
        self.metrics: dict[str, float] = {}
        self._given = given
        self._optimizers = list(optimizers)
        self._log_dir = None if log_dir is None else str(log_dir)
        self._scaler = scaler
        self._loss_fn = loss_fn
        self._precision: torch.dtype | None = None

    def step(self) -> int:
        """The coming step, from 0."""
        return self.num_steps

    def num_finished_steps(self) -> int:
        """Steps that have ended."""
        return self.num_steps

    def epoch(self) -> int:
        """Not known: 0."""
        return 0

    def log_every_n_steps(self) -> int:
        """Every 50th, unless an argument of the watch says otherwise."""
        return 50

    def optimizers(self) -> Sequence[Optimizer]:
        """As given."""
        return self._optimizers

    def loss_scale(self) -> Tensor | None:
        """Factor of the loss scaler, without a host sync."""
        return scaling.scale_of(self._scaler)

    def still_scaled(self, optimizer: Optimizer) -> bool:
        """Whether this optimizer's gradients have not been unscaled in the present step."""
        return scaling.still_scaled(self._scaler, optimizer)

    def accumulated_batches(self) -> int:
        """Not known: the loss is taken as it comes."""
        return 1

    def whole_loss(self, loss: Tensor) -> Tensor:
        """As it comes."""
        return loss

    def completes_a_step(self) -> bool:
        """Only whole steps are announced."""
        return True

    def steps_once_per_batch(self) -> bool:
        """Where there are several optimizers, a checkpoint must wait for all of them."""
        return len(self._optimizers) == 1

    def steps_only_with_a_loss(self) -> bool:
        """A step is announced whenever it is taken."""
        return False

    def whole_model(self, model: nn.Module) -> nn.Module:
        """The model with the wrapper that FSDP1 has put around it."""
        return self._given.whole

    def is_compiled(self) -> bool:
        """Whether all of it is; parts that are compiled are found one by one."""
        return self._given.is_compiled

    def may_change_gradients(self) -> bool:
        """The loop is looked at once, where it announces the step."""
        return False

    def before_clipping_by_hand(self, call: Callable[[Optimizer, bool], None]) -> None:
        """The loop announces its steps before it clips."""

    def ways_past_us(self) -> str:
        """How gradients may get past us in a loop, and what to try then."""
        return (
            "Either the optimizer steps within the backward pass and takes the gradient away, or nothing requires a "
            "gradient in the optimizers that `watch` was given. Try: call `step` of the watch between `backward()` and "
            "`step()`, before `zero_grad()`."
        )

    def is_global_zero(self) -> bool:
        """Whether this is rank zero."""
        return self.num_ranks() == 1 or torch.distributed.get_rank() == 0

    def num_ranks(self) -> int:
        """Number of processes that train together."""
        return torch.distributed.get_world_size() if _is_distributed() else 1

    def broadcast(self, value: T) -> T:
        """What rank zero has; all ranks must call this together."""
        told = [value]
        if self.num_ranks() > 1:
            torch.distributed.broadcast_object_list(told)
        return told[0]

    def warn(self, message: str) -> None:
        """Warn on rank zero; where warnings are errors, it goes to the log."""
        if not self.is_global_zero():
            return
        try:
            with shown_in_lines():
                warnings.warn(message, GradWatchWarning, stacklevel=2)
        except Exception as failure:
            if is_the_users(failure):
                raise
            _LOG.warning(message)

    def inform(self, message: str) -> None:
        """Log on rank zero."""
        if self.is_global_zero():
            _LOG.info(message)

    def stop(self) -> None:
        """Set ``should_stop``."""
        self.should_stop = True

    def save_checkpoint(self, path: str) -> None:
        """Save the states of model and optimizers, those of rank zero.

        Raises:
            OSError: If it cannot be written.
        """
        if self.is_global_zero():
            states = [optimizer.state_dict() for optimizer in self._optimizers]
            with writing(at(path)) as file:
                torch.save(
                    {"model": self._given.model.state_dict(), "optimizers": states, "step": self.num_steps}, file
                )

    def set_metrics(self, metrics: Mapping[str, float]) -> None:
        """Keep the scores for whoever decides by them."""
        self.metrics.update(metrics)

    def show_in_progress_bar(self, name: str, text: str | None) -> None:
        """There is none."""

    def run_info(self) -> RunInfo:
        """The directory, and the versions."""
        name = "a run without a logger" if self._log_dir is None else at(self._log_dir).name
        about = {
            "run": name,
            "num_ranks": self.num_ranks(),
            "torch": torch.__version__,
            "lightning_gradwatch": lightning_gradwatch.__version__,
        }
        return RunInfo(name, self._log_dir, about=about)

    def about_batches(self) -> list[dict[str, object]]:
        """Not known."""
        return []

    def checkpoint_dir(self) -> str:
        """Beside the logs."""
        return str(at(self._log_dir or ".") / "checkpoints")

    def loggers(self) -> list[object]:
        """None: the record beside our other files is enough."""
        return []

    def tag_prefix(self, logger: object) -> str:
        """None."""
        return ""

    def loss_fn(self) -> Callable[..., Tensor] | None:
        """As given."""
        return self._loss_fn

    def note_precision(self) -> None:
        """Call where a forward pass begins: autocast is on around it, if it is used at all."""
        parameter = next(self._given.model.parameters(), None)
        kind = "cpu" if parameter is None else parameter.device.type
        self._precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def mixed_precision(self) -> torch.dtype | None:
        """The dtype under autocast in the latest forward pass; None for no mixed precision."""
        return self._precision

    def own_clipping(self) -> tuple[float, bool] | None:
        """Not known."""
        return None


def require_optimizers(given: object) -> list[Optimizer]:
    """The optimizers of a loop, as a list.

    Raises:
        ValueError: If there is none, or one of them is no torch optimizer.
    """
    optimizers = [given] if isinstance(given, Optimizer) else list(given) if isinstance(given, Iterable) else []
    if not optimizers or not all(isinstance(each, Optimizer) for each in optimizers):
        raise refuse(
            "optimizer", "a torch optimizer, or a list of them", given, "pass torch.optim.Adam(...) and the like"
        )
    return optimizers


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
