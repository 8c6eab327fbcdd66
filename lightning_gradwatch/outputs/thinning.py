"""What is written whenever it comes while a run is young, and ever less often later."""

from __future__ import annotations

from lightning_gradwatch.core.sampling import YOUNG_STEPS

GROWTH = 0.02
"""Steps from one to the next in a run that is no longer young, as a part of the steps so far."""
BYTES_PER_STEP, BYTES_PER_STEP_YOUNG = 100, 20_000
"""What may be spent on a step on average."""


class Thinning:
    """Lets through what comes far enough behind what it let through before: of ten million steps about 600."""

    def __init__(self) -> None:
        self._next = 0.0

    def passes(self, step: int, num_bytes: int = 0) -> bool:
        """Whether to write what has come at a step.

        Args:
            step: The step; from call to call they rise.
            num_bytes: How much it is.
        """
        if step < self._next:
            return False
        is_young = step < YOUNG_STEPS
        growth, budget = (0.0, BYTES_PER_STEP_YOUNG) if is_young else (GROWTH, BYTES_PER_STEP)
        self._next = step + max(growth * step, num_bytes / budget)
        return True
