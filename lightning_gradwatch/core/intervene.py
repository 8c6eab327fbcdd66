"""What may change a step: clipping its gradient, or keeping the optimizer from taking it."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.settings import OnNonfinite


def intervene(
    instruments: Instruments, optimizer: Optimizer, on_nonfinite: OnNonfinite, scale: Tensor | None, is_scaled: bool
) -> bool:
    """Clip the gradient whose norms are in the last row of the window, or skip its step.

    Args:
        instruments: Of the optimizer's parameters.
        optimizer: About to step.
        on_nonfinite: What to do with a gradient that is not finite.
        scale: Factor that is still in the gradients, shape ``()``; None for none.
        is_scaled: Whether a loss scaler is at work, which skips such steps by itself.

    Returns:
        Whether the step must be reported at once: its gradient is not finite, and that is to be raised.
    """
    norms = instruments.window.norms[-1]
    # policies go by the norms of the whole, of which this rank holds a part
    if instruments.shards.is_spread:
        norms.copy_(instruments.shards.reduce({"norms": norms}, {"norms": "norm"})["norms"])
    if len(instruments.clippers):
        instruments.window.note(instruments.clippers.clip_(norms, scale))
    if on_nonfinite == "keep" or is_scaled:
        return False
    is_finite = norms.isfinite().all()
    if on_nonfinite == "skip":
        skip_step(optimizer, is_finite)
        return False
    return not bool(is_finite)


def skip_step(optimizer: Optimizer, is_finite: Tensor) -> None:
    """Keep an optimizer from its next step if the gradient is not finite: weights and state stay as they are.

    Fused optimizers are told on the device, by the flag with which loss scalers do it; for the others the host must
    read one number.

    Args:
        optimizer: About to step.
        is_finite: Whether the gradient is finite, shape ``()``, bool.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
    elif not bool(is_finite):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def leave(optimizer: Optimizer) -> None:
    """Take off an optimizer what :func:`skip_step` has put there."""
    for flag in ("found_inf", "grad_scale"):
        if hasattr(optimizer, flag):
            delattr(optimizer, flag)
