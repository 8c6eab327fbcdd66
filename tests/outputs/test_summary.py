"""What is said at the end of a run, and beside the progress bar."""

from __future__ import annotations

import importlib
import math
import random
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
    return re.sub(r"added \d+\.\d% to (.*?steps\.).*", r"added N% to \1", text)


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


def test_a_dear_watch_says_what_helps_and_notices_are_no_silence() -> None:
    noticed = [alert(9, 40, kind="stalled", level="notice")]
    assert summarise(RunSummary({"": 2}, cost_percent=23.0), 50, noticed, 0, None).splitlines() == [
        "GradWatch watched 2 layers for 50 steps.",
        "  No alerts; notices, worth knowing: stalled.",
        "  Watching added 23.0% to the time of the last steps. That much only where steps are short; max_overhead=0.05 "
        "takes fewer samples.",
    ]


def clipping_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "auto_clip held" in r.getMessage()]


def test_after_a_thousand_steps_it_is_said_once_what_clipping_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(GradWatch(auto_clip=1e-3, max_overhead=0.01), max_steps=1150, log_every_n_steps=50)
    assert clipping_lines(caplog) == ["GradWatch: auto_clip held 1,000 of the first 1,000 steps."]


class Spiky(Classifier):  # type: ignore[misc, valid-type]
    """The weights of the batches scatter, and every thirteenth weighs a hundred times as much."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        weight = math.exp(0.3 * random.Random(self.global_step).gauss(0, 1))
        return weight * (100.0 if self.global_step % 13 == 12 else 1.0) * super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("num_steps", "counted"), [(1100, "1,000"), (400, "400")])
def test_a_run_that_the_default_clips_often_is_called_too_fast_once_or_at_its_end(
    num_steps: int, counted: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = GradWatch(auto_clip=True, max_overhead=0.01, on_alert={"exploding": lambda *_: None})
    with caplog.at_level("INFO"), pytest.warns(GradWatchWarning) as heard:
        fit(watch, Spiky(small_net(), lr=1e-9), max_steps=num_steps, log_every_n_steps=50)
    lines = [str(w.message) for w in heard if "auto_clip held" in str(w.message)]
    assert len(lines) == 1
    assert re.fullmatch(
        rf"GradWatch: auto_clip held \d+ of the first {counted} steps\. .* probably too high, .*", lines[0]
    )
    assert clipping_lines(caplog) == []


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
