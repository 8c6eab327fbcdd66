"""The gradient where it leaves a layer: what depth does to it."""

from __future__ import annotations

from lightning_gradwatch.core.quantities.quantity import Quantity

OUTPUT_GRAD_NORM = Quantity(
    name="output_grad_norm",
    label="Gradient at layer output",
    hint="L2 norm of the gradient of the loss by a layer's output",
    take=lambda snapshot: snapshot.output_grad_norm,
)
