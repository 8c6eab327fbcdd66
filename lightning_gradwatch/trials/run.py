"""A model in training: the steps of a trial, watched as a run is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.core.clip import make_policies
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.trials.headroom.line import Line
from lightning_gradwatch.trials.loss import device_of, in_precision
from lightning_gradwatch.trials.memory import computed_within
from lightning_gradwatch.trials.model import TrialModel
from lightning_gradwatch.trials.seen import NUM_SAMPLES, Seen
from lightning_gradwatch.trials.state import seed_everything


class TrialRun:
    """Trains a model on the same few batches.

    Args:
        trial_model: What a remedy has made of the copy.
        optimizer: Of the copy's parameters.
        schedules: Of its rates, to be moved at every step.
        batches: What the steps take in turns.
        seed: For everything that a step draws.
        room: Bytes that the activations of a step may take.
        schedule: When samples are taken.

    Attributes:
        trial_model: As it was given.
        loss_before: Loss before the first step, and ``loss_after`` after the last; to be set by the caller.
        seen: What the watch saw.
        seconds: What each step without a sample took; ``sampled_seconds`` those with one.
        losses: The loss of each step.
        is_rebuilt: Whether a remedy has changed more than values; to be set by the caller.
    """

    def __init__(
        self,
        trial_model: TrialModel,
        optimizer: Optimizer,
        schedules: Sequence[Any],
        batches: Sequence[Any],
        *,
        seed: int = 0,
        room: float = math.inf,
        schedule: Schedule | None = None,
    ) -> None:
        self.seen = Seen()
        self.seconds: list[float] = []
        self.sampled_seconds: list[float] = []
        self.losses: list[float] = []
        self.is_rebuilt = False
        self.loss_before = self.loss_after = math.nan
        self.trial_model = trial_model
        self._optimizer, self._schedules = optimizer, schedules
        self._batches, self._seed, self._room = batches, seed, room
        self._device = device_of(trial_model.model)
        self._clock = process_time if self._device.type == "cpu" else perf_counter  # others' work does not count
        settings = Settings(schedule or Schedule(NUM_SAMPLES, 10**9), policies=make_policies(trial_model.clip))
        self._watcher = Watcher(trial_model.model, optimizer, settings, tell=self.seen.left_out.append)
        self._scaler = torch.amp.GradScaler(self._device.type) if trial_model.loss_scale else None
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._num_steps = 0

    def evaluate(self) -> float:
        """Loss over all batches, with the same random numbers each time."""
        seed_everything(self._seed)
        losses = [float(self._loss(batch).detach()) for batch in self._batches]
        seed_everything(self._seed)
        return sum(losses) / len(losses)

    def advance(self, with_update: bool = True) -> None:
        """One step; without the optimizer's update only the backward pass of one."""
        is_sampled = self._watcher.is_due()
        start = self._clock()
        self._watcher.arm()
        batch = self._batches[self._num_steps % len(self._batches)]
        loss = self._loss(batch)
        self._optimizer.zero_grad()
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        self.seen.add(self._watcher.observe(loss=scaled, loss_scale=self._scale()))
        if with_update:
            self._update()
        self._num_steps += 1
        self.losses.append(loss.item())  # waits for the device
        (self.sampled_seconds if is_sampled else self.seconds).append(self._clock() - start)

    def headroom(self) -> float:
        """The multiple of its next update at which the loss is back where it began; the copy is spent."""
        treated, batch = self.trial_model, self._batches[self._num_steps % len(self._batches)]
        line = Line(
            treated.model, self._optimizer, lambda: self._computed(batch), precision=treated.autocast,
            clip=treated.clip, room=self._room,
        )  # fmt: skip
        return line.multiple

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates of the optimizer's groups."""
        return tuple(float(group["lr"]) for group in self._optimizer.param_groups)

    @property
    def has_diverged(self) -> bool:
        """Whether the latest loss was not finite."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])

    @property
    def fall(self) -> float:
        """Share of the first step's loss that is gone."""
        first, last = self.losses[0], self.losses[-1]
        return (first - last) / max(abs(first), 1e-30)

    def end(self) -> None:
        """Take in what is still under way, and let go of the model."""
        self.seen.add(self._watcher.flush(publish=False))

    def _loss(self, batch: Any) -> Tensor:
        room = math.inf if self._num_steps else self._room  # all steps take the same
        with in_precision(self._device, self.trial_model.autocast):
            return computed_within(room, self.trial_model.model.parameters(), lambda: self._computed(batch))

    def _computed(self, batch: Any) -> Tensor:
        assert self.trial_model.loss is not None
        return self.trial_model.loss(self.trial_model.model, batch)

    def _scale(self) -> Tensor | None:
        return None if self._scaler is None else torch.tensor(self._scaler.get_scale(), device=self._device)

    def _update(self) -> None:
        warmth = (
            min(1.0, (self._num_steps + 1) / self.trial_model.warmup_steps) if self.trial_model.warmup_steps else 1.0
        )
        if self.trial_model.warmup_steps:
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * warmth
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        for schedule in self._schedules:
            schedule.step()
