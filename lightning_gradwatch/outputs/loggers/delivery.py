"""What is delivered to the loggers of a run besides run-level numbers: layers, alerts and the page."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradwatch.core.histogram import EDGES
from lightning_gradwatch.core.records import Alert, Publication
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.outputs import alerts_file
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.loggers import Family, family_of
from lightning_gradwatch.outputs.loggers.family import Histogram
from lightning_gradwatch.outputs.page import PageMaker
from lightning_gradwatch.reading.schema import Array

PAUSE_STEPS, PAUSE_GROWTH = 500, 0.5
"""Steps at least between two pages; and, where that is more, this part of the steps so far."""
_MAX_NAMED = 5
_PAGE = "page of the run"
Attempt = Callable[[str, Callable[[], object]], None]


class Delivery:
    """Delivers to the loggers of one run, each by its own family; the others get nothing from here.

    Args:
        attempt: Does something under a name; if it fails it warns, and leaves out that name from then on.
        cards: What loggers show of the layers.
        log_dir: Where the file of alerts lies; None if there is none.
        directory: Brings the event file to the disk and says where it lies; None if there is none.
    """

    def __init__(
        self, attempt: Attempt, cards: Cards, log_dir: str | None, directory: Callable[[], str | None]
    ) -> None:
        self._attempt = attempt
        self._cards = cards
        self._alerts_path = None if log_dir is None else Path(log_dir) / alerts_file.NAME
        self._directory = directory
        self._families: list[tuple[str, Any, Family]] = []
        self._marked = ""
        self._open_alerts = ""
        self._maker: PageMaker | None = None
        self._is_stale = False
        self._next_page = 0
        self._step = 0

    def join(self, loggers: Iterable[tuple[str, Any]]) -> None:
        """Take note of the loggers of the run, by their names; called again it knows them."""
        for name, logger in loggers:
            if not any(known is logger for _, known, _ in self._families):
                family = family_of(logger)
                self._families += [] if family is None else [(name, logger, family)]

    def norms(self, logger: object, publication: Publication) -> dict[str, float]:
        """Norms of layers that a logger gets with the run-level numbers, by their tags."""
        is_known = any(known is logger for _, known, _ in self._families)
        return self._cards.norms(publication) if is_known else {}

    def show_histograms(self, snapshot: Snapshot) -> None:
        """Deliver the distributions of a sample, if it has any."""
        if self._families:
            found = self._cards.histograms(snapshot).items()
            histograms = {tag: _trimmed(counts) for tag, counts in found if counts.any()}
            if histograms:
                self._each("histograms", lambda family: family.show_histograms(histograms, snapshot.step))

    def tell(self, opened: Iterable[Alert], alerts: Sequence[Alert]) -> None:
        """Deliver alerts.

        Args:
            opened: Those that are to be told of one by one.
            alerts: All of them, the oldest first.
        """
        for alert in opened:
            self._is_stale = True
            self._each("alerts", functools.partial(_tell, alert=alert))
        self._open_alerts = in_a_line(alerts)

    def go_on(self, step: int) -> None:
        """Whenever loggers get numbers: mark the run, deliver a page that has been made, and begin one if need be."""
        self._step = step
        self._mark()
        if self._maker is not None:
            self._attempt(_PAGE, functools.partial(self._deliver, self._maker.take))
        if self._families and self._is_stale and step >= self._next_page:
            self._is_stale = False
            self._next_page = step + max(PAUSE_STEPS, int(PAUSE_GROWTH * step))
            self._attempt(_PAGE, self._begin)

    def finish(self) -> None:
        """Deliver the last page; waits for it, but not for ever."""
        self._mark()
        if self._families:
            self._attempt(_PAGE, self._deliver_last)

    def close(self) -> None:
        """Leave nothing behind that runs."""
        if self._maker is not None:
            self._maker.close()

    def _mark(self) -> None:
        """Once for each state: alerts may come and go at every step."""
        if self._open_alerts != self._marked:
            self._marked = line = self._open_alerts
            self._each("mark of open alerts", lambda family: family.mark(line))

    def _begin(self) -> None:
        maker = self._prepared()
        if maker is not None:
            maker.begin()

    def _deliver_last(self) -> None:
        maker = self._prepared()
        if maker is not None:
            self._deliver(maker.last)

    def _deliver(self, take: Callable[[], Path | None]) -> None:
        page = take()
        if page is not None:
            alerts = self._alerts_path if self._alerts_path is not None and self._alerts_path.is_file() else None
            self._each("page", lambda family: family.show_page(page, alerts, self._step))

    def _prepared(self) -> PageMaker | None:
        """Who makes the page, of all that is known by now; None where no event file lies on this machine."""
        directory = self._directory()
        if self._maker is None and directory is not None and os.path.isdir(directory):
            self._maker = PageMaker(directory)
        return self._maker

    def _each(self, what: str, deliver: Callable[[Family], None]) -> None:
        """One that fails is left out, with this only."""
        for name, _, family in self._families:
            self._attempt(f"{what} in {name}", functools.partial(deliver, family))


def in_a_line(alerts: Iterable[Alert]) -> str:
    """The alerts that are open, the oldest first; ``"none"`` for none."""
    open_ones = [alert for alert in alerts if alert.until_step is None and alert.level == "alert"]
    said = [f"{a.kind} since step {a.step}{f' in {a.layer[:100]}' if a.layer else ''}" for a in open_ones[:_MAX_NAMED]]
    more = len(open_ones) - len(said)
    return "; ".join([*said, *([f"{more} more"] if more else [])]) or "none"


def _tell(family: Family, alert: Alert) -> None:
    family.tell(alert)


def _trimmed(counts: Array) -> Histogram:
    """A histogram without its empty ends."""
    (filled,) = counts.nonzero()
    first, end = int(filled[0]), int(filled[-1]) + 1
    return Histogram(counts[first:end], np.array(EDGES[first : end + 1]))
