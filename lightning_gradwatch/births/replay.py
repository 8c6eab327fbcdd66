"""Replays one training step on a copy, and says where NaN or infinite values were born in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.births.manual import by_hand
from lightning_gradwatch.births.recorder import Event, Recorder, TooSlowError, origin
from lightning_gradwatch.births.records import Birth
from lightning_gradwatch.births.tracking import Tracker, as_line
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.batch import members_of
from lightning_gradwatch.trials.copying import copy_of, unwrapped
from lightning_gradwatch.trials.loss import device_of, in_precision, is_manual, loss_of, on_device
from lightning_gradwatch.trials.memory import computed_within, room_beside, size
from lightning_gradwatch.trials.state import RandomStates, set_random_states, undisturbed

MAX_SECONDS = 60.0
_MAX_PARTS = 512


def find_birth(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    optimizer: Optimizer | None = None,
    precision: torch.dtype | None = None,
    loss_scale: float = 1.0,
    random_state: Tensor | RandomStates | None = None,
    max_seconds: float = MAX_SECONDS,
    max_memory: float | None = None,
) -> Birth | None:
    """Find out where the NaN or infinite values of a training step are born.

    One step is computed on a copy of the model: forward, backward and, if the optimizer is given, its step. The result
    of every operation is looked at; from a loss, gradient or weight that is not finite the way leads back to the first
    operation that made NaN or infinity out of finite numbers. What matters to none of them, such as a metric, is left
    out, and so are the infinities that a mask writes. The model, the optimizer and all random numbers are afterwards as
    they were, bit for bit.

    Args:
        model: A module or a LightningModule with whole weights that are still finite.
        batch: The batch of the step.
        loss_fn: ``loss_fn(model(inputs), targets)`` for a pair, otherwise ``loss_fn(model, batch)``. None for a
            LightningModule, whose ``training_step`` is used, and for a module whose ``model(**batch)`` has a ``.loss``.
        optimizer: The run's own; None to leave out its step.
        precision: Dtype of mixed precision; None for that of the model.
        loss_scale: What the loss is multiplied by, as a loss scaler does.
        random_state: Of torch's generator on the CPU at the beginning of the step, or those of several devices by their
            names; None for the present ones.
        max_seconds: What it may take.
        max_memory: Bytes that it may take; None for nine tenths of what is free on the model's device.

    Returns:
        The place; None if loss, gradients and weights are finite.

    Raises:
        ValueError: If the model cannot be copied whole, or an argument is wrong.
        RuntimeError: If it takes too long, there is too little memory, or the copy fails.

    Examples:
        >>> print(find_birth(model, (inputs, targets), nn.CrossEntropyLoss()))
        born in `net.spread`, in the forward pass, net.py line 6: 0 / 0 in 16 of 256 elements; ...
    """
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, (int, float)) or not max_seconds > 0:
        raise refuse("max_seconds", "a number above 0", max_seconds, "leave it out for a minute")
    model = unwrapped(model)
    device = device_of(model)
    need = 3 * size(model.parameters()) + size(model.buffers())  # beside it a copy and its gradients
    room = room_beside(need, device, max_memory, "a copy of the model")
    compiled = _compiled(model)
    with undisturbed(model):
        copied, of_copy, loss_fn, batch = copy_of(model, optimizer, loss_fn, batch)
        if random_state is not None:
            set_random_states(random_state if isinstance(random_state, Mapping) else {"cpu": random_state})
        step = _Step(copied, of_copy, loss_fn, on_device(batch, device), precision, loss_scale, room)
        try:
            event = step.run(perf_counter() + max_seconds)
        except TooSlowError:
            raise RuntimeError(
                f"GradWatch: the replay of the step takes longer than {max_seconds:g} s. To cure it: a larger "
                "`max_seconds`, or fewer samples."
            ) from None
    return None if event is None else _birth(origin(event), compiled, step.optimizer_name)


def _birth(event: Event, compiled: tuple[str, ...], optimizer: str) -> Birth:
    file, line, code = as_line(event.line)
    return Birth(
        stage=event.stage,
        module=event.module,
        file=file,
        line=line,
        code=code,
        operation=event.operation,
        what=f"{optimizer}, {event.what}" if event.stage == "optimizer" else event.what,
        num_bad=event.num_bad,
        num_elements=event.num_elements,
        samples=event.samples,
        is_compiled=any(event.module == name or event.module.startswith(f"{name}.") or not name for name in compiled),
    )


class _Step:
    """One step of a copy."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        loss_fn: Any,
        batch: Any,
        precision: torch.dtype | None,
        loss_scale: float,
        room: float,
    ) -> None:
        self._model, self._optimizer, self._loss_fn, self._batch = model, optimizer, loss_fn, batch
        self._precision, self._loss_scale, self._room = precision, loss_scale, room
        self.optimizer_name = type(optimizer).__name__ if optimizer is not None else ""
        self._device = device_of(model)

    def run(self, deadline: float) -> Event | None:
        """The first symptom: a loss, a gradient or a weight that is not finite; None if there is none."""
        model = self._model
        for parameter in model.parameters():
            parameter.grad = None
        tensors = list(_tensors_of(self._batch))
        num_samples = max((len(t) for _, t in tensors if t.ndim), default=0)
        tracker = Tracker(model)
        recorder = Recorder(tracker.where, num_samples, deadline)
        for name, tensor in tensors:
            recorder.begin_with(name, "input", tensor)
        for name, tensor in model.named_parameters():
            recorder.begin_with(name, "weights", tensor)
        for name, tensor in model.named_buffers():
            recorder.begin_with(name, "weights", tensor, is_last=True)
        if is_manual(model):
            return by_hand(model, self._batch, recorder, tracker, self._autocast)
        with recorder:
            with self._autocast():
                loss = computed_within(
                    self._room, model.parameters(), lambda: loss_of(model, self._batch, self._loss_fn)
                )
            event = recorder.event_of(loss)
            if event is not None:
                return event
            tracker.begin("backward")
            scaled = loss * self._loss_scale if self._loss_scale != 1 else loss
            scaled.backward()
        return recorder.first_gradient(model.parameters()) or self._stepped(recorder, tracker)

    def _autocast(self) -> AbstractContextManager[Any]:
        return in_precision(self._device, self._precision)

    def _stepped(self, recorder: Recorder, tracker: Tracker) -> Event | None:
        """The step of the optimizer, its loss scale taken away, one parameter at a time."""
        if self._optimizer is None:
            return None
        tracker.begin("optimizer")
        for parameter in self._model.parameters():
            if parameter.grad is not None and self._loss_scale != 1:
                parameter.grad /= self._loss_scale
        for group in self._optimizer.param_groups:
            group.update({name: False for name in ("foreach", "fused") if name in group})
        with recorder:
            self._optimizer.step()
        for name, parameter in self._model.named_parameters():
            event = recorder.event_of(parameter)
            if event is not None:
                found = origin(event)
                found.module = name
                return found
        return None


def _compiled(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that are compiled, as the copy, which is not, has them."""
    found = []
    for name, module in model.named_modules():
        is_wrapped = "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        if is_wrapped:
            found.append(".".join(part for part in name.split(".") if part != "_orig_mod"))
    return tuple(found)


def _tensors_of(batch: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a batch, a bounded number of them, with names."""
    parts: list[tuple[str, object]] = [("", batch)]
    for name, part in parts:
        if isinstance(part, Tensor):
            yield name, part
        elif len(parts) < _MAX_PARTS and not isinstance(part, (str, bytes, int, float, type)):
            if isinstance(part, Mapping):
                parts += [(f"{name}[{key!r}]" if name else str(key), value) for key, value in part.items()]
            elif isinstance(part, (list, tuple)):
                parts += [(f"{name or 'batch'}[{place}]", value) for place, value in enumerate(part[:_MAX_PARTS])]
            else:
                parts += [(name, member) for member in members_of(part) or ()]
