"""Two families at once: one record, one page, and each is told everything once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.outputs import page
from tests.outputs.loggers.packages.test_mlflow import arrived
from tests.outputs.loggers.packages.test_wandb import Arrived
from tests.outputs.loggers.training import train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
POINTS = [4, 9, 14, 19, 24, 29]


@pytest.fixture
def loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(page, "CLOSE_S", 200.0)
    monkeypatch.chdir(tmp_path)
    store: dict[str, Any] = {
        "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
        "artifact_location": str(tmp_path / "artifacts"),
    }
    return WandbLogger(project="project", save_dir=tmp_path / "wandb"), MLFlowLogger("experiment", **store)


def test_two_families_share_a_record_and_a_page(loggers: tuple[Any, Any], tmp_path: Path) -> None:
    _, other = loggers
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(list(loggers), tmp_path, GradWatch(layer_cards=3))
    # on the console once, whoever else was told
    told = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert [line.split(":")[0] for line in told] == ["GradWatch, vanishing"], told
    # one record, and one page beside it
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    (made,) = (path for path in tmp_path.rglob(page.NAME) if path.parent == events.parent)
    # W&B: one alert, the marks, the page
    sent = Arrived(tmp_path / "wandb")
    assert sum(record.HasField("alert") for record in sent.records) == 1
    assert sent.summary("gradwatch/open_alerts") == ["none", "vanishing since step 9 in net.0"]
    assert [step for step, _ in sent.values("grad_norm/net.0")] == POINTS
    _, panel = sent.values("gradwatch/page")[-1]
    assert (sent.files / panel["path"]).read_bytes() == made.read_bytes()
    # MLflow: the same numbers once, the mark, the same page
    run = other.experiment.get_run(other.run_id)
    for key in ("grad_norm/net.0", "gradwatch/vanishing"):
        assert [metric.step for metric in other.experiment.get_metric_history(other.run_id, key)] == POINTS
    assert run.data.tags["gradwatch.open_alerts"] == "vanishing since step 9 in net.0"
    found = arrived(other, tmp_path / "downloaded")
    assert set(found) == {f"gradwatch/{page.NAME}", "gradwatch/alerts.jsonl"}
    assert found[f"gradwatch/{page.NAME}"].read_bytes() == made.read_bytes()


def test_one_that_fails_costs_the_other_nothing(
    loggers: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "artifacts").write_text("no directory")
    with pytest.warns(GradWatchWarning) as caught:
        train(list(loggers), tmp_path)
    told = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert sum("page in MLFlowLogger 1 cannot be written" in line for line in told) == 1
    assert not [line for line in told if "WandbLogger" in line]
    assert Arrived(tmp_path / "wandb").values("gradwatch/page")
