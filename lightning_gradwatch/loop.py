"""A hand-written training loop under watch: about four lines around it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.config import Config, configure
from lightning_gradwatch.core._check import refuse, require
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.core.saved import Saved, State
from lightning_gradwatch.loop_host import LoopHost
from lightning_gradwatch.run_state import RunState
from lightning_gradwatch.session import Session
from lightning_gradwatch.showing import Showing

if TYPE_CHECKING:
    from typing_extensions import Self


_NOT_ARMED = (
    "GradWatch cannot see the gradients at the layers' outputs in this loop, and so hardly when they vanish: "
    "`before_forward` has not been called. To cure it: call it before each forward pass."
)


class WatchedLoop(Showing):
    """A training loop under watch, to be used in a ``with`` statement; made by :func:`~lightning_gradwatch.watch`.

    An exception within the statement leaves a flight record, and is raised as it came.

    Args:
        session: The session.
        host: The loop, as its host.
    """

    def __init__(self, session: Session, host: LoopHost) -> None:
        self._session = session
        self._state = session.state
        self._host = host
        self._num_batches = 0
        self._is_in_batch = False
        self._is_open = False
        self._is_told = False
        self._is_announced = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as refused:
            refused.callback(self._close)
            self._session.note_random_state()
            self._session.start()
            self._session.before_epoch()
            refused.pop_all()  # nothing was
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(self._close)
            if error is not None:
                self._session.break_off(type(error).__name__)
                return
            self._end_batch()
            self._session.finish()

    def before_forward(self, batch: object = None) -> None:
        """Call before each forward pass.

        Args:
            batch: The batch, to tell bad data from bad weights; None if it is not to be looked at.

        Raises:
            GradientAlertError: If ``on_alert`` or ``on_nonfinite`` asks for it.
            ValueError: If it is called outside of the ``with`` statement.
        """
        self._require_open("before_forward")
        self._end_batch()
        self._session.before_forward(_UNKNOWN if batch is None else batch, self._num_batches)
        self._num_batches += 1
        self._is_in_batch = True

    def before_backward(self, loss: Tensor) -> None:
        """Call before each backward pass, if an alert is to say in which operations the gradient is lost.

        Gradients that are asked for elsewhere, as by ``torch.autograd.grad`` for a penalty, then count no more.

        Args:
            loss: What is about to be differentiated, attached to its graph.

        Raises:
            ValueError: If it is called outside of the ``with`` statement.
        """
        self._require_open("before_backward")
        self._is_announced = True
        self._session.before_backward(loss)

    def after_backward(self, loss: Tensor | None = None) -> None:
        """Call between the backward pass that completes a step and the optimizer's step, and before any clipping.

        Where gradients are accumulated, call it after the last backward pass alone.

        Args:
            loss: The loss that was differentiated; with a loss scaler, what the scaler has made of it. None if it is
                not known.

        Raises:
            GradientAlertError: If ``on_alert`` or ``on_nonfinite`` asks for it.
            ValueError: If it is called outside of the ``with`` statement.
        """
        self._require_open("after_backward")
        if not self._num_batches and not self._is_told:
            self._is_told = True
            self._host.warn(_NOT_ARMED)
        if self._is_announced:
            self._session.after_backward()
        self._session.note_loss(loss)
        for optimizer in self._host.optimizers():
            self._session.before_step(optimizer, self._host.still_scaled(optimizer))
        self._host.num_steps += 1

    @property
    def alerts(self) -> list[Alert]:
        """The alerts so far, oldest first (the last 1,000); an open one has no ``until_step``."""
        return list(self._session.state.alert_log.alerts)

    @property
    def profile(self) -> dict[str, float]:
        """Gradient norm at each layer's output in the latest full sample, the input end first."""
        return self._session.watches.profile

    @property
    def metrics(self) -> dict[str, float]:
        """The latest scores of the run by their tags."""
        return dict(self._host.metrics)

    @property
    def should_stop(self) -> bool:
        """Whether an alert has asked for the end of training (``on_alert="stop"``)."""
        return self._host.should_stop

    def state_dict(self) -> State:
        """Counters, windows, detectors and alerts, for a checkpoint of the loop; loads with ``weights_only=True``."""
        return {**self._session.state_dict(), "num_steps": self._host.num_steps}

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Go on where a checkpoint was written; call it before the ``with`` statement.

        Raises:
            ValueError: If it is of another version.
        """
        self._session.state.load_state_dict(state_dict)
        self._host.num_steps = Saved(state_dict).take("num_steps", int, 0, lambda number: number >= 0)

    def _close(self) -> None:
        self._is_open = False
        self._session.close()

    def _require_open(self, name: str) -> None:
        if not self._is_open:
            cure = "call it inside `with watch(model, optimizer) as session:`, and make a new session for each training"
            raise refuse(name, "called while its `with` statement lasts", "a call outside of it", cure)

    def _end_batch(self) -> None:
        if self._is_in_batch:
            self._is_in_batch = False
            self._session.after_batch()


_UNKNOWN = object()
"""A batch in which there is nothing to look at."""


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    log_dir: str | Path | None = None,
    *,
    log_every_n_steps: int = 50,
    scaler: torch.amp.GradScaler | None = None,
    config: Config | None = None,
) -> WatchedLoop:
    """Watch the gradients of a training loop that you have written yourself; no Lightning is needed.

    Args:
        model: The model, whose module paths name the layers.
        optimizer: The optimizer, or all of them if they step together.
        log_dir: Directory of the run, or the URL of one: event files for TensorBoard, ``alerts.jsonl``, the flight
            record. None for no files.
        log_every_n_steps: Steps between two publications to TensorBoard.
        scaler: The loss scaler of the loop; None for none.
        config: Further arguments, made by ``lightning_gradwatch.config.configure``, which takes those of
            :class:`~lightning_gradwatch.GradWatch`; None for the defaults.

    Raises:
        ValueError: If an argument cannot be served in a hand-written loop: ``sample_at="backward"``, ``prescribe``. In
            the ``with`` statement, if ``auto_clip`` does not fit the optimizers.

    Example:
        >>> with watch(model, optimizer, "logs") as session:
        ...     for inputs, targets in loader:
        ...         session.before_forward()
        ...         loss = loss_of(model(inputs), targets)
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         session.after_backward(loss)
        ...         optimizer.step()
    """
    if config is not None and not isinstance(config, Config):
        raise refuse(
            "config", "what `lightning_gradwatch.config.configure(...)` returns", config, "write configure(...)"
        )
    require("log_every_n_steps", log_every_n_steps, 1, "leave it out for every 50th step")
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    if not optimizers or not all(isinstance(each, Optimizer) for each in optimizers):
        raise refuse(
            "optimizer", "a torch optimizer, or a list of them", optimizer, "pass torch.optim.Adam(...) and the like"
        )
    chosen = configure() if config is None else config
    if chosen.sample_at != "step":
        raise refuse("sample_at", '"step" in a hand-written loop', chosen.sample_at, "leave it out")
    if chosen.prescribe_seconds:
        raise refuse("prescribe", "False in a hand-written loop", True, "call lightning_gradwatch.prescribe yourself")
    chosen.check_layers(model)
    host = LoopHost(model, optimizers, log_dir, log_every_n_steps, scaler)
    return WatchedLoop(Session(chosen, host, model, RunState()), host)
