"""What only a trainer can know: the questions that a session asks of whoever runs the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

T = TypeVar("T")


@dataclass(frozen=True)
class RunInfo:
    """Where a run is kept, and what it is.

    Attributes:
        name: What the run is called.
        log_dir: Its directory, or the URL of one, for files of our own; None for no files.
        spare_dir: The same for a run whose loggers have none; None where nothing is to be written.
        is_rehearsal: Whether it is to leave nothing behind, and to tell nobody.
        about: What is needed besides to find a batch of the run again, for the flight record.
    """

    name: str = ""
    log_dir: str | None = None
    spare_dir: str | None = None
    is_rehearsal: bool = False
    about: Mapping[str, object] = field(default_factory=dict)


class Host(Protocol):
    """The training loop, as a session sees it.

    Answers are cheap and never wait for the device. What a loop does not have (a loss scaler, a progress bar, other
    ranks) it answers as if there were none.
    """

    # --- where the training stands

    def step(self) -> int:
        """The coming optimizer step on the x-axis of the loggers."""

    def num_finished_steps(self) -> int:
        """Optimizer steps that have ended, those of all optimizers together; evaluations within a step do not count."""

    def epoch(self) -> int:
        """The epoch, from 0."""

    def log_every_n_steps(self) -> int:
        """Steps between two points of the loggers; 0 for never."""

    # --- how it steps

    def optimizers(self) -> Sequence[Optimizer]:
        """Those that are in use, always in the same order."""

    def loss_scale(self) -> Tensor | None:
        """Factor of the loss scaler, shape ``()``, without a host sync; None without a scaler."""

    def still_scaled(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer's gradients still carry the loss scale, if there is one, when it is about to step."""

    def accumulated_batches(self) -> int:
        """The number by which the loop divides the loss before it differentiates it."""

    def whole_loss(self, loss: Tensor) -> Tensor:
        """The loss of a batch, given that which is announced: divided by nothing, with the loss scale if there is one.

        Args:
            loss: Detached from its graph, of any shape.
        """

    def completes_a_step(self) -> bool:
        """Whether the present backward pass is the last one before the optimizer steps."""

    def steps_once_per_batch(self) -> bool:
        """Whether a batch has one step at most, and the loss is evaluated once for it."""

    def steps_only_with_a_loss(self) -> bool:
        """Whether the loop takes no step, and leaves the loss scale in the gradients, where a batch has no loss."""

    def whole_model(self, model: nn.Module) -> nn.Module:
        """The model, with whatever has been wrapped around it that knows how its parameters are cut."""

    def is_compiled(self) -> bool:
        """Whether the model is compiled as a whole, so that no layer of it can be hooked."""

    def may_change_gradients(self) -> bool:
        """Whether somebody's code runs between our look after the backward pass and that before the step."""

    def before_clipping_by_hand(self, call: Callable[[Optimizer, bool], None]) -> Callable[[], None] | None:
        """Call back before the model itself clips a gradient in the course of a step.

        Args:
            call: Takes the optimizer, and whether its gradients still carry the loss scale.

        Returns:
            What undoes it; None where the model never clips.
        """

    def ways_past_us(self) -> str:
        """How gradients may get past a session in this loop, and what to try then, in sentences for the user."""

    # --- together with other ranks

    def is_global_zero(self) -> bool:
        """Whether this is rank zero, which alone writes and speaks."""

    def num_ranks(self) -> int:
        """Number of processes that train together."""

    def broadcast(self, value: T) -> T:
        """What rank zero has; all ranks must call this together."""

    # --- what it can be asked to do

    def warn(self, message: str) -> None:
        """Warn on rank zero; never raises, even where warnings are errors."""

    def inform(self, message: str) -> None:
        """Say something on rank zero that is no trouble."""

    def stop(self) -> None:
        """End training after the present batch."""

    def save_checkpoint(self, path: str) -> None:
        """Save a checkpoint; all ranks must call this together.

        Raises:
            OSError: If it cannot be written; then no rank is left waiting.
        """

    def set_metrics(self, metrics: Mapping[str, float]) -> None:
        """Make numbers known to whoever decides by them, such as early stopping."""

    def show_in_progress_bar(self, name: str, text: str | None) -> None:
        """Show a number beside the progress bar; None takes it away."""

    # --- what belongs to the run; meant for rank zero

    def run_info(self) -> RunInfo:
        """Where the run is kept, and what it is."""

    def about_batches(self) -> list[dict[str, object]]:
        """How each of the data loaders draws its batches."""

    def checkpoint_dir(self) -> str:
        """Where checkpoints go unless told otherwise."""

    def loggers(self) -> list[object]:
        """Who takes numbers: each has ``experiment``, a SummaryWriter, or ``log_metrics``; none on other ranks."""

    def tag_prefix(self, logger: object) -> str:
        """What a logger puts before the tags of its metrics."""

    # --- for trials on copies

    def loss_fn(self) -> Callable[..., Tensor] | None:
        """How a copy of the model computes the loss of a batch, as for ``prescribe``; None if the model knows."""

    def mixed_precision(self) -> torch.dtype | None:
        """The dtype under autocast; None for no mixed precision."""

    def own_clipping(self) -> tuple[float, bool] | None:
        """What the loop itself clips at, and whether by value instead of by norm; None if it does not clip."""
