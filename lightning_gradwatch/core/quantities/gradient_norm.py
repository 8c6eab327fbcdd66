"""The norm of a layer's gradient: what is shown first."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.quantity import Quantity

GRAD_NORM = Quantity(
    name="grad_norm",
    label="Gradient norm",
    hint="L2 norm of the gradient of a layer's weights, unscaled and before clipping",
    missing="no gradient of its own",
    take=lambda _: None,  # it is known at every step, and recorded in bins
)
