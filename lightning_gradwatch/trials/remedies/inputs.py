"""Inputs of mean 0 and standard deviation 1.

Source: LeCun et al., "Efficient BackProp", 1998.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel
from lightning_gradwatch.trials.remedies.surgery import CONVOLUTION, MATRIX, RECURRENT, trace


def _standardise(trial_model: TrialModel) -> None:
    """Standardise each feature at the first layer, by the mean and deviation of the batch."""
    seen = trace(trial_model)
    first = next((c for c in seen.calls if isinstance(c.module, (*MATRIX, *RECURRENT, nn.Embedding))), None)
    if first is None or first.given is None or first.before or not first.args or first.given is not first.args[0]:
        raise CannotApply("the first layer does not read a plain floating tensor")
    given = first.given.detach()
    feature = 1 if isinstance(first.module, CONVOLUTION) else given.ndim - 1
    others = [dim for dim in range(given.ndim) if dim != feature]
    if given.ndim < 2 or given.numel() // given.shape[feature] < 2 or not given.isfinite().all():
        raise CannotApply("the batch is too small or not finite")
    wide = given.float()
    mean, std = wide.mean(others, keepdim=True), wide.std(others, keepdim=True)
    first.module.register_buffer("input_mean", mean.to(given))
    first.module.register_buffer("input_std", torch.where(std > 0, std, 1).to(given))
    first.module.register_forward_pre_hook(_through)


def _through(module: nn.Module, args: Any) -> tuple[Any, ...]:
    standardised: Tensor = (args[0] - module.input_mean) / module.input_std
    return standardised, *args[1:]


REMEDIES = (
    Remedy(
        "input.standardise",
        "standardised inputs",
        "x = (x - x.mean(0)) / x.std(0).clamp_min(1e-8)  # x: the inputs of the training set, feature by feature",
        _standardise,
        frozenset({"input_scale", "large_init", "saturating_activation", "learning_rate"}),
    ),
)
