"""What stands in the event file beside the quantities: several numbers per layer, and what is not per layer at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Several:
    """Several numbers per layer, which no heatmap can show.

    Attributes:
        name: As in the event file.
        width: How many there are; the tensor has the shape ``(layers, width)``.
        dtype: That of the tensor.
    """

    name: str
    width: int
    dtype: Literal["float32", "uint8"] = "float32"


HISTOGRAM_BINS = 64
"""Neighbouring bins of log10|g| that are kept of a layer."""
NORM_RANGE = Several("grad_norm_range", 3)
"""Smallest, median and largest gradient norm since it was written last."""
HISTOGRAM = Several("log10_histogram", 2 + HISTOGRAM_BINS, "uint8")
"""The first bin as a uint16, and the bins."""
SEVERAL = {several.name: several for several in (NORM_RANGE, HISTOGRAM)}
STEPS = "grad_norm_steps"
"""Gradient norms of every step, in bins; with them numbers of the run, such as its loss."""
STEPS_AROUND = "grad_norm_steps_around_alerts"
"""The same, one step a bin, for the steps before an alert."""
IN_BINS = (STEPS, STEPS_AROUND)
SEQUENCE = "sequence"
"""The gradient of one recurrent layer along its time steps."""
ALERTS = "alerts"
"""The document of the alerts."""
