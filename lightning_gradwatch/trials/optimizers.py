"""The optimizer of a copy: the run's own with its state, or a new one for parameters that are new."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.trials.loss import is_lightning, is_manual
from lightning_gradwatch.trials.model import TrialModel

DEFAULT_LR = 1e-3


def make(model: nn.Module, choice: Callable[..., Any] | None) -> tuple[Optimizer, list[Any]]:
    """A new optimizer, and the schedules of its rate that move with every step.

    Args:
        model: The model.
        choice: Makes an optimizer of parameters; None for the model's own ``configure_optimizers``, or Adam where there
            is none.

    Raises:
        ValueError: If there is not exactly one that a trial can step.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if choice is not None:
        made: Any = choice(trainable)
    else:
        made = _configured(model) if is_lightning(model) else torch.optim.Adam(trainable, lr=DEFAULT_LR)
    optimizers, schedules = _parsed(made)
    if len(optimizers) != 1:
        raise refuse("optimizer", "a single one", f"{len(optimizers)} of `configure_optimizers`", "name one of them")
    return check(optimizers[0]), [s["scheduler"] for s in schedules if s.get("interval") == "step"]


def _configured(model: Any) -> Any:
    try:
        return model.configure_optimizers()
    except Exception as failure:
        if is_the_users(failure):
            raise
        cure = "pass the run's own, or a function that makes one of parameters"
        raise refuse("optimizer", "given where `configure_optimizers` fails", str(failure), cure) from failure


def check(optimizer: Any) -> Optimizer:
    """The optimizer itself, out of Lightning's wrapper.

    Raises:
        ValueError: If it is none that steps with a gradient alone.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, LBFGS):
        cure = "give one, or a function that makes one of parameters"
        raise refuse("optimizer", "an optimizer that steps with one gradient", type(optimizer).__name__, cure)
    return optimizer


def require_fit(model: nn.Module, optimizer: Optimizer | None, loss_fn: Any) -> None:
    """Refuse what a copy cannot be trained by.

    Raises:
        ValueError: If the model steps its optimizers itself and there is no loss function for a part of it, or if the
            optimizer is another model's.
    """
    if loss_fn is None and is_manual(model):
        cure = "give `loss_fn` and `optimizer` for the part that is in trouble"
        raise refuse("model", "one that Lightning itself optimizes", "manual optimization", cure)
    if optimizer is not None and not {id(p) for p in model.parameters()} & parameters_of(optimizer):
        raise refuse("optimizer", "that of the model's parameters", "one of others", "give the one that trains it")


def parameters_of(optimizer: Optimizer) -> set[int]:
    """Identities of the parameters that it steps."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _parsed(made: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """Optimizers and schedules of what ``configure_optimizers`` may return."""
    if isinstance(made, Mapping):
        return [made["optimizer"]], _schedules([made.get("lr_scheduler")])
    if isinstance(made, (tuple, list)) and len(made) == 2 and all(isinstance(part, (tuple, list)) for part in made):
        return list(made[0]), _schedules(made[1])
    if isinstance(made, (tuple, list)):
        parsed = [_parsed(part) for part in made]
        return [o for optimizers, _ in parsed for o in optimizers], [s for _, schedules in parsed for s in schedules]
    return ([] if made is None else [made]), []


def _schedules(given: Any) -> list[dict[str, Any]]:
    return [dict(s) for s in given if isinstance(s, Mapping) and "scheduler" in s and "monitor" not in s]


def follow(optimizer: Optimizer, before: Mapping[str, Tensor], values: Mapping[str, Tensor], model: nn.Module) -> None:
    """Let a copied optimizer follow what a remedy has done to its model.

    New parameters join the group of the one nearest to them; those that are no more leave; what is
    remembered of a parameter is forgotten where its values have changed.

    Args:
        optimizer: Copied together with the model.
        before: The copy's parameters before the remedy, by name.
        values: The user's parameters, by name.
        model: The copy after the remedy.
    """
    old = {id(p): name for name, p in before.items()}
    now = dict(model.named_parameters())
    living = {id(p) for p in now.values()}
    groups = {old[id(p)]: group for group in optimizer.param_groups for p in group["params"] if id(p) in old}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in old or id(p) in living]
    for name, parameter in now.items():
        if id(parameter) not in old and parameter.requires_grad:
            home = groups.get(name) if name in before else _nearest(name, groups)
            if home is not None:
                home["params"].append(parameter)
    kept = parameters_of(optimizer)
    for known in list(optimizer.state):
        name = old.get(id(known), "")
        if id(known) not in kept or (name and not _is_same(known, values[name])):
            del optimizer.state[known]


def _is_same(now: Tensor, before: Tensor) -> bool:
    return now.shape == before.shape and now.dtype == before.dtype and torch.equal(now, before)


def _nearest(name: str, groups: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The group of the parameter that stands nearest to a new one in the tree of modules."""
    path = name.split(".")
    near = max(groups, key=lambda known: _num_shared(known.split("."), path), default=None)
    return None if near is None else groups[near]


def _num_shared(path: Sequence[str], other: Sequence[str]) -> int:
    """Number of leading components that two paths share."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(path, other, strict=False))))


def adjust(optimizer: Optimizer, trial_model: TrialModel) -> None:
    """Set what a remedy has changed about the optimizer itself."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * trial_model.lr_scale
        if trial_model.adam_eps is not None and "eps" in group:
            group["eps"] = trial_model.adam_eps
        if trial_model.weight_decay is not None and "weight_decay" in group:
            group["weight_decay"] = trial_model.weight_decay
