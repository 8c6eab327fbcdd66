"""The throw-away copy on which a remedy is tried, and what a remedy is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.core.records import AlertKind, Cause


class CannotApply(Exception):  # noqa: N818 (it is an answer, not a failure)
    """A remedy does not fit this model; the message says why, in a few words, for the column "not tried"."""


@dataclass
class TrialModel:
    """A copy of a model in training, which a remedy may change in any way.

    Attributes:
        model: The copy. Its class is the user's; a LightningModule computes its loss by ``training_step``.
        batch: The batch that every trial step uses; on the model's device.
        example: Positional arguments of the model's own ``forward``, recorded from an untreated step; None if unknown.
        lr_scale: What the optimizer's learning rates are multiplied by.
        warmup_steps: Steps over which the rate rises linearly from zero.
        clip: Name or policy for ``auto_clip``; None for the run's own.
        autocast: Dtype of mixed precision, float32 for none at all; None for the run's own.
        loss_scale: Whether a gradient scaler is used.
        adam_eps: ``eps`` of Adam; None for the run's own.
        weight_decay: Weight decay; None for the run's own.
        num_time_steps: Length of the longest sequence seen by a recurrent layer; 0 if there is none.
        loss: Computes the loss of a model and a batch as a trial step does, without its backward pass; None if unknown.
        code: The lines that apply the remedy to this very model, where it knows better than ``Remedy.code``.
    """

    model: nn.Module
    batch: Any
    example: tuple[Any, ...] | None = None
    lr_scale: float = 1.0
    warmup_steps: int = 0
    clip: Any = None
    autocast: torch.dtype | None = None
    loss_scale: bool = False
    adam_eps: float | None = None
    weight_decay: float | None = None
    num_time_steps: int = 0
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    code: str = ""


@dataclass(frozen=True)
class Remedy:
    """Something to try.

    Attributes:
        key: Stable name, such as ``"activation.relu"``: family, then variant. Of one family at most one is combined.
        name: What it does, in the field's words.
        code: The lines that apply it to any model; empty where they depend on it, see ``TrialModel.code``.
        apply: Changes a model; raises ``CannotApply`` where it does not fit, and changes nothing then.
        causes: Diagnosed causes that make it plausible.
        kinds: Kinds of alerts that make it plausible whatever the cause.
    """

    key: str
    name: str
    code: str
    apply: Callable[[TrialModel], None]
    causes: frozenset[Cause] = field(default_factory=frozenset)
    kinds: frozenset[AlertKind] = field(default_factory=frozenset)
