"""What a heatmap can show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """What can be shown.

    Attributes:
        name: As in the event file.
        label: In plain words.
        is_log: Whether it is shown in decades; else it is a share from 0 to 1.
        missing: What -1 stands for.
    """

    name: str
    label: str
    is_log: bool
    missing: str


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("grad_norm", "Gradient norm", True, "no gradient"),
        Quantity("output_grad_norm", "Gradient norm at layer output", True, "not observed"),
        Quantity("update_ratio", "Update relative to the weights", True, "not observed"),
        Quantity("weight_norm", "Weight norm", True, "not observed"),
        Quantity("zero_fraction", "Share of zero gradients", False, "not observed"),
        Quantity("nonfinite_fraction", "Share of NaN and infinite gradients", False, "not observed"),
        Quantity("clipped_fraction", "Share of clipped steps", False, "not clipped"),
    )
}
