"""Comet: histograms, alerts as text, open alerts among the run's other facts, the page as HTML and as an asset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.loggers.family import Histogram


class Comet:
    """A ``CometLogger``. Its experiment uploads from a thread of its own."""

    logger: ClassVar[str] = "CometLogger"

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def show_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """In the tab of histograms."""
        import comet_ml

        for tag, one in histograms.items():
            histogram = comet_ml.Histogram()
            middles = (one.edges[:-1] + one.edges[1:]) / 2
            histogram.add(middles.tolist(), counts=one.counts.tolist())
            self._logger.experiment.log_histogram_3d(histogram, name=tag, step=step)

    def tell(self, alert: Alert) -> None:
        """In the tab of texts."""
        about = {"kind": alert.kind, "layer": alert.layer, "cause": alert.cause}
        self._logger.experiment.log_text(f"GradWatch: {alert.message}", step=alert.step, metadata=about)

    def mark(self, open_alerts: str) -> None:
        """Among the other facts of the run, by which runs can be filtered."""
        self._logger.experiment.log_other(metrics.OPEN_ALERTS, open_alerts)

    def show_page(self, page: Path, alerts: Path | None, step: int) -> None:
        """In the tab of HTML and, with the file of alerts, among the assets."""
        experiment = self._logger.experiment
        experiment.log_html(page.read_text(encoding="utf-8"), clear=True)
        for path in filter(None, (page, alerts)):
            experiment.log_asset(str(path), file_name=path.name, overwrite=True, step=step)
