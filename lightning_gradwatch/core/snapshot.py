"""What the record of a run keeps of a sample: frozen, importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gradwatch.core.quantities.quantity import Quantity
    from lightning_gradwatch.core.records import Layer


@dataclass(frozen=True)
class Snapshot:
    """What a sample measured of each layer, for the record of the run; None for what was not measured then.

    All tensors are float32 on the host, with one entry per layer; ``-1`` stands for "no gradient" or "not observed".

    Attributes:
        step: The step, on the x-axis of the loggers.
        optimizer: Name of the optimizer; ``""`` if there is only one.
        layers: The watched layers, in the order in which they ran.
        output_grad_norm: L2 norm of dLoss/d(layer output). Shape ``(layers,)``.
        weight_norm: L2 norm of the layer's parameters before the step. Shape ``(layers,)``.
        zero_fraction: Share of exactly zero gradient elements, in [0, 1]. Shape ``(layers,)``.
        clipped_fraction: Share of the steps since the last publication in which a gradient of the layer was clipped,
            in [0, 1]. Shape ``(layers,)``.
        histogram: Counts of log10|g| as in ``Observation``. Shape ``(layers, bins + 2)``.
        update_ratios: Size of the latest update seen relative to the weights, by the name of the layer.
        horizons: Memory horizon of recurrent and repeatedly called layers in time steps, by the name of the layer.
        sequences: For recurrent and repeatedly called layers the gradient norm at each time step, the earliest first.
        extra: Numbers of the user's own quantities by their name: shape ``(layers,)``, not negative but for -1.
        declared: What these quantities are; the log says so, since its reader may not know them.
    """

    step: int
    optimizer: str
    layers: tuple[Layer, ...]
    output_grad_norm: Tensor | None = None
    weight_norm: Tensor | None = None
    zero_fraction: Tensor | None = None
    clipped_fraction: Tensor | None = None
    histogram: Tensor | None = None
    update_ratios: Mapping[str, float] = field(default_factory=dict)
    horizons: Mapping[str, int] = field(default_factory=dict)
    sequences: tuple[tuple[str, Tensor], ...] = ()
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    declared: tuple[Quantity, ...] = ()
