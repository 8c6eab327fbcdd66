"""MLflow on SQLite: what its own client finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import MLFlowLogger

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.outputs import page
from tests.outputs.loggers.training import train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(page, "CLOSE_S", 200.0)
    monkeypatch.chdir(tmp_path)
    return MLFlowLogger(
        "experiment", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_location=str(tmp_path / "a")
    )


def arrived(logger: Any, tmp_path: Path) -> dict[str, Path]:
    """The artifacts of the run, downloaded, by their path."""
    client, found = logger.experiment, {}
    for artifact in client.list_artifacts(logger.run_id, "gradwatch"):
        found[artifact.path] = Path(client.download_artifacts(logger.run_id, artifact.path, str(tmp_path)))
    return found


def test_layers_tags_and_artifacts_arrive(logger: Any, tmp_path: Path) -> None:
    train(logger, tmp_path, GradWatch(layer_cards=3))
    run = logger.experiment.get_run(logger.run_id)
    assert {key for key in run.data.metrics if key.startswith("grad_norm/")} == {
        f"grad_norm/net.{place}" for place in (0, 20, 38)
    }
    history = logger.experiment.get_metric_history(logger.run_id, "grad_norm/net.0")
    assert [metric.step for metric in history] == [4, 9, 14, 19, 24, 29]
    assert run.data.tags["gradwatch.open_alerts"] == "vanishing since step 9 in net.0"
    assert run.info.status == "FINISHED"
    found = arrived(logger, tmp_path)
    assert set(found) == {f"gradwatch/{page.NAME}", "gradwatch/alerts.jsonl"}
    (lying,) = (tmp_path / "gradwatch").rglob(page.NAME)
    assert found[f"gradwatch/{page.NAME}"].read_bytes() == lying.read_bytes()
    assert '"vanishing"' in found["gradwatch/alerts.jsonl"].read_text()


def test_artifacts_that_are_refused_cost_one_warning_and_no_number(logger: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("no directory")
    with pytest.warns(GradWatchWarning) as caught:
        train(logger, tmp_path)
    told = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert sum("page in MLFlowLogger 0 cannot be written" in line for line in told) == 1
    assert sum("is left out" in line for line in told) == 1
    assert logger.experiment.get_run(logger.run_id).data.tags["gradwatch.open_alerts"].startswith("vanishing")
    assert len(logger.experiment.get_metric_history(logger.run_id, "gradwatch/vanishing")) == 6
