"""How much of a layer's gradient is exactly zero."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.quantity import Quantity

ZERO_FRACTION = Quantity(
    name="zero_fraction",
    label="Zero gradients",
    hint="Share of gradient elements that are exactly zero",
    scale="fraction",
    take=lambda snapshot: snapshot.zero_fraction,
)
