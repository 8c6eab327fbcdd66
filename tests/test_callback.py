"""GradWatch in real Trainers, with its numbers compared with independent ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core.quantities import BY_NAME
from lightning_gradwatch.core.quantities.several import HISTOGRAM, STEPS
from tests.tasks import (
    Classifier,
    Poison,
    Sponge,
    deep_net,
    digits,
    fit,
    norms_by_step,
    quiet_trainer,
    read_events,
    scalars,
    small_net,
)


class Oracle(pl.Callback):
    """Norms by Lightning's own helper and by torch, at the place where GradWatch measures."""

    def __init__(self) -> None:
        self.parameters: list[dict[str, float]] = []
        self.totals: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.parameters.append({k: float(v) for k, v in grad_norm(pl_module, 2).items()})
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.totals.append(torch.nn.utils.get_total_norm(gradients).item())

    def layer(self, name: str) -> list[float]:
        prefix = f"grad_2.0_norm/{name}."
        return [math.hypot(*(v for k, v in step.items() if k.startswith(prefix))) for step in self.parameters]


def run_with_oracle(directory: Path, **options: Any) -> tuple[Oracle, Any]:
    oracle = Oracle()
    pl.seed_everything(1, verbose=False)
    trainer = quiet_trainer(GradWatch(), oracle, directory=directory, **options)
    trainer.fit(Classifier(small_net()), digits())
    return oracle, read_events(directory)


def test_norms_equal_lightnings_and_torchs_own(tmp_path: Path) -> None:
    oracle, events = run_with_oracle(tmp_path, log_every_n_steps=1, max_steps=8)
    assert list(scalars(events, "gradwatch/total_norm").values()) == pytest.approx(oracle.totals, rel=1e-6)
    for layer in ("net.0", "net.2", "net.4"):
        assert list(scalars(events, f"grad_norm/{layer}").values()) == pytest.approx(oracle.layer(layer), rel=1e-6)


def test_the_window_keeps_every_step_between_two_publications(tmp_path: Path) -> None:
    oracle, events = run_with_oracle(tmp_path, log_every_n_steps=5, max_steps=15, accumulate_grad_batches=2)
    windows = [oracle.totals[i : i + 5] for i in (0, 5, 10)]
    expected = {
        "total_norm": [w[-1] for w in windows],
        "total_norm_min": [min(w) for w in windows],
        "total_norm_median": [sorted(w)[2] for w in windows],
        "total_norm_max": [max(w) for w in windows],
    }
    for tag, values in expected.items():
        found = scalars(events, f"gradwatch/{tag}")
        assert list(found) == [4, 9, 14] == list(scalars(events, "loss"))
        assert list(found.values()) == pytest.approx(values, rel=1e-6)


def test_a_run_shorter_than_the_logging_interval_is_published_at_its_end(tmp_path: Path) -> None:
    fit(GradWatch(), directory=tmp_path, max_steps=7)
    assert list(scalars(read_events(tmp_path), "gradwatch/total_norm")) == [6]


def test_layer_tensors_hold_every_layer_and_say_what_they_hold(tmp_path: Path) -> None:
    oracle, events = run_with_oracle(tmp_path, log_every_n_steps=4, max_steps=8)
    tags = [t for t in events.Tags()["tensors"] if t.startswith("gradwatch/layers/")]
    found = {tag.rsplit("/", 1)[1] for tag in tags}
    assert found == {*BY_NAME, STEPS, HISTOGRAM.name} - {"grad_norm", "clipped_fraction", "memory_horizon"}
    metadata = events.SummaryMetadata("gradwatch/layers/grad_norm_steps")
    content = json.loads(metadata.plugin_data.content)
    assert metadata.plugin_data.plugin_name == "gradwatch"
    layers = ["net.0", "net.2", "net.4"]
    about = {"schema": 2, "quantity": STEPS, "optimizer": "", "version": 0, "layers": layers}
    sizes = {"elements": [64 * 64 + 64, 64 * 64 + 64, 64 * 10 + 10]}
    assert content == {**about, **sizes, "lines": ["total_norm", "loss"]}
    # every step, whatever the rhythm of the loggers
    expected = {step: [oracle.layer(name)[step] for name in layers] for step in range(8)}
    assert norms_by_step(events) == {step: pytest.approx(row, rel=2e-3) for step, row in expected.items()}


def test_one_event_file_and_few_charts_for_400_tensors(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(64, 8), *[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(199)])
    fit(GradWatch(), Classifier(nn.Sequential(net, nn.Linear(8, 10))), directory=tmp_path, max_steps=3)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    tags = read_events(tmp_path).Tags()
    assert len([t for t in tags["scalars"] if t.startswith("gradwatch/")]) <= 16
    assert len([t for t in tags["scalars"] if t.startswith("grad_norm/")]) == 8
    assert 0 < len(tags["histograms"]) <= 8  # there is none of gradients that are all zero


def test_histograms_are_of_log10_and_trimmed(tmp_path: Path) -> None:
    fit(GradWatch(histogram_every=4), directory=tmp_path, max_steps=7)
    events = read_events(tmp_path).Histograms("grad_log10/net.0")
    assert [e.step for e in events] == [0, 4]
    histogram = events[0].histogram_value
    assert histogram.bucket[0] > 0
    assert histogram.bucket[-1] > 0
    assert -12 < histogram.min < histogram.max < 2
    assert sum(histogram.bucket) <= (64 * 64 + 64) * (1 + 1e-6)  # added up in float32


def test_layers_come_in_the_order_in_which_they_ran(tmp_path: Path) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.stem = nn.Linear(8, 10), nn.Linear(8, 8), nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(self.body(input=self.stem(x)))
            return output

    watch = GradWatch()
    fit(watch, Classifier(Backwards()), directory=tmp_path)
    assert list(watch.profile) == ["net.stem", "net.body", "net.head"]
    metadata = read_events(tmp_path).SummaryMetadata("gradwatch/layers/grad_norm_steps")
    assert json.loads(metadata.plugin_data.content)["layers"] == ["net.stem", "net.body", "net.head"]


def test_a_sick_network_alerts_before_step_15_and_its_cured_twin_never(tmp_path: Path) -> None:
    sick, cured = GradWatch(), GradWatch()
    with pytest.warns(GradWatchWarning, match="Gradients vanish with depth"):
        trainer = fit(sick, Classifier(deep_net(nn.Sigmoid)), directory=tmp_path, max_steps=60)
    (alert,) = sick.alerts
    assert (alert.kind, alert.level, alert.layer, alert.until_step) == ("vanishing", "alert", "net.0", None)
    assert alert.step < 15
    assert alert.value > 8 > alert.threshold == 2.0
    assert alert.remedies
    assert trainer.callback_metrics["gradwatch/vanishing"] == 1.0
    assert trainer.callback_metrics["gradwatch/alerts"] == 1.0
    (line,) = (tmp_path / "alerts.jsonl").read_text().splitlines()
    assert {k: v for k, v in json.loads(line).items() if k in ("event", "kind", "step")} == {
        "event": "opened",
        "kind": "vanishing",
        "step": alert.step,
    }
    trainer = fit(cured, Classifier(deep_net(nn.ReLU, he_init=True)), max_steps=60)
    assert cured.alerts == []
    assert trainer.callback_metrics["gradwatch/vanishing"] < 0.4


def test_a_notice_is_kept_without_a_warning_and_its_rise_replaces_it(tmp_path: Path) -> None:
    from benchmarks.zoo import CASES

    watch, case = GradWatch(), CASES["lstm_default_recall_T100"]
    pl.seed_everything(0, verbose=False)
    task = case.build()
    trainer = quiet_trainer(watch, directory=tmp_path, max_steps=100)
    with pytest.warns(GradWatchWarning, match="Gradients vanish through time in net.*of 10[0-9] time steps") as caught:
        trainer.fit(task.module, task.data)
    (alert,) = watch.alerts
    assert (alert.kind, alert.level, alert.cause) == ("vanishing_through_time", "alert", "recurrence")
    assert len([w for w in caught if w.category is GradWatchWarning]) == 1
    events = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [(e["event"], e["level"]) for e in events] == [("opened", "notice"), ("escalated", "alert")]
    assert events[0]["step"] == events[1]["step"] == alert.step < 40
    assert trainer.callback_metrics["gradwatch/alerts"] == 1.0


class Cured(pl.Callback):
    """Re-initialises the network in the middle of the run."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 30:
            pl_module.net.load_state_dict(deep_net(nn.ReLU, he_init=True).state_dict())


def test_an_alert_ends_when_the_network_is_cured(tmp_path: Path) -> None:
    watch = GradWatch(sample_every_n_steps=2)
    pl.seed_everything(1, verbose=False)
    trainer = quiet_trainer(watch, Cured(), directory=tmp_path, max_steps=60)
    with pytest.warns(GradWatchWarning):
        trainer.fit(Classifier(deep_net(nn.ReLU), lr=0.01), digits())
    (alert,) = watch.alerts
    assert alert.step == 9
    assert alert.until_step is not None
    assert 30 < alert.until_step < 45
    events = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["opened", "ended"]
    assert trainer.callback_metrics["gradwatch/alerts"] == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nonfinite_gradient_between_samples_is_named_with_its_step_and_layer(tmp_path: Path, value: float) -> None:
    watch = GradWatch(dense_steps=0)
    trainer = quiet_trainer(watch, Poison(13, value=value), Sponge(), directory=tmp_path, max_steps=60)
    with pytest.warns(GradWatchWarning, match="NaN or infinite values since step 13, in net.2"):
        trainer.fit(Classifier(small_net()), digits())
    (alert,) = watch.alerts
    assert (alert.kind, alert.step, alert.until_step, alert.layer) == ("nonfinite", 13, 13, "net.2")
    assert scalars(read_events(tmp_path), "gradwatch/nonfinite_steps")[59] == 1.0


def test_early_stopping_and_checkpoints_can_monitor_the_score(tmp_path: Path) -> None:
    stop = EarlyStopping(
        monitor="gradwatch/vanishing", stopping_threshold=-0.1, divergence_threshold=0.5, mode="min", patience=99,
        check_on_train_epoch_end=True,
    )  # fmt: skip
    save = ModelCheckpoint(tmp_path, monitor="gradwatch/alerts", save_on_train_epoch_end=True)
    watch = GradWatch()
    trainer = quiet_trainer(watch, stop, save, max_epochs=9, max_steps=-1, enable_checkpointing=True)
    with pytest.warns(GradWatchWarning):
        trainer.fit(Classifier(deep_net()), digits())
    assert trainer.current_epoch == 1
    assert save.best_model_score == 1.0


def test_scores_can_be_monitored_before_the_first_step() -> None:
    seen: list[set[str]] = []

    class Early(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(set(trainer.callback_metrics))

    quiet_trainer(GradWatch(), Early(), max_steps=1).fit(Classifier(small_net()), digits())
    assert {"gradwatch/vanishing", "gradwatch/alerts"} <= seen[0]


def test_every_logger_gets_the_run_level_numbers(tmp_path: Path) -> None:
    loggers = [
        CSVLogger(tmp_path / "csv", name="", version=""),
        TensorBoardLogger(tmp_path / "tb", name="", version=""),
    ]
    fit(GradWatch(), logger=loggers, log_every_n_steps=5)
    header, *rows = (tmp_path / "csv/metrics.csv").read_text().splitlines()
    assert {"gradwatch/total_norm", "gradwatch/vanishing", "gradwatch/alerts"} <= set(header.split(","))
    assert "grad_norm/net.0" not in header
    assert len(rows) == 4  # Lightning's and ours, at steps 4 and 9
    assert list(scalars(read_events(tmp_path / "tb"), "gradwatch/total_norm")) == [4, 9]


def test_without_a_logger_it_still_watches_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    watch = GradWatch()
    with pytest.warns(GradWatchWarning):
        trainer = fit(watch, Classifier(deep_net()), max_steps=20)
    assert [a.kind for a in watch.alerts] == ["vanishing"]
    assert trainer.callback_metrics["gradwatch/alerts"] == 1.0
    assert list(tmp_path.iterdir()) == []


def test_selection_reports_what_was_asked_for_and_totals_everything(tmp_path: Path) -> None:
    oracle = Oracle()
    pl.seed_everything(1, verbose=False)
    trainer = quiet_trainer(GradWatch(include="net.*", exclude=["*.2"]), oracle, directory=tmp_path)
    trainer.fit(Classifier(small_net()), digits())
    events = read_events(tmp_path)
    assert sorted(t for t in events.Tags()["scalars"] if t.startswith("grad_norm/")) == [
        "grad_norm/net.0",
        "grad_norm/net.4",
    ]
    assert scalars(events, "gradwatch/total_norm")[9] == pytest.approx(oracle.totals[-1], rel=1e-6)


def test_group_by_names_the_rows(tmp_path: Path) -> None:
    fit(GradWatch(group_by=1), directory=tmp_path)
    assert [t for t in read_events(tmp_path).Tags()["scalars"] if t.startswith("grad_norm")] == ["grad_norm/net"]
