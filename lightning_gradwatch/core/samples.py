"""What a sample saw, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gradwatch.core.attribution.way import Attribution


class Inputs(NamedTuple):
    """What the input of a layer looks like: range, spread, and how much of it is dead or saturated."""

    low: float
    high: float
    std: float
    zeros: float
    dead_units: float
    beyond: float
    below: float


@dataclass(frozen=True)
class ThoroughSample:
    """What a thorough sample saw besides, on the host. Float32, one entry per layer, ``-1`` for "unknown".

    Attributes:
        gain: Standard deviation of the layer's first matrix times the root of its fan-in: sqrt(2) after He's
            initialisation, 1 after LeCun's. Shape ``(layers,)``.
        update_ratio: Norm of the latest update seen, relative to the weights. Shape ``(layers,)``.
        unchanged: Share of elements with a gradient that this update left as they were, bit for bit.
            Shape ``(layers,)``.
        below_eps: Share of elements whose root mean square gradient lies below Adam's ``eps``. Shape ``(layers,)``.
        signal: Mean squared first over second moment of Adam; low for gradients that are mostly noise.
            Shape ``(layers,)``.
        output_zeros: Share of exact zeros in the gradient at the layer's output, where that is float16.
            Shape ``(layers,)``.
        inputs: What the layer's input looks like, in the order of ``Inputs``, shape ``(layers, 7)``; None where causes
            were not sought, and nobody has looked.
        attribution: What each operation did to the gradient on its way back; None where it was not measured.
    """

    gain: Tensor
    update_ratio: Tensor
    unchanged: Tensor
    below_eps: Tensor
    signal: Tensor
    output_zeros: Tensor
    inputs: Tensor | None = None
    attribution: Attribution | None = None


@dataclass(frozen=True)
class Sample:
    """What a sample saw at one step, on the host. All tensors are float32 with one entry per layer.

    ``-1`` stands for "no gradient" or "not observed"; NaN and inf are values that were really there.

    Attributes:
        step: The step, on the x-axis of the loggers.
        output_grad_norm: L2 norm of dLoss/d(layer output), summed in squares over repeated calls. Shape ``(layers,)``.
        weight_norm: L2 norm of the layer's parameters before the step. Shape ``(layers,)``. This and ``zero_fraction``
            are measured by thorough samples, and for publications if they are ten steps old; else the latest known.
        zero_fraction: Share of exactly zero gradient elements, in [0, 1]. Shape ``(layers,)``.
        ran: Names of the layers that ran.
        spare: Names of those that trained layers fed and whose output nobody had kept, at the latest thorough sample.
        sequences: For recurrent and repeatedly called layers the gradient norm at each time step, the earliest first.
        thorough: What a thorough sample saw besides; None on the other samples.
        is_skipped: Whether the step is not taken, by a loss scaler or ``on_nonfinite="skip"``: then nothing is said of
            its gradients.
        extra: Quantities of the user's own, by name. Shape ``(layers,)`` each, measured when weights are.
    """

    step: int
    output_grad_norm: Tensor
    weight_norm: Tensor
    zero_fraction: Tensor
    ran: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()
    sequences: tuple[tuple[str, Tensor], ...] = ()
    thorough: ThoroughSample | None = None
    is_skipped: bool = False
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def output_norms(self) -> list[float]:
        """``output_grad_norm`` as numbers."""
        return self.output_grad_norm.tolist()

    @cached_property
    def weight_norms(self) -> list[float]:
        """``weight_norm`` as numbers."""
        return self.weight_norm.tolist()
