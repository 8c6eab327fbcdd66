"""The kinds of alerts, one file each: what is wrong, by which rule, in which words, and why.

A new kind is a file here that declares a ``Kind``, and a line in ``ALERTS``.
"""

from __future__ import annotations

from lightning_gradwatch.core.alerts.dead import DEAD
from lightning_gradwatch.core.alerts.detached import DETACHED
from lightning_gradwatch.core.alerts.exploding import EXPLODING
from lightning_gradwatch.core.alerts.kind import Kind
from lightning_gradwatch.core.alerts.nonfinite import NONFINITE
from lightning_gradwatch.core.alerts.stalled import STALLED
from lightning_gradwatch.core.alerts.underflow import UNDERFLOW
from lightning_gradwatch.core.alerts.vanishing import VANISHING
from lightning_gradwatch.core.alerts.vanishing_through_time import VANISHING_THROUGH_TIME

__all__ = ["ALERTS", "KINDS", "Kind"]

ALERTS: tuple[Kind, ...] = (
    NONFINITE,
    VANISHING,
    VANISHING_THROUGH_TIME,
    UNDERFLOW,
    DETACHED,
    DEAD,
    STALLED,
    EXPLODING,
)
"""In the order in which they are judged: a rule sees in ``History.open`` what those before it have found."""
KINDS = {kind.name: kind for kind in ALERTS}
"""The same by name."""
