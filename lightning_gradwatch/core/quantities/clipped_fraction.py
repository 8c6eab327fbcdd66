"""How often a layer's gradient was clipped."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.quantity import Quantity

CLIPPED_FRACTION = Quantity(
    name="clipped_fraction",
    label="Clipped steps",
    hint="Share of steps in which this layer's gradient was clipped",
    scale="fraction",
    missing="not clipped here",
    take=lambda snapshot: snapshot.clipped_fraction,
)
