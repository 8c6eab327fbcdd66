"""A run under watch whose loop is the user's own, with Fabric or without: when it begins, its batches, its end."""

from __future__ import annotations

import atexit
import contextlib
import enum
import os
import sys
import weakref
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from lightning_gradwatch.core._guard import attempt
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.core.saved import Saved, State
from lightning_gradwatch.given import Given
from lightning_gradwatch.loop_host import LoopHost
from lightning_gradwatch.session import Session
from lightning_gradwatch.showing import Showing

if TYPE_CHECKING:
    from typing_extensions import Self


class Stage(enum.Enum):
    """How far a run has come."""

    NEW = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


class WatchedRun(Showing):
    """A run under watch. It begins with the first forward pass or its ``with`` statement, and ends with ``close``.

    An exception within a ``with`` statement leaves a flight record, and is raised as it came. A run that nobody closes
    ends with the process.

    Args:
        session: The session.
        host: The loop, as its host.
        given: The models.
    """

    def __init__(self, session: Session, host: LoopHost, given: Given) -> None:
        self._session = session
        self._state = session.state
        self._host = host
        self._given = given
        self._stage = Stage.NEW
        self._pid = os.getpid()
        self._num_batches = 0
        self._is_in_batch = False
        self._has_run = False  # forward, since the last step
        self._is_told = False
        self._num_waiting = 0  # forward passes before the first step
        self._stepped: list[Optimizer] = []  # in the present batch
        given.before_forward(self._see_forward)
        _RUNS.add(self)

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._break_off(type(error).__name__)

    def before_forward(self, batch: object = None) -> None:
        """Say that a batch begins, where the forward pass does not: it goes past the model's own ``__call__``.

        Args:
            batch: The batch, to tell bad data from bad weights, and for trials on copies; None if it is not to be
                looked at.

        Raises:
            GradientAlertError: If ``on_alert`` or ``on_nonfinite`` asks for it.
            ValueError: If the run is over.
        """
        self._open()
        self._has_run = True
        self._begin_batch(_UNKNOWN if batch is None else batch)

    def close(self) -> None:
        """Publish what is left, and leave nothing on the model. A run that is over stays as it is.

        Raises:
            GradientAlertError: If ``on_alert`` asks for it.
        """
        if self._stage is Stage.CLOSED:
            return
        with contextlib.ExitStack() as closing:
            closing.callback(self._close)
            if self._stage is Stage.OPEN:
                self._say_if_no_step_comes(is_last=True)
                self._end_batch()
                self._session.finish()

    def leave_behind(self, reason: str) -> None:
        """End a run that nobody has closed, in the process that began it, without asking anything of other ranks.

        Args:
            reason: Why it ends: ``"end"``, or the name of an exception.
        """
        if self._pid == os.getpid():
            self._break_off(reason)

    @property
    def alerts(self) -> list[Alert]:
        """The alerts so far, oldest first (the last 1,000); an open one has no ``until_step``."""
        return list(self._session.state.alert_log.alerts)

    @property
    def profile(self) -> dict[str, float]:
        """Gradient norm at each layer's output in the latest sample, the input end first."""
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
        """Go on where a checkpoint was written; call it before the first forward pass.

        Raises:
            ValueError: If it is of another version.
        """
        self._session.state.load_state_dict(state_dict)
        self._host.num_steps = Saved(state_dict).take("num_steps", int, 0, lambda number: number >= 0)

    # --- for those who know when the loop steps

    def _open(self) -> None:
        """Begin the run, if it has not begun.

        Raises:
            ValueError: If it is over, or an argument does not fit the optimizers.
        """
        if self._stage is Stage.OPEN:
            return
        if self._stage is Stage.CLOSED:
            raise ValueError("GradWatch: this run is over. To cure it: make a new watch for each run.")
        with contextlib.ExitStack() as refused:
            refused.callback(self._close)
            self._session.note_random_state()
            self._session.start()
            self._session.before_epoch()
            refused.pop_all()  # nothing was
        self._stage = Stage.OPEN

    def _see_forward(self, inputs: object) -> None:
        """A forward pass of training begins: with it a batch, once the one before has had its steps."""
        if self._stage is Stage.CLOSED:
            return
        self._open()
        self._host.note_precision()
        self._has_run = True
        if self._num_waiting >= 0:
            self._num_waiting += 1
            self._say_if_no_step_comes()
        num_different = len({id(optimizer) for optimizer in self._stepped})
        is_over = num_different == len(self._host.optimizers()) or num_different < len(self._stepped)
        if is_over or not self._is_in_batch:
            self._begin_batch(inputs)

    def _count_step(self, optimizer: Optimizer) -> None:
        self._stepped.append(optimizer)
        self._has_run = False
        self._num_waiting = -1

    def _say_if_no_step_comes(self, is_last: bool = False) -> None:
        """Warn, once, where forward passes come and no step ever does."""
        if self._num_waiting >= (_FEW if is_last else _MANY):
            count, self._num_waiting = self._num_waiting, -1
            self._host.warn(
                f"GradWatch has seen no optimizer step in {count} forward passes, so it says nothing about this run. "
                f"{self._host.ways_past_us()}"
            )

    def _say_if_blind(self) -> None:
        """Warn, once, where no forward pass has been noticed."""
        if not self._num_batches and not self._is_told:
            self._is_told = True
            self._host.warn(_NOT_ARMED)

    def _begin_batch(self, batch: object) -> None:
        self._end_batch()
        self._session.before_forward(batch, self._num_batches)
        self._num_batches += 1
        self._is_in_batch = True

    def _end_batch(self) -> None:
        self._stepped.clear()
        if self._is_in_batch:
            self._is_in_batch = False
            self._session.after_batch()

    def _break_off(self, reason: str) -> None:
        """End the run without asking anything of other ranks, which may be far away."""
        if self._stage is Stage.CLOSED:
            return
        with contextlib.ExitStack() as closing:
            closing.callback(self._close)
            if self._stage is Stage.OPEN:
                self._session.break_off(reason)

    def _close(self) -> None:
        self._stage = Stage.CLOSED
        self._given.close()
        self._session.close()


_NOT_ARMED = (
    "GradWatch cannot see the gradients at the layers' outputs in this loop, and so hardly when they vanish: the model "
    "that it was given is not what the loop calls, or it is compiled. To cure it: give it the model that is called, or "
    "call its `before_forward` before each forward pass."
)
_FEW, _MANY = 20, 2000
"""Forward passes without any step, after which that is said: when the run ends, and while it lasts."""
_UNKNOWN = object()
"""A batch in which there is nothing to look at."""
_RUNS: weakref.WeakSet[WatchedRun] = weakref.WeakSet()


def _end_all() -> None:
    """The process ends, be it by an exception: what nobody has closed is written."""
    error = getattr(sys, "last_value", None)
    for run in list(_RUNS):
        reason = "end" if error is None else type(error).__name__
        attempt(partial(run.leave_behind, reason))


atexit.register(_end_all)
