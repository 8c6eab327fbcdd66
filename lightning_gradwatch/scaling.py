"""What loss scalers and precision plugins say of themselves: torch's own, Lightning's, or somebody's in their place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.asking import ask, call


def scale_of(scaler: object) -> Tensor | None:
    """Factor of a loss scaler, shape ``()``, without a host sync; None for no scaler, and for one that is off."""
    if scaler is None or call(scaler, "is_enabled") is not True:
        return None
    scale = ask(scaler, "_scale")
    if isinstance(scale, Tensor):
        return scale
    number = call(scaler, "get_scale")
    return torch.tensor(number, device="cpu") if isinstance(number, (int, float)) else None


def still_scaled(scaler: object, optimizer: Optimizer) -> bool:
    """Whether a loss scaler is at work that has not yet unscaled this optimizer's gradients in the present step."""
    if scale_of(scaler) is None:
        return False
    states = ask(scaler, "_per_optimizer_states")
    state = states.get(id(optimizer)) if isinstance(states, dict) else None
    stage = state.get("stage") if isinstance(state, dict) else None
    return bool(ask(stage, "name", "READY") == "READY")


def mixed_precision(plugin: object) -> torch.dtype | None:
    """The dtype under autocast by a precision plugin of Lightning or Fabric; None for no mixed precision."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(ask(plugin, "precision")))


def unscales_itself(optimizer: Optimizer) -> bool:
    """Whether gradients still carry the loss scale when the optimizer's step begins (fused optimizers)."""
    return ask(optimizer, "_step_supports_amp_scaling") is True
