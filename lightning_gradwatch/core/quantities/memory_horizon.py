"""How far back in time the gradient of a recurrent layer reaches."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.quantity import Quantity, by_layer

MEMORY_HORIZON = Quantity(
    name="memory_horizon",
    label="Memory horizon",
    hint="Time steps back over which the gradient of a recurrent layer survives",
    scale="linear",
    missing="not recurrent",
    unit="steps",
    take=lambda snapshot: by_layer(snapshot, snapshot.horizons),
)
