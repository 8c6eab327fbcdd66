"""What is said at the end of a run, and beside the progress bar."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.outputs.summary import RunSummary, summarise
from tests.builders import alert
from tests.tasks import Classifier, deep_net, digits, fit, make_classifier_class, small_net


def said(caplog: pytest.LogCaptureFixture) -> str:
    (text,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("GradWatch watched")]
    return re.sub(r"added \d+\.\d% to", "added N% to", text)


def test_a_healthy_run_is_summed_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(GradWatch(), directory=tmp_path, max_steps=30)
    assert said(caplog) == (
        "GradWatch watched 3 layers for 30 steps.\n  No alerts.\n  Watching added N% to the time of the last steps.\n"
        f"  See flight-29.jsonl.gz in {tmp_path}/."
    )


def test_a_sick_run_is_summed_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), pytest.warns(GradWatchWarning):
        fit(GradWatch(auto_clip=1e-3), Classifier(deep_net()), directory=tmp_path, max_steps=30)
    assert said(caplog).splitlines()[1:] == [
        "  Alerts: 1; still open: vanishing since step 9.",
        "  Clipped the gradient in 100.0% of 30 steps.",
        "  Watching added N% to the time of the last steps.",
        f"  See alerts.jsonl, flight-9.jsonl.gz, flight-29.jsonl.gz in {tmp_path}/.",
        f"  Causes, remedies and pictures: gradwatch report {tmp_path}/",
    ]


class Failing(pl.Callback):
    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 12:
            raise KeyError("the training's own")


def test_a_run_that_breaks_off_is_summed_up(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), pytest.raises(KeyError):
        fit(GradWatch(), callbacks=(Failing(),), max_steps=30)
    assert said(caplog).splitlines() == [
        "GradWatch watched 3 layers for 12 steps.",
        "  No alerts.",
        "  Watching added N% to the time of the last steps.",
    ]


def test_alerts_are_counted_by_kind_and_the_cost_is_told_where_it_is_known() -> None:
    of_kinds = [("nonfinite", 3, 4), ("vanishing", 9, None), ("nonfinite", 30, 30), ("dead", 31, 40)]
    alerts = [alert(step, until, kind=kind) for kind, step, until in of_kinds]
    summary = RunSummary({"": 7}, cost_percent=0.84)
    assert summarise(summary, 1200, alerts, 4, None).splitlines() == [
        "GradWatch watched 7 layers for 1,200 steps.",
        "  Alerts: 4; still open: vanishing since step 9; over: nonfinite (2 times), dead (steps 31 to 40).",
        "  Watching added 0.8% to the time of the last steps.",
    ]


@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_the_progress_bar_shows_a_vanishing_gradient_while_it_matters(
    namespace: str, bar: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown: dict[str, list[bool]] = {}
    namespaced: Any = importlib.import_module(namespace)
    for name, net in (("sick", deep_net()), ("healthy", small_net())):
        progress = getattr(importlib.import_module(f"{namespace}.callbacks"), bar)(refresh_rate=1)
        trainer = namespaced.Trainer(
            callbacks=[GradWatch(progress_bar=True), progress], max_steps=20, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        model = make_classifier_class(namespaced)(net)
        if name == "sick":
            with pytest.warns(GradWatchWarning):
                trainer.fit(model, digits())
        else:
            trainer.fit(model, digits())
        printed = "".join(capfd.readouterr()).replace("=", ": ")
        shown[name] = ["vanishing" in trainer.progress_bar_metrics, "vanishing: 1.00" in printed]
    assert shown == {"sick": [True, True], "healthy": [False, False]}
