"""The norm of a layer's weights."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.quantity import Quantity

WEIGHT_NORM = Quantity(
    name="weight_norm",
    label="Weight norm",
    hint="L2 norm of a layer's weights",
    take=lambda snapshot: snapshot.weight_norm,
)
