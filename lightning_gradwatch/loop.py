"""A hand-written training loop under watch: two lines, and one in the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.config import Arguments, configure
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.given import Given
from lightning_gradwatch.loop_host import LoopHost, require_optimizers
from lightning_gradwatch.run_state import RunState
from lightning_gradwatch.session import Session
from lightning_gradwatch.watched import WatchedRun

if TYPE_CHECKING:
    from typing_extensions import Unpack


class WatchedLoop(WatchedRun):
    """A training loop under watch; made by [`watch`][lightning_gradwatch.watch]."""

    _is_announced = False

    def before_backward(self, loss: Tensor) -> None:
        """Call before each backward pass, if an alert is to say in which operations the gradient is lost.

        Gradients that are asked for elsewhere, as by ``torch.autograd.grad`` for a penalty, then count no more.

        Args:
            loss: What is about to be differentiated, attached to its graph.

        Raises:
            ValueError: If the run is over.
        """
        self._open()
        self._is_announced = True
        self._session.before_backward(loss)

    def step(self, loss: Tensor | None = None, optimizer: Optimizer | None = None) -> None:
        """Call between the backward pass that completes a step and the optimizer's step, and before any clipping.

        Where gradients are accumulated, call it after the last backward pass alone.

        Args:
            loss: The loss that was differentiated; with a loss scaler, what the scaler has made of it. None if it is
                not known.
            optimizer: The one that is about to step; None if all of them are.

        Raises:
            GradientAlertError: If ``on_alert`` or ``on_nonfinite`` asks for it.
            ValueError: If the run is over, or ``watch`` was not given this optimizer.
        """
        self._open()
        known = self._host.optimizers()
        if optimizer is not None and not any(each is optimizer for each in known):
            cure = "give `watch` all optimizers of the loop, as a list"
            raise refuse("optimizer", "one of those that `watch` was given", type(optimizer).__name__, cure)
        self._say_if_blind()
        if self._is_announced:
            self._session.after_backward()
        self._session.note_loss(loss)
        for each in known if optimizer is None else [optimizer]:
            self._session.before_step(each)
            self._count_step(each)
        self._host.num_steps += 1


def watch(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | Sequence[Optimizer],
    log_dir: str | Path | None = None,
    *,
    scaler: torch.amp.GradScaler | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    **arguments: Unpack[Arguments],
) -> WatchedLoop:
    """Watch the gradients of a training loop that you have written yourself; no Lightning is needed.

    Args:
        model: The model that the loop calls, whose module paths name the layers, also in DDP, FSDP or torch.compile; a
            dict of several by name.
        optimizer: The optimizer, or all of them.
        log_dir: Directory of the run, or the URL of one: event files for TensorBoard, ``alerts.jsonl``, the flight
            record. None for no files.
        scaler: The loss scaler of the loop; None for none.
        loss_fn: How a copy of the model computes the loss of a batch, for ``prescribe=True``:
            ``loss_fn(model(inputs), targets)`` for a pair, otherwise ``loss_fn(model, batch)``. The batch is what
            ``before_forward`` is given. None if nothing is to be tried on copies.
        **arguments: Those of [`GradWatch`][lightning_gradwatch.GradWatch], such as ``auto_clip=True``;
            ``log_every_n_steps`` is 50 if it is not given.

    Raises:
        ValueError: If an argument is out of its range, or cannot be served in a hand-written loop:
            ``sample_at="backward"``, or ``prescribe`` without ``loss_fn``. At the first forward pass, or in the
            ``with`` statement, if ``auto_clip`` does not fit the optimizers.

    Examples:
        >>> watch = lightning_gradwatch.watch(model, optimizer, "logs")
        >>> for inputs, targets in loader:
        ...     loss = loss_of(model(inputs), targets)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     watch.step(loss)
        ...     optimizer.step()
        >>> watch.close()
    """
    config = configure(**arguments)
    optimizers = require_optimizers(optimizer)
    config.check_in_a_loop(loss_fn)
    given = Given(model)
    config.check_layers(given.model)
    host = LoopHost(given, optimizers, log_dir, scaler, loss_fn)
    return WatchedLoop(Session(config, host, given.model, RunState()), host, given)
