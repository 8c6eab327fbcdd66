"""Trackio: histograms, alerts as its own alerts, the page as a panel and as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.loggers.family import Histogram


class Trackio:
    """A ``TrackioLogger``. Lightning has none; a user writes it, with what ``trackio.init`` gave as ``experiment``."""

    logger: ClassVar[str] = "TrackioLogger"

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def show_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """As ``trackio.Histogram``."""
        import trackio

        values = {tag: trackio.Histogram(np_histogram=tuple(one)) for tag, one in histograms.items()}
        self._logger.experiment.log(values, step=step)

    def tell(self, alert: Alert) -> None:
        """As an alert of the run, which goes to a webhook if the user has set one."""
        self._logger.experiment.alert(title=f"GradWatch: {alert.kind}", text=alert.message, step=alert.step)

    def mark(self, open_alerts: str) -> None:
        """Trackio has no place for what may change."""

    def show_page(self, page: Path, alerts: Path | None, step: int) -> None:
        """As ``trackio.Html`` and, with the file of alerts, as a version of an artifact."""
        import trackio

        run = self._logger.experiment
        run.log({metrics.PAGE: trackio.Html(page, inject=False)}, step=step)
        artifact = trackio.Artifact(f"run-{run.id}-gradwatch", type="gradwatch")
        for path in filter(None, (page, alerts)):
            artifact.add_file(path)
        run.log_artifact(artifact)
