"""Where copies of one model are treated, all under the same conditions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.trials import optimizers
from lightning_gradwatch.trials.copying import copy_of
from lightning_gradwatch.trials.loss import device_of, loss_of, on_device
from lightning_gradwatch.trials.memory import room_beside, size
from lightning_gradwatch.trials.model import Remedy, TrialModel
from lightning_gradwatch.trials.run import TrialRun
from lightning_gradwatch.trials.state import seed_everything

MAX_BATCHES = 8


class TimeUpError(Exception):
    """There is no time left for a trial."""


@dataclass(frozen=True)
class Conditions:
    """What all trials have in common; the attributes are the arguments of ``prescribe``."""

    loss_fn: Any
    optimizer: Any
    steps: int
    max_seconds: float
    max_memory: float | None
    seed: int
    precision: torch.dtype | None
    clip: Any


class TrialRunner:
    """Copies a model, treats the copies and trains them.

    Args:
        model: The user's, which nothing here changes.
        batch: A batch or a ``DataLoader``.
        conditions: Of the trials.
    """

    def __init__(self, model: nn.Module, batch: Any, conditions: Conditions) -> None:
        self._start = perf_counter()
        self._model, self._conditions = model, conditions
        self._device = device_of(model)
        self._values = dict(model.named_parameters())
        self._example: tuple[Any, ...] | None = None
        self._num_time_steps = 0
        chosen = conditions.optimizer
        self._is_given = chosen is not None and not callable(chosen)
        self._optimizer: Any = optimizers.check(chosen) if self._is_given else chosen
        optimizers.require_fit(model, self._optimizer if self._is_given else None, conditions.loss_fn)
        seed_everything(conditions.seed)
        given = list(itertools.islice(batch, MAX_BATCHES)) if isinstance(batch, DataLoader) else [batch]
        self._batches = [on_device(part, self._device) for part in given]
        self._room = self._leave_room()

    @property
    def batches(self) -> list[Any]:
        """What the steps take in turns."""
        return self._batches

    @property
    def num_bytes(self) -> int:
        """Size of the model's parameters."""
        return size(self._values.values())

    @property
    def num_parameters(self) -> int:
        """Number of elements in them."""
        return sum(p.numel() for p in self._values.values())

    def is_time_up(self, share: float = 1.0) -> bool:
        """Whether a share of the time has passed."""
        return perf_counter() > self._start + share * self._conditions.max_seconds

    def _leave_room(self) -> float:
        """Bytes that are left for activations beside a copy, its gradients and its optimizer's state."""
        trainable = size(p for p in self._model.parameters() if p.requires_grad)
        state = 2 * trainable
        if self._is_given:
            state = size(t for entry in self._optimizer.state.values() for t in entry.values() if isinstance(t, Tensor))
        need = self.num_bytes + size(self._model.buffers()) + trainable + state
        return room_beside(need, self._device, self._conditions.max_memory, "a copy of the model in training")

    def admit(self, remedies: Sequence[Remedy], schedule: Schedule | None = None) -> TrialRun:
        """A copy of the model, treated and ready to be trained."""
        conditions = self._conditions
        others = (self._optimizer if self._is_given else None, conditions.loss_fn, self._batches)
        model, optimizer, loss_fn, batches = copy_of(self._model, *others)
        if not model.training:
            model.train()
        if not remedies and self._example is None:
            model.register_forward_pre_hook(self._remember)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return loss_of(model, batch, loss_fn)

        trial_model = TrialModel(
            model, batches[0], self._example, autocast=conditions.precision, loss=loss,
            loss_scale=conditions.precision is torch.float16, num_time_steps=self._num_time_steps, clip=conditions.clip,
        )  # fmt: skip
        before, built = dict(model.named_parameters()), _outline(model)
        seed_everything(conditions.seed)
        codes = [_applied(remedy, trial_model) for remedy in remedies]
        trial_model.code = "\n".join(codes)
        trial_model.warmup_steps = min(
            trial_model.warmup_steps, conditions.steps // 2
        )  # for the full rate to be seen, too
        schedules: list[Any] = []
        if self._is_given:
            optimizers.follow(optimizer, before, self._values, trial_model.model)
        else:
            optimizer, schedules = optimizers.make(trial_model.model, self._optimizer)
        optimizers.adjust(optimizer, trial_model)
        batches[0] = trial_model.batch
        trial_run = TrialRun(
            trial_model, optimizer, schedules, batches, seed=conditions.seed, room=self._room, schedule=schedule
        )
        trial_run.is_rebuilt = _outline(trial_model.model) != built
        return trial_run

    def _remember(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if self._example is None:
            self._example = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)

    def treat(self, remedies: Sequence[Remedy]) -> TrialRun:
        """Train a treated copy for the steps of a trial; the untreated one for at least one step.

        Raises:
            TimeUpError: If there is no time for that.
            Exception: Whatever a remedy, or the copy after it, fails with.
        """
        trial_run, steps = self.admit(remedies), self._conditions.steps
        trial_run.loss_before = trial_run.loss_after = trial_run.evaluate()
        for step in range(max(steps, 1)):
            if self.is_time_up() and remedies:
                raise TimeUpError
            if trial_run.has_diverged or (self.is_time_up() and step):
                break
            trial_run.advance(with_update=steps > 0)
        trial_run.end()
        if steps:
            trial_run.loss_after = math.nan if trial_run.has_diverged else trial_run.evaluate()
        self._num_time_steps = self._num_time_steps or trial_run.seen.num_time_steps
        if not remedies and all(p.grad is None for p in trial_run.trial_model.model.parameters()):
            rule, cure = "computed with the model that it is given", "take the model from the arguments"
            raise refuse("loss_fn", rule, "one that reaches no parameter of the copy", cure)
        return trial_run


def _outline(model: nn.Module) -> list[object]:
    """What a step of the model consists of, but for values."""
    hooks = [(type(m), len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    return [*hooks, *(tuple(p.shape) for p in model.parameters())]


def _applied(remedy: Remedy, trial_model: TrialModel) -> str:
    """Apply a remedy; the lines that do it on the user's model."""
    trial_model.code = ""
    remedy.apply(trial_model)
    return trial_model.code or remedy.code
