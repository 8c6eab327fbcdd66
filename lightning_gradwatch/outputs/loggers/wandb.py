"""Weights & Biases: histograms, alerts as its own alerts, the page as a panel and as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.loggers.family import Histogram

_MAX_TITLE = 63


class WandB:
    """A ``WandbLogger``. Its run uploads from a process of its own."""

    logger: ClassVar[str] = "WandbLogger"

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def show_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """As ``wandb.Histogram``."""
        import wandb

        self._log({tag: wandb.Histogram(np_histogram=tuple(one)) for tag, one in histograms.items()}, step)

    def tell(self, alert: Alert) -> None:
        """By ``run.alert``, which mails or goes to Slack as the user has set it there."""
        title = f"GradWatch: {alert.kind} since step {alert.step}"[:_MAX_TITLE]
        self._logger.experiment.alert(title=title, text=alert.message, level="WARN")

    def mark(self, open_alerts: str) -> None:
        """In the summary of the run, by which runs can be filtered."""
        self._logger.experiment.summary[metrics.OPEN_ALERTS] = open_alerts

    def show_page(self, page: Path, alerts: Path | None, step: int) -> None:
        """As ``wandb.Html`` and, with the file of alerts, as a version of an artifact."""
        import wandb

        with page.open(encoding="utf-8") as file:
            self._log({metrics.PAGE: wandb.Html(file, inject=False)}, step)
        run = self._logger.experiment
        artifact = wandb.Artifact(f"run-{run.id}-gradwatch", type="gradwatch")
        for path in filter(None, (page, alerts)):
            artifact.add_file(str(path))
        run.log_artifact(artifact)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """On the x-axis of Lightning's logger, which passes on what it does not know."""
        self._logger.log_metrics(values, step)
