"""The optimizers of a run, each with its watcher and the one probe that they share on the model."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.config import Config
from lightning_gradwatch.core._guard import attempt
from lightning_gradwatch.core.optional import Omission
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.core.reports import Report
from lightning_gradwatch.core.saved import State
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.run_state import RunState

_COMPILED = (
    "GradWatch judges the gradients of the weights in this model: the layers' outputs cannot be observed inside "
    "torch.compile or TorchScript."
)
_NOT_ALONG_TIME = (
    "GradWatch does not watch gradients along the time steps of recurrent layers here, where ranks hold parts of the "
    "gradients: what is lost over a long sequence is not seen. To cure it: train for a while on one device or with DDP."
)
_BLIND = (
    "GradWatch cannot look at the layers' outputs in this model and goes on with the gradients of the weights alone. "
    "What went wrong:\n"
)
_PARTLY_BLIND = "GradWatch leaves out the outputs of layer {} from now on, and goes on with the rest ({})."


@dataclass
class OptimizerWatch:
    """An optimizer, its watcher, and how far both have come.

    Attributes:
        optimizer: The optimizer.
        watcher: Who watches its gradients.
        num_points: Points of the loggers that were due by the last look; None before the first batch.
        last_finished: Steps that had ended at the last look; None where the next gradient is a new step's.
        is_ahead: Whether the coming step was looked at before the model itself clips it.
    """

    optimizer: Optimizer
    watcher: Watcher
    num_points: int | None = None
    last_finished: int | None = None
    is_ahead: bool = False

    def begin_batch(self) -> None:
        """Take the next gradient for a new one: the model has clipped one by hand and then made no step."""
        self.is_ahead, self.last_finished = False, None

    def has_observed(self, num_finished: int) -> bool:
        """Whether this is a further evaluation within a step that has been observed: SAM and LBFGS make several."""
        is_same, self.last_finished = num_finished == self.last_finished, num_finished
        return is_same

    def passes_log_point(self, num_points: int) -> bool:
        """Whether the loggers were due since the last look, at this step or at one without this optimizer."""
        is_due, self.num_points = num_points > (self.num_points or 0), num_points
        return is_due


class Watches:
    """The watchers of all optimizers of a model.

    Args:
        model: The model.
        config: The arguments of the watch.
        state: Hands over what watchers knew before, and takes it back.
        can_hook: Whether the model's layers can be hooked at all.
        tell: Takes what has failed and is left out from then on.

    Attributes:
        probe: The probe on the model's layers.
        compares: Whether the gradient after the backward pass is compared with that at the step.
        has_counted: Whether the points of the loggers have been counted that were past when the run began.
    """

    def __init__(
        self, model: nn.Module, config: Config, state: RunState, can_hook: bool, tell: Callable[[Omission], None]
    ) -> None:
        self.probe = make_probe(model) if can_hook else Probe({}, ())
        self.compares = False
        self.has_counted = False
        self.is_surveyed = False
        self._num_samples = 0
        self._model = model
        self._config = config
        self._state = state
        self._tell = tell
        self._by_optimizer: dict[int, OptimizerWatch] = {}

    def __iter__(self) -> Iterator[OptimizerWatch]:
        return iter(self._by_optimizer.values())

    def add(self, optimizer: Optimizer, name: str) -> OptimizerWatch:
        """Watch an optimizer, from where its watcher was at the last checkpoint."""
        watcher = Watcher(self._model, optimizer, self._config.settings, self.probe, name, self._tell)
        saved = self._state.take(name)
        if saved is not None:
            watcher.load_state_dict(saved)
        watcher.sampling.thinning = max(watcher.sampling.thinning, self.thinning)
        self._by_optimizer[id(optimizer)] = watch = OptimizerWatch(optimizer, watcher)
        self.is_surveyed = False
        return watch

    def limits(self) -> Iterator[str]:
        """What cannot be seen in this model, in sentences for the user; known before the first step."""
        if not self.probe.can_see:
            yield _COMPILED
        is_recurrent = any(isinstance(module, nn.RNNBase) for module in self._model.modules())
        if is_recurrent and any(watch.watcher.is_spread for watch in self):
            yield _NOT_ALONG_TIME

    def of(self, optimizer: Optimizer) -> OptimizerWatch | None:
        """The watch over an optimizer; None if there is none."""
        return self._by_optimizer.get(id(optimizer))

    def abandoned(self, alerts: Iterable[Alert], step: int) -> tuple[Alert, ...]:
        """Open alerts that no rule holds, ended: the rule is gone since the checkpoint, or has refused its state.

        Args:
            alerts: The alerts of the run.
            step: The present step.
        """
        found = []
        for alert in alerts:
            watch = self.named(alert.optimizer)
            if alert.until_step is None and watch is not None and not watch.watcher.holds(alert):
                found.append(replace(alert, until_step=max(alert.step, step - 1)))
        return tuple(found)

    def retire(self, alive: Iterable[Optimizer]) -> Iterator[Report]:
        """Take away the watches over optimizers that are no more; what they have left to say."""
        known = {id(optimizer) for optimizer in alive}
        for key in [key for key in self._by_optimizer if key not in known]:
            watcher = self._by_optimizer.pop(key).watcher
            yield watcher.flush(publish=False)
            self._state.watchers[watcher.name] = watcher.state_dict()

    def named(self, name: str) -> OptimizerWatch | None:
        """The watch over the optimizer of that name."""
        return next((watch for watch in self if watch.watcher.name == name), None)

    # --- what they know together

    @property
    def num_steps(self) -> int:
        """Steps observed so far, of the optimizer that took most."""
        return max((watch.watcher.sampling.num_steps for watch in self), default=0)

    @property
    def vanishing(self) -> float:
        """The worst vanishing score."""
        return max((watch.watcher.vanishing for watch in self), default=0.0)

    @property
    def profile(self) -> dict[str, float]:
        """Gradient norms at the layers' outputs in the latest sample, one optimizer after the other."""
        return {name: norm for watch in self for name, norm in watch.watcher.profile.items()}

    @property
    def thinning(self) -> int:
        """By how much samples lie farther apart than the schedule has it."""
        return max((watch.watcher.sampling.thinning for watch in self), default=1)

    @thinning.setter
    def thinning(self, factor: int) -> None:
        for watch in self:
            watch.watcher.sampling.thinning = factor

    def states(self) -> dict[str, State]:
        """The watchers' states by the optimizer's name."""
        return {watch.watcher.name: watch.watcher.state_dict() for watch in self}

    # --- in the course of a batch

    def count_points(self, num_points: int) -> None:
        """Start from the points of the loggers that are past, where nobody has counted yet."""
        self.has_counted = True
        for watch in self:
            if watch.num_points is None:
                watch.num_points = num_points

    def begin_batch(self, num_further_steps: int, may_look: bool) -> None:
        """Put the probe in place if a step of the coming batch will be sampled.

        Args:
            num_further_steps: Steps of each optimizer that the batch may have besides the first.
            may_look: Whether the probe may be put in place.
        """
        is_due = False
        for watch in self._by_optimizer.values():
            if watch.is_ahead:
                watch.begin_batch()
            is_due = is_due or watch.watcher.sampling.is_due(num_further_steps)
        if is_due and may_look:
            is_thorough = any(watch.watcher.sampling.is_thorough for watch in self)
            self.probe.attach(is_thorough, is_thorough and any(w.watcher.sampling.seeks_causes for w in self))

    def inspect(self, loss: Tensor) -> None:
        """Read what the network is made of off the graph of a loss, which is attached to it."""
        for watch in self._by_optimizer.values():
            watch.watcher.surveyor.inspect(loss)
        self.is_surveyed = all(watch.watcher.surveyor.is_done for watch in self)

    def end_backward(self) -> None:
        """Call after a backward pass: keeps total norms that are compared with those at the step."""
        self.probe.account.end_backward()
        if self.compares:
            for watch in self:
                watch.watcher.note_backward()

    def end_batch(self) -> tuple[float, bool]:
        """Time that the probe has spent since the last call, in seconds, and whether a sample was taken."""
        tracer = self.probe.account.tracer
        seconds, self.probe.seconds, tracer.seconds = self.probe.seconds + tracer.seconds, 0.0, 0.0
        before, self._num_samples = self._num_samples, 0
        for watch in self._by_optimizer.values():
            self._num_samples += watch.watcher.sampling.num_samples
        return seconds, self._num_samples > before

    def blindness(self) -> str:
        """What is to be said where the probe leaves out layers."""
        layer, why = next(iter(self.probe.left_out.items()))
        return _PARTLY_BLIND.format(layer, why) if self.probe.failure is None else _BLIND + self.probe.failure

    def close(self) -> None:
        """Leave nothing on the optimizers, and no hook on the model, whatever fails on the way."""
        with contextlib.ExitStack() as attempts:
            for undo in (self.probe.detach, *[watch.watcher.close for watch in self]):
                attempts.callback(attempt, undo)


def optimizer_names(optimizers: Iterable[Optimizer]) -> list[str]:
    """Class names, numbered from the second of a kind, as ``LearningRateMonitor`` does; ``""`` for a single one."""
    optimizers = list(optimizers)
    if len(optimizers) == 1:
        return [""]
    names: list[str] = []
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        numbered = itertools.chain([kind], (f"{kind}-{number}" for number in itertools.count(1)))
        names.append(next(name for name in numbered if name not in names))
    return names


def by_name(optimizers: Sequence[Optimizer]) -> dict[str, Optimizer]:
    """Optimizers by their names."""
    return dict(zip(optimizer_names(optimizers), optimizers, strict=True))


def num_log_points(num_steps: int, every_n_steps: int) -> int:
    """How many times loggers were due within so many steps; 0 if they never are.

    Args:
        num_steps: Number of steps; for the coming one, too, one more than those that are past.
        every_n_steps: Steps between two points; 0 for never.
    """
    return num_steps // every_n_steps if every_n_steps else 0
