"""The writers of a run's event files: one for each logger that is TensorBoard's, and for our own record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.tensorboard import Writer


class Writers:
    """Makes each when it is first asked for.

    Args:
        cards: What the standard dashboards show of the layers.
        prefix_of: What a logger puts before the tags of its metrics.
    """

    def __init__(self, cards: Cards, prefix_of: Callable[[object], str]) -> None:
        self._cards = cards
        self._prefix_of = prefix_of
        self._writers: list[tuple[Any, Writer]] = []

    @property
    def directory(self) -> str | None:
        """Where the event file lies that tab and report read: that of the first writer; None if there is none yet."""
        return self._writers[0][1].directory if self._writers else None

    def flushed(self) -> str | None:
        """The same, with all of the file on the disk."""
        if self._writers:
            self._writers[0][1].flush()
        return self.directory

    def of(self, logger: Any) -> Writer:
        """The writer of a logger, which is held, so that no other one can be taken for it."""
        for known, writer in self._writers:
            if known is logger:
                return writer
        writer = Writer(logger.experiment, self._cards, self._prefix_of(logger))
        self._writers.append((logger, writer))
        return writer
