"""One policy at work on the gradients of one optimizer: what it remembers stays on the device, and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from lightning_gradwatch.core.clip.policy import ClipPolicy
from lightning_gradwatch.core.clip.transform import Step, numbers, total_norm
from lightning_gradwatch.core.shards import Shards


class Clipping(NamedTuple):
    """What one call did: float32 tensors on the device.

    Attributes:
        threshold: Total norm (for ``MaxValue``: absolute value) above which this step was to be clipped, shape
            ``()``. ``inf`` while ZClip gathers its first statistics; NaN for policies without a common threshold.
        total_norm: Before clipping, over this clipper's parameters, unscaled; shape ``()``.
        clipped_norm: After it; shape ``()``. From the coefficients, not measured again, but for ``MaxValue``.
        coefficients: Norm after by norm before of each gradient, shape ``(n,)``; 1 for one untouched, zero or missing.
        coefficient: ``clipped_norm`` by ``total_norm``, shape ``()``; 1 if nothing was clipped.
    """

    threshold: Tensor
    total_norm: Tensor
    clipped_norm: Tensor
    coefficients: Tensor
    coefficient: Tensor


class ClipperState(TypedDict, total=False):
    """What a checkpoint holds of a ``Clipper``."""

    policy: str
    memory: dict[str, Tensor]


class Clipper:
    """One policy at work on the chosen parameters of one optimizer.

    Args:
        policy: What to clip by.
        parameters: The parameters whose gradients are clipped, at least one.
        shards: How these parameters (and no others) are spread over the ranks.

    Raises:
        ValueError: If the policy is none of GradWatch's, or cannot be right on parameters that are spread over ranks:
            ``AGC`` needs whole weights, ``MaxValue`` whole elements of gradients.
    """

    def __init__(self, policy: ClipPolicy, parameters: Sequence[Tensor], shards: Shards) -> None:
        self.policy = policy
        self._unscaled = numbers(parameters, 1.0)
        self._transform = policy._transform(parameters, shards)

    @property
    def memory(self) -> dict[str, Tensor]:
        """What the policy remembers between steps, on the device."""
        return self._transform.memory

    def clip_(self, norms: Tensor, loss_scale: Tensor | None = None) -> Clipping:
        """Clip the gradients in place, once they are complete. No host sync (but to add up a sparse gradient's parts).

        A total norm that is not finite changes nothing: no gradient is scaled, nothing is remembered.

        Args:
            norms: L2 norm of the whole gradient of each parameter, unscaled and not yet clipped, reduced over the
                ranks; shape ``(n,)``, float32, on the first parameter's device; ``-1`` for no gradient.
            loss_scale: Factor that is still in the gradients (fused optimizers under AMP), shape ``()``; None for none.

        Returns:
            What was done; the same on all ranks.
        """
        total = total_norm(norms)
        step = Step(norms, total, self._unscaled if loss_scale is None else loss_scale)
        threshold, coefficients, factor = self._transform.clip_(step)
        if factor is not None:
            return Clipping(threshold, total, factor * total, coefficients, factor)
        # Without one factor for all, the norm after clipping is that of the clipped norms; 0 by 0 is "nothing clipped".
        clipped = total_norm(coefficients * norms)
        ratio = clipped / total
        is_clipped = (coefficients < 1).any() & ratio.isfinite()
        return Clipping(threshold, total, clipped, coefficients, torch.where(is_clipped, ratio, 1.0))

    def state_dict(self) -> ClipperState:
        """Tensors and primitives that ``load_state_dict`` takes back; loads with ``weights_only=True``."""
        memory = {name: value.cpu().clone() for name, value in self.memory.items()}
        return {"policy": type(self.policy).__name__, "memory": memory}

    def load_state_dict(self, state: ClipperState) -> None:
        """Go on where ``state_dict`` was taken, bit by bit; afresh if the policy or the size of its memory changed.

        A history of total norms is kept when parameters join: it follows them soon.
        """
        own, saved = self.memory, state.get("memory", {})
        is_same = state.get("policy") == type(self.policy).__name__
        if is_same and all(_is_like(saved.get(name), value) for name, value in own.items()):
            for name, value in own.items():
                value.copy_(saved[name])


def _is_like(saved: Tensor | None, value: Tensor) -> bool:
    return saved is not None and (saved.shape, saved.dtype) == (value.shape, value.dtype)
