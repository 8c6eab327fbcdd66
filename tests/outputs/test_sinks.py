"""Alerts in great number: bounded files, bounded memory, few words."""

from __future__ import annotations

import gc
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.alert_log import MAX_ALERTS, AlertLog
from lightning_gradwatch.core.metrics import ALERT_DOCUMENT
from lightning_gradwatch.outputs import alerts_file, flight, notify
from lightning_gradwatch.outputs.flight import FlightRecorder
from lightning_gradwatch.outputs.notify import Addresses, Notifier
from lightning_gradwatch.outputs.sinks import Sinks
from tests.builders import alert
from tests.outputs.test_flight import observation
from tests.servers import Inbox
from tests.tasks import Classifier, deep_net, fit, loop_host, read_events

resource = pytest.importorskip("resource")


def test_each_optimizer_has_its_own_warnings() -> None:
    alert_log, sinks = AlertLog(), Sinks(loop_host())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in (0, 1):
            for optimizer in ("first", "second"):
                for until in (None, step):
                    sinks.tell(*alert_log.record(replace(alert(step, until), optimizer=optimizer)))
    assert len(caught) == 2


@pytest.mark.slow
def test_ten_thousand_alerts_in_a_row_cost_bounded_files_and_memory(tmp_path: Path) -> None:
    alert_log = AlertLog()
    with Inbox("hanging") as inbox, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notifier = Notifier(Addresses("notify", inbox.address()), "run", pause_s=0)
        sinks = Sinks(
            loop_host(), str(tmp_path), run="run", notifier=notifier, flight=FlightRecorder(tmp_path, 200, {})
        )
        taken = []
        for step in range(10_000):
            opened, ended = (alert_log.record(alert(step, until)) for until in (None, step))
            sinks.remember([observation(step, 1)], [opened[1]], alert_log.alerts)
            sinks.tell(*opened)
            sinks.tell(*ended)
            if step in (4_000, 9_999):
                taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        notifier.close(0.1)
    assert len(alert_log.alerts) == MAX_ALERTS
    assert alert_log.num_alerts == 10_000
    assert taken[1] - taken[0] < 20_000  # kilobytes; 6,000 alerts with their texts would be more
    assert len(caught) < 20
    assert notifier._messages.qsize() <= notify.MAX_WAITING
    assert len(flight.files(tmp_path)) <= flight.MAX_FILES
    assert len(list(tmp_path.iterdir())) <= flight.MAX_FILES + alerts_file.NUM_ASIDE + 1
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * alerts_file.MAX_BYTES + 1_000_000


class Keeping(Logger):
    """A logger with a directory of somebody's choice."""

    name, version, save_dir, log_dir = "own", 0, None, ""

    def __init__(self, directory: str, refusal: str = "") -> None:
        super().__init__()
        self.log_dir, self.refusal = directory, refusal

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.refusal and any(name.startswith("gradwatch/") for name in metrics):
            raise RuntimeError(self.refusal)


@pytest.mark.parametrize("place", ["file/below", "null\0character", "x" * 300, "y/" * 3000, "locked/below"])
@pytest.mark.parametrize("on_alert", ["warn", "checkpoint"])
def test_a_directory_that_cannot_be_costs_one_line_and_no_watch(place: str, on_alert: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    watch = GradWatch(on_alert=on_alert)
    with pytest.warns(GradWatchWarning) as caught:
        fit(watch, Classifier(deep_net()), logger=Keeping(f"{tmp_path}/{place}"), max_steps=15)
    told = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert sum("is left out" in line for line in told) <= 1
    assert not any("switched itself off" in line for line in told)
    assert [alert.kind for alert in watch.alerts] == ["vanishing"]


def test_a_cause_is_said_once_and_another_one_once_more(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file/below")
    refusals = ["no row 1 in 'a'", "no row 22 in 'b'", "another cause"]
    with pytest.warns(GradWatchWarning) as caught:
        fit(GradWatch(log_every_n_steps=1), logger=[Keeping(place, refusal) for refusal in refusals], max_steps=15)
    told = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert len(told) == 3
    for part in (refusals[0], refusals[2], "Not a directory"):
        assert sum(part in line for line in told) == 1


@pytest.mark.parametrize("last_step", [4, 19])
@pytest.mark.parametrize("every", [1, 100])
def test_a_directory_that_is_deleted_in_mid_run_does_not_end_it(tmp_path: Path, last_step: int, every: int) -> None:
    class Deleting(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == last_step:
                trainer.logger.experiment.flush()
                shutil.rmtree(tmp_path / "logs")

    class Silent(Classifier):  # type: ignore[misc, valid-type]
        def log(self, *args: Any, **kwargs: Any) -> None: ...

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GradWatchWarning)
        trainer = fit(
            GradWatch(), Silent(deep_net()), callbacks=(Deleting(),), directory=tmp_path / "logs", max_steps=20,
            log_every_n_steps=every,
        )  # fmt: skip
    assert trainer.global_step == 20
    assert sum("is left out" in str(w.message) for w in caught) <= 1


def test_each_logger_is_written_by_a_writer_of_its_own_however_short_its_life(tmp_path: Path) -> None:
    sinks = Sinks(loop_host())
    for number in range(10):
        logger = TensorBoardLogger(tmp_path, name=str(number), version="")
        sinks.write_alerts([logger], [alert(number)], 1, end="end")
        logger.experiment.close()
        del logger
        gc.collect()
    for number in range(10):
        assert len(read_events(tmp_path / str(number)).Tensors(ALERT_DOCUMENT)) == 1


def test_where_a_run_is_kept_at_a_url_nothing_of_ours_is_written_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watch, logger = GradWatch(on_alert="checkpoint"), CSVLogger("memory://runs", name="own", version="first")
    with pytest.warns(GradWatchWarning, match="vanish"):
        fit(watch, Classifier(deep_net()), logger=logger, max_steps=15)
    assert watch.alerts
    assert list(tmp_path.iterdir()) == []
    assert len(get_filesystem("memory://runs").glob("memory://runs/own/first/checkpoints/gradwatch-*.ckpt")) == 1
