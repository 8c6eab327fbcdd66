"""Numbers that are not lost in rounding.

Source: Micikevicius et al., ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_gradwatch.core.records import Cause
from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel

_HALF = (torch.float16, torch.bfloat16)


def _widen(autocast: torch.dtype, loss_scale: bool = False) -> Callable[[TrialModel], None]:
    """Keep the weights in float32, and compute in ``autocast``."""

    def apply(trial_model: TrialModel) -> None:
        if trial_model.autocast not in _HALF and not any(p.dtype in _HALF for p in trial_model.model.parameters()):
            raise CannotApply("it runs in full precision already")
        if trial_model.autocast is autocast is torch.bfloat16:
            raise CannotApply("it does that already")
        trial_model.model.float()
        trial_model.batch, trial_model.example = tree_map(_to_float32, (trial_model.batch, trial_model.example))
        trial_model.autocast, trial_model.loss_scale = autocast, loss_scale

    return apply


def _to_float32(item: Any) -> Any:
    return item.float() if isinstance(item, Tensor) and item.dtype in _HALF else item


def _precision(variant: str, name: str, option: str, code: str, apply: Callable[[TrialModel], None]) -> Remedy:
    code = f'model.float()\n{code}# Trainer(precision="{option}")'
    causes: frozenset[Cause] = frozenset({"half_precision", "adam_eps"})
    return Remedy(f"precision.{variant}", name, code, apply, causes, frozenset({"underflow", "nonfinite"}))


_AUTOCAST = "context = torch.autocast(next(model.parameters()).device.type, torch.{})  # with context: loss = ...\n"

REMEDIES = (
    _precision(
        "bf16",
        "bfloat16 with float32 weights",
        "bf16-mixed",
        _AUTOCAST.format("bfloat16"),
        _widen(torch.bfloat16),
    ),
    _precision(
        "fp16",
        "float16 with float32 weights and loss scaling",
        "16-mixed",
        _AUTOCAST.format("float16") + "scaler = torch.amp.GradScaler(next(model.parameters()).device.type)\n",
        _widen(torch.float16, loss_scale=True),
    ),
    _precision("full", "float32", "32-true", "", _widen(torch.float32)),
)
