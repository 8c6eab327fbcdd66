"""The step of a LightningModule that optimizes by hand: its ``training_step`` runs, and no optimizer of it steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.births.recorder import Event, Recorder
from lightning_gradwatch.births.tracking import Tracker
from lightning_gradwatch.trials.loss import arguments_of


class _FoundError(Exception):
    """A loss or a gradient is not finite: the rest of the step is of no interest."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        self.event = event


class _Idle:
    """In the place of an optimizer or a schedule: plain facts are the optimizer's, and no step is taken."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> None:
        """Only what the step would compute."""
        if closure is not None:
            closure()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def by_hand(
    model: nn.Module,
    batch: Any,
    recorder: Recorder,
    tracker: Tracker,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Event | None:
    """Run ``training_step`` of a copy; the first loss or gradient that is not finite, None if all are.

    Args:
        model: The copy.
        batch: The batch.
        recorder: Records the operations.
        tracker: Knows where they run.
        autocast: Mixed precision.
    """

    def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if (event := recorder.event_of(loss)) is not None:
            raise _FoundError(event)
        tracker.begin("backward")
        loss.backward(*args, **kwargs)
        tracker.begin("loss")
        if (event := recorder.first_gradient(model.parameters())) is not None:
            raise _FoundError(event)

    made: Any = model.configure_optimizers()  # type: ignore[operator]
    optimizers = [_Idle(each) for each in _flat(made)]
    for name, value in {
        "manual_backward": backward,
        "optimizers": lambda *_, **__: optimizers if len(optimizers) != 1 else optimizers[0],
        "lr_schedulers": lambda *_, **__: None,
        "clip_gradients": lambda *_, **__: None,
        "toggle_optimizer": lambda *_, **__: None,
        "untoggle_optimizer": lambda *_, **__: None,
    }.items():
        vars(model)[name] = value

    try:
        with recorder, autocast():
            model.training_step(*arguments_of(model, batch))  # type: ignore[operator]
    except _FoundError as found:
        return found.event
    return None


def _flat(made: Any) -> list[Any]:
    """The optimizers among what ``configure_optimizers`` returns."""
    if isinstance(made, dict):
        return [made["optimizer"]]
    if isinstance(made, (list, tuple)):
        first = made[0] if made and isinstance(made[0], (list, tuple)) else made
        return [each["optimizer"] if isinstance(each, dict) else each for each in first]
    return [made]
