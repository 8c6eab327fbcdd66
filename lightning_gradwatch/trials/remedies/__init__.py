"""What can be tried, one small file per family; of two that are tried together the earlier is applied first."""

from lightning_gradwatch.trials.model import Remedy
from lightning_gradwatch.trials.remedies import (
    activation,
    clipping,
    init,
    inputs,
    norm,
    optimizer,
    output,
    precision,
    prenorm,
    recurrent,
    residual,
)

REMEDIES: tuple[Remedy, ...] = (
    *activation.REMEDIES,
    *init.REMEDIES,
    *norm.REMEDIES,
    *residual.REMEDIES,
    *prenorm.REMEDIES,
    *inputs.REMEDIES,
    *output.REMEDIES,
    *precision.REMEDIES,
    *recurrent.REMEDIES,
    *optimizer.REMEDIES,
    *clipping.REMEDIES,
)
"""Every remedy."""

__all__ = ["REMEDIES"]
