"""The size of the optimizer's step beside that of the weights."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.quantity import Quantity, by_layer

UPDATE_RATIO = Quantity(
    name="update_ratio",
    label="Update / weight",
    hint="Size of the optimizer's update relative to the weights; about 1e-3 is usual",
    take=lambda snapshot: by_layer(snapshot, snapshot.update_ratios),
)
