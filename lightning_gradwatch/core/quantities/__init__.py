"""What is known of every layer: one file each. To add a quantity, write its file and name it in ``QUANTITIES``.

Nothing here needs torch when it is imported: readers of logs know the same declarations.
"""

from __future__ import annotations

from lightning_gradwatch.core.quantities.clipped_fraction import CLIPPED_FRACTION
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.memory_horizon import MEMORY_HORIZON
from lightning_gradwatch.core.quantities.nonfinite_fraction import NONFINITE_FRACTION
from lightning_gradwatch.core.quantities.output_gradient import OUTPUT_GRAD_NORM
from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.quantities.several import ALERTS, IN_BINS, SEQUENCE, SEVERAL
from lightning_gradwatch.core.quantities.update_ratio import UPDATE_RATIO
from lightning_gradwatch.core.quantities.weight_norm import WEIGHT_NORM
from lightning_gradwatch.core.quantities.zero_fraction import ZERO_FRACTION

QUANTITIES: tuple[Quantity, ...] = (
    GRAD_NORM,
    OUTPUT_GRAD_NORM,
    UPDATE_RATIO,
    WEIGHT_NORM,
    ZERO_FRACTION,
    NONFINITE_FRACTION,
    CLIPPED_FRACTION,
    MEMORY_HORIZON,
)
"""In the order in which they are offered; the first one is shown unless another one is asked for."""
BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}
RESERVED = frozenset({*BY_NAME, *SEVERAL, *IN_BINS, SEQUENCE, ALERTS})
"""Names in event files that no quantity of the user's own can have."""
