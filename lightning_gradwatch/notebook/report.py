"""The report of a run as an object: the page in a notebook, or in a file, and the verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from os import PathLike
from pathlib import Path

from lightning_gradwatch.cli.page import build_inline
from lightning_gradwatch.core import telling
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.notebook.opened import open_memory
from lightning_gradwatch.notebook.thumbnail import thumbnail
from lightning_gradwatch.outputs.memory import MemoryRecord
from lightning_gradwatch.reading.tables import STATUSES

MAX_BYTES = 3_900_000
"""Size of the page at most: a notebook keeps it, and with what stands around it, it is to be below 4 MB."""
MAX_ALERTS = 4
"""Alerts that are told in words."""
HEIGHT = 760
NOTHING = "GradWatch has seen no step of a training yet. The report is there once training has begun, on rank zero."


class Report:
    """A run as it stood when the report was made; made by ``watch.report()``.

    In a notebook it shows the page of ``gradwatch report --html``, in a frame of its own that loads nothing from
    elsewhere; ``print`` tells the verdict and the alerts.

    Args:
        memory: The record in memory.
        alerts: The alerts, the oldest first.
    """

    def __init__(self, memory: MemoryRecord, alerts: Sequence[Alert]) -> None:
        self._opened = None if memory.is_empty else open_memory(memory)
        self._alerts = foremost(alerts)
        self._num_alerts = len(alerts)
        self._page: str | None = None

    @property
    def headline(self) -> str:
        """How the run is, in a line."""
        if self._opened is None:
            return NOTHING
        verdict = self._opened.run.verdict
        return f"{STATUSES[verdict.status].upper()}: {verdict.headline}"

    def html(self) -> str:
        """The page, which needs no network; 4 MB at most. Where there is nothing yet, it says so."""
        if self._page is None:
            self._page = f"<p>{NOTHING}</p>" if self._opened is None else build_inline(self._opened, MAX_BYTES)
        return self._page

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the page to a file.

        Args:
            path: The file, such as ``"report.html"``; one that is there is replaced.

        Returns:
            The path.

        Raises:
            ValueError: If it cannot be written.
        """
        try:
            Path(path).write_text(self.html(), encoding="utf-8")
        except OSError as failure:
            rule = f"a file that can be written ({failure.strerror})"
            raise refuse("path", rule, str(path), "give a path in a directory that exists and has room") from None
        return Path(path)

    def __repr__(self) -> str:
        return "\n".join([self.headline, *map(telling.as_text, self._alerts), *self._more()])

    def _repr_html_(self) -> str:
        """The verdict in words, which stay where a frame is not allowed, and the page in a frame."""
        head = f"<p><strong>{escape(self.headline)}</strong></p>"
        if self._opened is None:
            return head
        words = self._words()
        details = f"<details><summary>What, why, and what to try</summary>{words}</details>" if words else ""
        # in an origin of its own, so that the page cannot reach into the notebook
        frame = (
            f'<iframe title="GradWatch" sandbox="allow-scripts allow-downloads" width="100%" height="{HEIGHT}" '
            f'style="border:1px solid #8884;border-radius:6px" srcdoc="{escape(self.html())}"></iframe>'
        )
        return f"<div>{head}{details}{frame}</div>"

    def summary(self) -> str:
        """The verdict in words, and a small heatmap, as HTML."""
        picture = "" if self._opened is None else thumbnail(self._opened)
        return f"<div><p><strong>{escape(self.headline)}</strong></p>{self._words()}{picture}</div>"

    def _words(self) -> str:
        told = [*map(telling.as_html, self._alerts), *(f"<p>{escape(line)}</p>" for line in self._more())]
        return "".join(told)

    def _more(self) -> list[str]:
        rest = self._num_alerts - len(self._alerts)
        return [f"and {rest:,} more in `watch.alerts`"] if rest else []


def foremost(alerts: Sequence[Alert]) -> list[Alert]:
    """The alerts that matter most: open before ended, alerts before notices, then the earliest, or the latest ended."""

    def urgency(alert: Alert) -> tuple[bool, bool, int]:
        until = alert.until_step
        return until is not None, alert.level != "alert", alert.step if until is None else -until

    return sorted(alerts, key=urgency)[:MAX_ALERTS]
