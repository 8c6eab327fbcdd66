"""The record: what tab and report show, for whoever has no TensorBoardLogger."""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.outputs import record as record_module
from tests.cli.command import here
from tests.tasks import Classifier, deep_net, digits, fit, quiet_trainer, read_events, scalars


class Nowhere(Logger):
    """A logger that keeps its numbers somewhere else, as those of services do."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[dict[str, Any]] = []

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.numbers.append(metrics)

    def log_hyperparams(self, *arguments: Any, **more: Any) -> None:
        """Nothing."""


def train(directory: Path, logger: Any, watch: GradWatch | None = None, **options: Any) -> list[str]:
    """Train a network that is sick; what the console was told."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = {"max_steps": 12, "log_every_n_steps": 4, "default_root_dir": directory, **options}
        fit(watch or GradWatch(), Classifier(deep_net(nn.Sigmoid, 8)), logger=logger, **settings)
    return [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)]


def reported(directory: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The runs that `gradwatch report` finds."""
    _, shown, _ = here(capsys, "report", directory, "--json")
    runs: list[dict[str, Any]] = json.loads(shown)["runs"]
    return runs


def events_below(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*tfevents*"))


def test_without_tensorboard_s_logger_there_is_a_record_beside_the_logger_s_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, CSVLogger(tmp_path, "logs", "run"))
    (run,) = reported(tmp_path, capsys)
    assert [alert["kind"] for alert in run["alerts"]] == ["vanishing"]
    assert len(run["optimizers"][0]["versions"][-1]["layers"]) == 8
    (event_file,) = events_below(tmp_path)
    assert event_file.parent == tmp_path / "logs" / "run"
    assert "gradwatch/vanishing" in (event_file.parent / "metrics.csv").read_text()  # and the logger has its numbers


@pytest.mark.parametrize("is_first", [True, False])
def test_with_several_loggers_all_of_ours_lies_with_tensorboard_s(
    is_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers: list[Any] = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    train(tmp_path, loggers[::-1] if is_first else loggers)
    (run,) = reported(tmp_path, capsys)
    assert run["run"].startswith("board")
    assert len(events_below(tmp_path)) == 1
    (alerts,) = tmp_path.rglob("alerts.jsonl")
    assert alerts.parent == events_below(tmp_path)[0].parent


def test_a_logger_without_a_directory_gets_one_below_the_trainer_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = Nowhere()
    train(tmp_path, logger)
    assert any("gradwatch/vanishing" in numbers for numbers in logger.numbers)
    (run,) = reported(tmp_path, capsys)
    assert [alert["kind"] for alert in run["alerts"]] == ["vanishing"]
    (event_file,) = events_below(tmp_path)
    assert event_file.parent.parent == tmp_path / "gradwatch"
    assert (event_file.parent / "alerts.jsonl").exists()


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": 3}])
def test_without_a_logger_nothing_is_written(options: dict[str, Any], tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path) if options else False
    train(tmp_path, logger, **options)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("logger", ["none", "csv", "tensorboard"])
def test_a_directory_of_one_s_own_has_it_with_any_logger(
    logger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = {"none": False, "csv": CSVLogger(tmp_path / "logs"), "tensorboard": TensorBoardLogger(tmp_path / "logs")}
    train(tmp_path, loggers[logger], GradWatch(record=tmp_path / "mine"))
    (run,) = reported(tmp_path / "mine", capsys)
    assert [alert["kind"] for alert in run["alerts"]] == ["vanishing"]
    assert run["optimizers"][0]["versions"][-1]["num_samples"] == 12
    assert (tmp_path / "mine" / "alerts.jsonl").exists() is (logger == "none")


def test_without_a_record_loggers_have_the_run_level_numbers_alone(tmp_path: Path) -> None:
    train(tmp_path, TensorBoardLogger(tmp_path, "logs", "run"), GradWatch(record=False))
    tags = read_events(tmp_path / "logs" / "run").Tags()
    assert "gradwatch/vanishing" in tags["scalars"]
    assert not [tag for tag in tags["tensors"] if tag.startswith("gradwatch")]
    train(tmp_path, CSVLogger(tmp_path, "csv"), GradWatch(record=False))
    assert len(events_below(tmp_path)) == 1


def test_a_resumed_run_goes_on_in_the_same_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"enable_checkpointing": True, "log_every_n_steps": 2}
    train(tmp_path, CSVLogger(tmp_path, "logs", "run"), max_steps=12, **options)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    time.sleep(1.1)  # TensorBoard reads files in the order of the seconds in their names
    trainer = quiet_trainer(
        GradWatch(), logger=CSVLogger(tmp_path, "logs", "run"), max_steps=20, default_root_dir=tmp_path, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Classifier(deep_net(nn.Sigmoid, 8)), digits(), ckpt_path=checkpoint)
    (run,) = reported(tmp_path, capsys)
    version = run["optimizers"][0]["versions"][-1]
    assert (version["first_step"], version["last_step"], version["num_samples"]) == (0, 19, 20)
    assert [alert["kind"] for alert in run["alerts"]] == ["vanishing"]


def test_a_record_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file, where a directory is wanted")
    watch = GradWatch(record=tmp_path / "mine")
    told = train(tmp_path, False, watch)
    assert len([line for line in told if "the record cannot be written" in line]) == 1
    assert [alert.kind for alert in watch.alerts] == ["vanishing"]


_NOT_KEPT = "nothing of this run is kept on disk"


@pytest.mark.parametrize(
    ("logger", "options", "arguments", "is_said"),
    [
        (False, {}, {}, True),
        (False, {"fast_dev_run": 3}, {}, False),
        (False, {}, {"record": False}, False),
        (False, {}, {"record": "mine"}, False),
        (Nowhere(), {}, {}, False),
    ],
    ids=["no logger", "rehearsal", "not wanted", "record", "spare directory"],
)
def test_a_run_of_which_nothing_is_kept_is_told_so_at_its_beginning(
    logger: Any,
    options: dict[str, Any],
    arguments: dict[str, Any],
    is_said: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        train(tmp_path, logger, GradWatch(**arguments), **options)
    assert caplog.text.count(_NOT_KEPT) == is_said
    assert not is_said or events_below(tmp_path) == []


def test_a_record_in_the_directory_of_an_earlier_run_is_told_of(tmp_path: Path) -> None:
    def shared(told: list[str]) -> int:
        return sum("holds an earlier run" in line for line in told)

    options: dict[str, Any] = {"enable_checkpointing": True}
    assert shared(train(tmp_path, False, GradWatch(record=tmp_path / "mine"), **options)) == 0
    assert shared(train(tmp_path, False, GradWatch(record=tmp_path / "mine"))) == 1
    assert shared(train(tmp_path, False, GradWatch(record=tmp_path / "other"))) == 0
    # a run that goes on belongs there
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    watch = GradWatch(record=tmp_path / "mine")
    trainer = quiet_trainer(watch, logger=False, max_steps=20, default_root_dir=tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Classifier(deep_net(nn.Sigmoid, 8)), digits(), ckpt_path=checkpoint)
    assert shared([str(w.message) for w in caught]) == 0


def test_the_event_file_is_closed_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = record_module.Record.__init__

    def noted(record: Any, *arguments: Any) -> None:
        made.append(record)
        make(record, *arguments)

    monkeypatch.setattr(record_module.Record, "__init__", noted)
    train(tmp_path, CSVLogger(tmp_path))
    (record,) = made
    assert record.experiment.all_writers is None  # so torch says of one that is closed
    assert scalars(read_events(Path(record.directory)), "gradwatch/vanishing")


@pytest.mark.parametrize("record", [True, 3, "", b"run", Path("s3://bucket/run")], ids=str)
def test_what_is_no_directory_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match="`record` must be a directory, its URL, None or False"):
        GradWatch(record=record)


def test_a_path_is_taken_as_text_that_a_pickle_can_take_along(tmp_path: Path) -> None:
    assert GradWatch(record=tmp_path).config.record == os.fspath(tmp_path)
