"""How much of a layer's gradient is NaN or infinite; known whenever a histogram is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.records import MISSING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gradwatch.core.snapshot import Snapshot


def _share(snapshot: Snapshot) -> Tensor | None:
    counts = snapshot.histogram
    if counts is None:
        return None
    total = counts.sum(1)
    # The last column counts what is not finite. A layer of which nothing was counted had no gradient.
    return (counts[:, -1] / total.clamp(min=1)).masked_fill(total <= 0, MISSING)


NONFINITE_FRACTION = Quantity(
    name="nonfinite_fraction",
    label="NaN and Inf gradients",
    hint="Share of gradient elements that are NaN or infinite",
    scale="fraction",
    take=_share,
)
