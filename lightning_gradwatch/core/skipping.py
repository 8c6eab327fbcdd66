"""Keeping an optimizer from a step: weights and state stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.core.engines import Access


class Skipper:
    """Keeps one optimizer from steps.

    Fused optimizers are told on the device, by the flag with which loss scalers do it; for the others the host must
    read one number.

    Args:
        access: Reaches the optimizer.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._optimizer = access.optimizer
        self._waiting: Tensor | None = None
        self._hook: RemovableHandle | None = None

    def skip(self, is_bad: Tensor, is_scaled: bool) -> bool:
        """Keep the optimizer from its next step where that is bad.

        Args:
            is_bad: Whether it is, shape ``()``, bool.
            is_scaled: Whether a loss scaler takes the step. It sets the flag of fused optimizers itself, right before
                the step, and must not take this for a gradient that is not finite: then it would lower its scale.

        Returns:
            Whether the host knows that the step is left out.
        """
        if not getattr(self._optimizer, "_step_supports_amp_scaling", False):
            if bool(is_bad):
                self._access.drop_step()
                return True
        elif is_scaled:
            self._waiting = is_bad
            self._hook = self._hook or self._optimizer.register_step_pre_hook(self._join)
        else:
            self._optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            self._optimizer.grad_scale = None  # type: ignore[attr-defined]
        return False

    def _join(self, optimizer: Optimizer, *_: object) -> None:
        """Add our word to that of the scaler, which is about to take the step."""
        found, self._waiting = self._waiting, None
        known = getattr(optimizer, "found_inf", None)
        if found is not None and known is not None:
            optimizer.found_inf = torch.maximum(known, found.to(known))  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Take off the optimizer what was put there."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for flag in ("found_inf", "grad_scale"):
            if hasattr(self._optimizer, flag):
                delattr(self._optimizer, flag)
