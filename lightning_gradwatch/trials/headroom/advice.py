"""What a measured headroom makes of the advice to lower the learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.core.alerts.causes import LOWER_RATE
from lightning_gradwatch.trials.headroom.records import Headroom


def advice(remedies: Sequence[str], headroom: Headroom) -> tuple[str, ...]:
    """Remedies whose guess at a lower rate gives way to what was measured, where that is surely past the edge.

    Room for the next step is no reason to drop the guess: a rate may spoil the weights over several steps.
    """
    others = [remedy for remedy in remedies if remedy != LOWER_RATE]
    if len(others) == len(remedies) or not headroom.is_sure or not 0 < headroom.median < 1:
        return tuple(remedies)
    factor = f"{headroom.median:.2g} times the present one"
    rate = f"{headroom.rates[0] * headroom.median:.2g}" if len(set(headroom.rates)) == 1 else factor
    return f"a learning rate below {rate}, as measured", *others
