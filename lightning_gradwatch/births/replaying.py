"""Replays the step of a flight record that went wrong, from a checkpoint and with the batches of the record."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.births.records import Birth
from lightning_gradwatch.births.replay import MAX_SECONDS, find_birth
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.trials.loss import device_of, is_lightning, is_manual, loss_of, on_device
from lightning_gradwatch.trials.optimizers import make

Line = Mapping[str, Any]


@dataclass
class Entry:
    """What a training consists of.

    Attributes:
        model: A module or a LightningModule.
        loader: Its training data, whose batches are drawn as in the run.
        loss_fn: As for ``find_birth``.
        optimizer: The one whose steps are replayed; None for that of a LightningModule.
    """

    model: nn.Module
    loader: Iterable[Any]
    loss_fn: Callable[..., Tensor] | None = None
    optimizer: Optimizer | None = None


def load_entry(name: str) -> Entry:
    """Call a function of the user's that makes the model and its data.

    Args:
        name: ``"module:function"``; modules of the working directory are found, too. The function takes no arguments
            and returns model and loader, then loss function and optimizer if there are any.

    Raises:
        ValueError: If there is no such function, or it returns something else.
    """
    module, _, function = name.partition(":")
    cure = "`def entry(): return model, loader` in train.py, and --entry train:entry"
    if not module or not function:
        raise refuse("--entry", "module:function", name, cure)
    sys.path.insert(0, os.getcwd())
    try:
        call = getattr(import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as failure:
        raise refuse("--entry", "the name of a function", f"{name} ({failure})", cure) from failure
    made = call()
    parts = tuple(made) if isinstance(made, (tuple, list)) else ()
    if not 2 <= len(parts) <= 4 or not isinstance(parts[0], nn.Module):
        came = f"a function that returns {type(made).__name__} of {len(parts)}"
        raise refuse("--entry", "model and loader, then loss function and optimizer", came, cure)
    entry = Entry(*parts)
    if entry.optimizer is None and is_lightning(entry.model) and not is_manual(entry.model):
        entry.optimizer, _ = make(entry.model, None)
    return entry


def load_checkpoint(path: str, entry: Entry) -> int | None:
    """Load weights and the optimizer's state; the number of steps before, where the checkpoint tells it.

    Raises:
        ValueError: If it cannot be read, or does not fit the model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failure:
        cure = "torch.serialization.add_safe_globals in the entry's module, for classes that torch does not know"
        raise refuse("--checkpoint", "a file that torch.load can read", f"{path} ({failure})", cure) from failure
    known = isinstance(state, Mapping) and "state_dict" in state
    weights = state["state_dict"] if known else state
    try:
        entry.model.load_state_dict(weights)
    except Exception as failure:
        came = f"{path}: {str(failure).splitlines()[0]}"
        raise refuse("--checkpoint", "the weights of the entry's model", came, "give one of this run") from failure
    states = state.get("optimizer_states") if known else None
    if states and entry.optimizer is not None:
        entry.optimizer.load_state_dict(states[0])
    step = state.get("global_step") if known else None
    return step if isinstance(step, int) else None


def replay(entry: Entry, first: Line, span: Sequence[Line], before: Line | None) -> tuple[Line, Birth | None]:
    """Find the birth of the NaN of a step; the line of that step, and the place.

    The steps between the checkpoint and it are taken again, at their learning rates.

    Args:
        entry: Model, loader, loss function and optimizer, with the weights of the checkpoint.
        first: The record's first line.
        span: Its steps from the checkpoint to the one that is not finite.
        before: The step before them, if it is on record.

    Raises:
        ValueError: If the record does not tell how batches were drawn.
    """
    entry.model.train()
    for line, batches in _with_batches(entry.loader, first, span, before):
        # the step before may have spoilt the weights, which shows in this one
        if line["step"] >= span[-1]["step"] - 1:
            births = (_birth(entry, line, batch) for batch in batches)
            birth = next((birth for birth in births if birth is not None), None)
            if birth is not None:
                return line, birth
        _take_step(entry, line, batches)
    return span[-1], None


def choose(lines: Sequence[Line], start: int | None, step: int | None) -> tuple[list[Line], Line | None]:
    """The steps to replay, from the checkpoint to the one that is not finite, and the step before them.

    Args:
        lines: The steps of the record.
        start: Steps before the checkpoint; None to take it for one from right before the step.
        step: The step; None for the first one, from the checkpoint on, that was not finite.

    Raises:
        ValueError: If record and checkpoint do not go together.
    """
    lines = [line for line in lines if line["optimizer"] == lines[0]["optimizer"]]
    oldest, newest = lines[0]["step"], lines[-1]["step"]
    if start is not None and not oldest <= start <= newest:
        came = f"one from step {start}, and a record of the steps {oldest} to {newest}"
        raise refuse("--checkpoint", "from a step that the record holds", came, "give another one")
    begin = next((place for place, line in enumerate(lines) if line["step"] == start), 0)
    wanted = (is_bad(line) if step is None else line["step"] == step for line in lines[begin:])
    end = next((place for place, is_wanted in enumerate(wanted, begin) if is_wanted), None)
    if end is None:
        came = f"{'none' if step is None else step} from step {lines[begin]['step']} to {newest}"
        raise refuse("--step", "a step of the record, from the checkpoint on", came, "give an older checkpoint")
    begin = end if start is None else begin
    return lines[begin : end + 1], lines[begin - 1] if begin else None


def _birth(entry: Entry, line: Line, batch: Any) -> Birth | None:
    scale, patience = float(line.get("loss_scale") or 1.0), 10 * MAX_SECONDS  # nobody's training waits
    options: dict[str, Any] = {"optimizer": entry.optimizer, "loss_scale": scale, "max_seconds": patience}
    return find_birth(entry.model, batch, entry.loss_fn, **options)


def is_bad(line: Line) -> bool:
    """Whether the loss or the gradient of a step was not finite."""
    return any(not math.isfinite(float(line[name])) for name in ("loss", "total_norm") if line.get(name) is not None)


def _take_step(entry: Entry, line: Line, batches: Sequence[Any]) -> None:
    if entry.optimizer is None:
        return
    for group, rate in zip(entry.optimizer.param_groups, line["lr"] or (), strict=False):
        group["lr"] = group["lr"] if rate is None else float(rate)
    entry.optimizer.zero_grad()
    device = device_of(entry.model)
    for batch in batches:
        (loss_of(entry.model, on_device(batch, device), entry.loss_fn) / len(batches)).backward()
    entry.optimizer.step()


def _with_batches(
    loader: Iterable[Any], first: Line, span: Sequence[Line], before: Line | None
) -> Iterator[tuple[Line, list[Any]]]:
    """Each step with its batches, drawn as the run has drawn them.

    Raises:
        ValueError: If the record does not tell how.
    """
    for epoch, steps in itertools.groupby(span, key=lambda line: line["epoch"]):
        drawn, place = _drawn(loader, first, epoch), 0
        for line in steps:
            last = line["batch_idx"]
            begin = max(last + 1 - int(first.get("accumulate_grad_batches") or 1), 0)
            if before is not None:  # fewer are left at the end of an epoch
                begin = before["batch_idx"] + 1 if before["epoch"] == epoch else 0
            yield line, list(itertools.islice(drawn, max(begin - place, 0), last - place + 1))
            place, before = last + 1, line


def _drawn(loader: Iterable[Any], first: Line, epoch: int) -> Iterator[Any]:
    """The batches of an epoch."""
    state = first.get("rng_state_at_epoch_start", {}).get(str(epoch))
    if state is None:
        came, cure = f"a record without epoch {epoch}", "use find_birth with the batch"
        raise refuse("FLIGHT", "a record of a run in a Trainer, whose batches can be drawn again", came, cure)
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)
    return iter(loader)
