"""MLflow: the page and ``alerts.jsonl`` as artifacts, a tag for open alerts. It has neither alerts nor histograms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.loggers.family import Histogram

TAG = "gradwatch.open_alerts"
DIRECTORY = "gradwatch"
"""Of the artifacts."""


class MLflow:
    """An ``MLFlowLogger``. Its client waits for the server, as it does with every metric."""

    logger: ClassVar[str] = "MLFlowLogger"

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def show_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """MLflow has no place for them."""

    def tell(self, alert: Alert) -> None:
        """MLflow has no alerts: see the tag."""

    def mark(self, open_alerts: str) -> None:
        """As a tag of the run, by which runs can be searched."""
        self._logger.experiment.set_tag(self._logger.run_id, TAG, open_alerts)

    def show_page(self, page: Path, alerts: Path | None, step: int) -> None:
        """As artifacts, which MLflow shows in a frame."""
        for path in filter(None, (page, alerts)):
            self._logger.experiment.log_artifact(self._logger.run_id, str(path), DIRECTORY)
