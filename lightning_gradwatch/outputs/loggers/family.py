"""What GradWatch tells a logger besides numbers, which every logger takes by ``log_metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.reading.schema import Array


class Histogram(NamedTuple):
    """How log10|g| is distributed.

    Attributes:
        counts: Shape ``(bins,)``; neither the first nor the last is 0.
        edges: One more than there are bins.
    """

    counts: Array
    edges: Array


class Family(Protocol):
    """One logger of a family. Whatever the family has no place for, it leaves out.

    A call should hand over what it is given and return; it may raise, which costs a warning.

    Attributes:
        logger: Name of Lightning's class for it; classes derived from that count, too.
    """

    logger: ClassVar[str]

    def __init__(self, logger: Any) -> None: ...

    def show_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Show distributions, by their tags."""

    def tell(self, alert: Alert) -> None:
        """Tell of an alert that has opened."""

    def mark(self, open_alerts: str) -> None:
        """Mark the run with the alerts that are open now, in a line; ``"none"`` for none."""

    def show_page(self, page: Path, alerts: Path | None, step: int) -> None:
        """Keep the page of the run, in the place of an older one.

        Args:
            page: An HTML file that loads nothing.
            alerts: ``alerts.jsonl``; None where there is none.
            step: The step at which it was made.
        """
