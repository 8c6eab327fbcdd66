"""At the first alert of a run, remedies are tried on a copy of the model: when, on which rank, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.batch import Inputs
from lightning_gradwatch.core.clip import ClipPolicy, MaxNorm, MaxValue
from lightning_gradwatch.core.engines import is_piece
from lightning_gradwatch.core.records import Alert, to_try
from lightning_gradwatch.core.shards import is_spread
from lightning_gradwatch.host import Host
from lightning_gradwatch.trials.headroom.advice import advice
from lightning_gradwatch.trials.records import Prescription, Trial

STEPS, SECONDS = 20, 60.0
"""Optimizer steps of each trial, and what all trials together may take unless told otherwise."""
MAX_SECONDS_TOGETHER = 240.0
"""The same where other ranks wait meanwhile: less than the shortest of torch's usual timeouts, ten minutes."""
_MAX_NAMED = 3


def require_seconds(prescribe: object) -> float:
    """What trials may take, in seconds; 0 for no trials.

    Raises:
        ValueError: If it is neither a bool nor a positive, finite number.
    """
    if isinstance(prescribe, bool):
        return SECONDS if prescribe else 0.0
    if isinstance(prescribe, (int, float)) and 0 < prescribe < math.inf:
        return float(prescribe)
    raise refuse("prescribe", "True, False or a number of seconds", prescribe, "use True, or the seconds it may take")


class Prescriber:
    """Tries remedies once in a run: for its first alert, and on this rank alone.

    Args:
        max_seconds: What it may take; training waits.
        is_done: Whether it was done before the run was resumed.
    """

    def __init__(self, max_seconds: float, is_done: bool = False) -> None:
        self.batch: Any = None
        self._max_seconds = max_seconds
        self._is_done = is_done
        self._alert: Alert | None = None
        self._first_step: int | None = None
        self._first_values: dict[str, Tensor] = {}

    def begin_batch(self, step: int, model: nn.Module, batch: Any) -> None:
        """Keep what trials would need: the batch until it is over, and in the first steps the weights at the start."""
        if self._is_done:
            return
        self.batch = batch
        if self._first_step is None:
            self._first_step, self._first_values = step, _values(model)
        elif step > self._first_step + STEPS:
            self._first_values = {}

    def end_batch(self) -> None:
        """Let go of the batch."""
        self.batch = None
        if self._is_done:
            self._first_values = {}

    def note(self, opened: Iterable[Alert]) -> None:
        """Remember the first alert."""
        if not self._is_done and self._alert is None:
            self._alert = next(iter(opened), None)

    def due(self, is_before_step: bool) -> Alert | None:
        """The alert to do something about now, once; None if there is none.

        Before the optimizer steps only what would spoil the weights: they are needed as they are.
        """
        alert = self._alert
        if alert is None or self._is_done or (is_before_step and alert.kind != "nonfinite"):
            return None
        self._is_done = True
        return alert

    def treat(
        self,
        alert: Alert,
        host: Host,
        model: nn.Module,
        optimizer: Optimizer | None,
        policies: Sequence[ClipPolicy] = (),
    ) -> Alert | None:
        """Try remedies on a copy of the model, and say what came of it.

        Trouble that came within the first steps can be had again from the start, where nothing is spoilt yet.

        Returns:
            The alert with what was measured; None where nothing could be tried.
        """
        if any(is_spread(parameter) or is_piece(parameter) for parameter in model.parameters()):
            host.inform("GradWatch tries no remedies: each rank holds only a part of the model.")
            return None
        if isinstance(self.batch, Inputs):
            host.warn(
                "GradWatch tries no remedies, as it does not know the batch. To cure it: call `before_forward(batch)` "
                "before each forward pass."
            )
            return None
        num_ranks = host.num_ranks()
        seconds = min(self._max_seconds, MAX_SECONDS_TOGETHER) if num_ranks > 1 else self._max_seconds
        host.inform(f"GradWatch tries remedies on a copy of the model; training waits, {seconds:g} s at most.")
        from lightning_gradwatch import prescribe
        from lightning_gradwatch.trials.copying import copy_of
        from lightning_gradwatch.trials.state import undisturbed

        batch = self.batch
        with undisturbed(model), Alone() if num_ranks > 1 else nullcontext():  # type: ignore[no-untyped-call]
            if self._first_values:
                model, optimizer, batch = copy_of(model, optimizer, batch)
                _set_back(model, optimizer, self._first_values)
            prescription = prescribe(
                model,
                batch,
                host.loss_fn(),
                optimizer=optimizer,
                steps=STEPS,
                max_seconds=seconds,
                progress=False,
                alert=alert,
                precision=host.mixed_precision(),
                clip=list(policies) or _own_clipping(host),
            )
        host.inform(f"GradWatch has tried remedies:\n{prescription}")
        return with_figures(alert, prescription)


class Alone(TorchDispatchMode):
    """Refuses collectives: the other ranks would not take part, and this one would wait for them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            raise RuntimeError(f"{func} needs the other ranks, which take no part in a trial")
        return func(*args, **(kwargs or {}))


def _own_clipping(host: Host) -> ClipPolicy | None:
    found = host.own_clipping()
    return None if found is None else MaxValue(found[0]) if found[1] else MaxNorm(found[0])


def _values(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, on the host; nothing of a model that is not whole, or not yet."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if any(is_spread(tensor) or is_piece(tensor) or is_lazy(tensor) for _, tensor in tensors):
        return {}
    changing = [(name, t) for name, t in tensors if t.requires_grad or not isinstance(t, nn.Parameter)]
    try:
        return {name: tensor.detach().cpu().clone() for name, tensor in changing}
    except (MemoryError, RuntimeError) as failure:
        if is_the_users(failure):
            raise
        return {}  # no room on the host: trials begin at the weights of the alert


def _set_back(model: nn.Module, optimizer: Optimizer | None, values: dict[str, Tensor]) -> None:
    """Put a copy back to where training began."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in values and values[name].shape == tensor.shape:
                tensor.copy_(values[name])
    if optimizer is not None:
        optimizer.state.clear()


def with_figures(alert: Alert, prescription: Prescription) -> Alert:
    """The alert with what was measured; the remedies that helped, the best first, take the place of its own.

    Without one, a guess at the rate gives way to the headroom.
    """
    headroom = prescription.headroom
    given = alert.remedies if headroom is None else advice(alert.remedies, headroom)
    measured = "" if headroom is None else f" {headroom}"
    helpful = [trial for trial in prescription.trials if trial.effect == "helps"][:_MAX_NAMED]
    remedies = tuple(_in_words(trial, prescription) for trial in helpful) or given
    message = alert.message.removesuffix(to_try(alert.remedies)) + measured + to_try(remedies)
    return replace(alert, message=message, remedies=remedies, prescription=prescription.as_dict())


def _in_words(trial: Trial, prescription: Prescription) -> str:
    before, num_steps = prescription.untreated, prescription.num_steps
    figures = []
    if num_steps:
        figures.append(f"loss {trial.loss_after:.3g} instead of {before.loss_after:.3g}")
    if math.isfinite(trial.decades) and math.isfinite(before.decades):
        figures.append(f"{trial.decades:.1f} orders of magnitude lost instead of {before.decades:.1f}")
    return f"{trial.remedy} (tried{f' for {num_steps} steps' if num_steps else ''}: {', '.join(figures)})"
