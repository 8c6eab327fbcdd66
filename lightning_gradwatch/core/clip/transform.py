"""A policy at work, as far as all policies are alike: what it is told, what it answers, and where its memory lies.

Nothing here or in a policy waits for the device: no number is read, and no branch is taken on one. Constants enter by
``masked_fill``; ``torch.where`` may copy them from the host and wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter, is_
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gradwatch.core.clip.gradients import multiply_all_


class Step(NamedTuple):
    """What a transform is told about a step, besides the gradients: float32 tensors on the device.

    Attributes:
        norms: L2 norm of each gradient before clipping, unscaled, shape ``(n,)``; ``-1`` for no gradient.
        total: L2 norm over all of them, shape ``()``; not finite if this step must change nothing.
        loss_scale: Factor that is still in the gradients, shape ``()``.
    """

    norms: Tensor
    total: Tensor
    loss_scale: Tensor


class Outcome(NamedTuple):
    """What a transform did: float32 tensors on the device.

    Attributes:
        threshold: Total norm (or absolute value) above which this step was to be clipped, shape ``()``; NaN if there
            is no common one.
        coefficients: Norm after by norm before of each gradient, shape ``(n,)``; 1 for one untouched, zero or missing.
        factor: The one number by which all gradients were multiplied, shape ``()``; None if there is none.
    """

    threshold: Tensor
    coefficients: Tensor
    factor: Tensor | None = None


class Transform(ABC):
    """The arithmetic of one policy on the gradients of chosen parameters, and what it remembers between steps.

    Args:
        parameters: The parameters whose gradients are changed, at least one.
        memory: Tensors on the first parameter's device, by the names that they have in a checkpoint. They are changed
            in place only, so that others may hold them.
    """

    def __init__(self, parameters: Sequence[Tensor], **memory: Tensor) -> None:
        self.parameters = parameters
        self.memory = memory

    @abstractmethod
    def clip_(self, step: Step) -> Outcome:
        """Change the gradients; none if the total norm is not finite. No host sync."""

    def gradients(self) -> list[Tensor]:
        """The gradients there are."""
        gradients = list(map(attrgetter("grad"), self.parameters))
        return [g for g in gradients if g is not None] if any(map(is_, gradients, repeat(None))) else gradients

    def remember(self, condition: Tensor, **values: Tensor) -> None:
        """Replace what is remembered, where the condition holds."""
        for name, value in values.items():
            self.memory[name].copy_(torch.where(condition, value, self.memory[name]))


class TotalNormTransform(Transform):
    """Looks at the total norm only, and multiplies all gradients by one number."""

    @abstractmethod
    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """The threshold and the coefficient for a total norm, each of shape ``()``."""

    def clip_(self, step: Step) -> Outcome:
        """Change the gradients."""
        threshold, factor = self.judge(step.total)
        multiply_all_(self.gradients(), factor)
        return Outcome(threshold, factor.expand_as(step.norms).masked_fill(step.norms <= 0, 1.0), factor)


def total_norm(norms: Tensor) -> Tensor:
    """L2 norm over all gradients, from the norms of each.

    Args:
        norms: L2 norm of each gradient, shape ``(n,)``; negative for "no gradient". Unit: loss per unit of parameter.

    Returns:
        Shape ``()``, same unit, dtype and device; 0 if there is no gradient. Not finite if one of the norms is not, or
        their squares leave the range of the dtype (1.8e19 in float32, as in torch).
    """
    total: Tensor = torch.linalg.vector_norm(norms.clamp(min=0))
    return total


def clip_coefficient(total: Tensor, target: Tensor) -> Tensor:
    """What brings a total norm down to a target.

    There is no epsilon as in torch's clipping: where the target adapts to norms of any scale, an absolute epsilon would
    shrink small ones for no reason.

    Args:
        total: Total norm before clipping, shape ``()``.
        target: Largest total norm afterwards, same shape and unit; positive, ``inf`` for any.

    Returns:
        ``min(1, target / total)``; exactly 1 if ``total`` is not finite.
    """
    return torch.where(total < torch.inf, (target / total).clamp(max=1), 1.0)


def is_informative(total: Tensor) -> Tensor:
    """Whether a total norm says something about the usual size of gradients: it is neither zero nor not finite."""
    return (total > 0) & (total < torch.inf)


def numbers(parameters: Sequence[Tensor], value: float, *shape: int) -> Tensor:
    """A float32 tensor of one value beside the parameters; of shape ``()`` unless another is given."""
    return torch.full(shape, value, dtype=torch.float32, device=parameters[0].device)


def zero(parameters: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A zero of shape ``()`` beside the parameters."""
    return torch.zeros((), dtype=dtype, device=parameters[0].device)
