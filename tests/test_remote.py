"""A run that is kept at a URL: whatever GradWatch writes is there, nothing lies in a local folder of that name."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning, watch
from lightning_gradwatch.core.metrics import ALERT_DOCUMENT
from lightning_gradwatch.outputs import flight, record
from tests.cli.command import here
from tests.outputs.test_record import Nowhere
from tests.outputs.test_sinks import Keeping
from tests.stores import Objects, broken, clear, content
from tests.tasks import Classifier, deep_net, digits, fit, quiet_trainer, read_events, scalars

SCHEMES = ("memory", "objects", "overwriting", "emulating")


@pytest.fixture(autouse=True)
def _empty_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing in the stores before, and nothing in the working directory after."""
    monkeypatch.chdir(tmp_path)
    clear()
    yield
    clear()
    assert list(tmp_path.iterdir()) == []


def sick() -> Any:
    return Classifier(deep_net(nn.Sigmoid, 8))


def train(logger: Any, gradwatch: GradWatch | None = None, **options: Any) -> list[str]:
    """Train a network that is sick; what the console was told."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = {"max_steps": 12, "log_every_n_steps": 4, **options}
        fit(gradwatch or GradWatch(), sick(), logger=logger, **settings)
    return [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)]


def reported(url: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The runs that `gradwatch report` finds."""
    status, shown, complaint = here(capsys, "report", url, "--json")
    assert complaint == ""
    document = json.loads(shown)
    assert (status, document["exit_status"], document["directory"]) == (1, 1, url)
    runs: list[dict[str, Any]] = document["runs"]
    return runs


def kinds(run: dict[str, Any]) -> list[str]:
    return [alert["kind"] for alert in run["alerts"]]


def check_files(url: str) -> None:
    """Alerts file and flight record of a run are there, and whole."""
    files = content(url)
    lines = [json.loads(line) for line in files["alerts.jsonl"].splitlines()]
    assert [(line["event"], line["kind"]) for line in lines] == [("opened", "vanishing")]
    flights = [gzip.decompress(files[name]).splitlines() for name in files if name.startswith("flight-")]
    assert {json.loads(first)["reason"] for first, *_ in flights} == {"alert", "end"}
    for _, *steps in flights:
        assert [json.loads(step)["step"] for step in steps] == list(range(len(steps)))
        assert len(steps) >= 9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_beside_a_logger_of_numbers_everything_is_kept_and_read(
    scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if scheme == "memory":
        logger: Any = CSVLogger("memory://runs", "csv", "first")
    else:  # which Lightning's own logger cannot write to
        logger = Keeping(f"{scheme}://runs/csv/first")
    train(logger, GradWatch(on_alert="checkpoint"))
    url = f"{scheme}://runs/csv/first"
    check_files(url)
    (run,) = reported(f"{scheme}://runs", capsys)
    assert run["run"] == "csv/first"
    assert kinds(run) == ["vanishing"]
    (optimizer,) = run["optimizers"]
    assert (len(optimizer["versions"][-1]["layers"]), optimizer["versions"][-1]["num_samples"]) == (8, 12)
    (checkpoint,) = (name for name in content(url) if name.endswith(".ckpt"))
    assert checkpoint.startswith("checkpoints/gradwatch-vanishing-step=")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_a_run_of_tensorboard_s_all_of_ours_lies_in_a_folder_of_its_own(
    scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own writer is left alone: where a store cannot append, it breaks, or keeps nothing but the last event."""

    class Silent(Classifier):  # type: ignore[misc, valid-type]
        def log(self, *args: Any, **kwargs: Any) -> None:
            """Nothing, so that only we could break it."""

    logger = TensorBoardLogger(f"{scheme}://runs", "board", "first", default_hp_metric=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        model = Silent(deep_net(nn.Sigmoid, 8))
        fit(GradWatch(on_alert="checkpoint"), model, logger=logger, max_steps=12, log_every_n_steps=4)
    check_files(f"{scheme}://runs/board/first/gradwatch")
    (run,) = reported(f"{scheme}://runs", capsys)
    assert (run["run"], kinds(run)) == ("board/first/gradwatch", ["vanishing"])
    assert run["optimizers"][0]["versions"][-1]["num_samples"] == 12
    files = content(f"{scheme}://runs/board/first")
    (theirs,) = (text for name, text in files.items() if "/" not in name and "tfevents" in name)
    assert b"gradwatch" not in theirs
    assert sum(name.startswith("checkpoints/") for name in files) == 1


def test_without_a_record_tensorboard_s_writer_at_a_url_has_the_run_level_numbers() -> None:
    train(TensorBoardLogger("memory://runs", "board", "first"), GradWatch(record=False))
    events = read_events("memory://runs/board/first")  # type: ignore[arg-type]
    assert len(scalars(events, "gradwatch/vanishing")) == 3
    assert len(scalars(events, "loss")) == 3
    assert ALERT_DOCUMENT not in events.Tags()["tensors"]
    check_files("memory://runs/board/first/gradwatch")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_record_may_be_at_a_url_whatever_the_loggers_do(scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{scheme}://bucket/mine"
    train(False, GradWatch(record=url))
    check_files(url)
    (run,) = reported(url, capsys)
    assert (run["run"], kinds(run)) == (".", ["vanishing"])
    assert run["optimizers"][0]["versions"][-1]["num_samples"] == 12


def test_alerts_and_layers_around_a_step_are_read_from_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    train(False, GradWatch(record="memory://bucket/mine"))
    for command in ("alerts", "snapshot"):
        status, out, complaint = here(capsys, command, "memory://bucket/mine", "--json")
        assert (status, complaint) == (1, "")
        found = json.loads(out)
        (run,) = found.get("runs", [found])
        assert (run["path"], run["status"], run["last_step"]) == ("memory://bucket/mine", "sick", 11)
        assert here(capsys, command, "memory://nowhere")[0] == 2


def test_a_run_without_a_directory_of_its_own_is_kept_below_that_of_the_trainer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(Nowhere(), default_root_dir="memory://root")
    (run,) = reported("memory://root", capsys)
    assert kinds(run) == ["vanishing"]
    assert run["run"].startswith("gradwatch/")
    check_files(f"memory://root/{run['run']}")


def test_a_loop_of_one_s_own_keeps_its_run_at_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    model = deep_net(nn.Sigmoid, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = watch(model, optimizer, "objects://bucket/loop", log_every_n_steps=4, on_alert="checkpoint")
    with warnings.catch_warnings(), session:
        warnings.simplefilter("ignore", GradWatchWarning)
        for _, (inputs, targets) in zip(range(12), digits(), strict=False):
            session.before_forward()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            session.step(loss)
            optimizer.step()
    check_files("objects://bucket/loop")
    (run,) = reported("objects://bucket/loop", capsys)
    assert kinds(run) == ["vanishing"]
    (checkpoint,) = (saved for name, saved in content("objects://bucket/loop").items() if name.endswith(".ckpt"))
    assert len(checkpoint) > 10_000


def test_a_resumed_run_reads_its_alerts_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    logger = TensorBoardLogger("memory://runs", "board", "first")
    train(logger, max_steps=12, enable_checkpointing=True)
    (checkpoint,) = (name for name in content("memory://runs") if name.endswith(".ckpt"))
    trainer = quiet_trainer(
        GradWatch(), logger=TensorBoardLogger("memory://runs", "board", "first"), max_steps=20, log_every_n_steps=4
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(sick(), digits(), ckpt_path=f"memory://runs/{checkpoint}", weights_only=False)
    lines = content("memory://runs/board/first/gradwatch")["alerts.jsonl"].splitlines()
    assert len(lines) == 1
    (run,) = reported("memory://runs", capsys)
    assert kinds(run) == ["vanishing"]
    assert run["optimizers"][0]["versions"][-1]["last_step"] == 19


def test_checkpoints_of_alerts_are_counted_at_a_url_too() -> None:
    for step in range(5):
        (filesystem := Objects()).pipe_file(f"objects://bucket/mine/checkpoints/gradwatch-dead-step={step}.ckpt", b"-")
    train(Keeping("objects://bucket/mine"), GradWatch(on_alert="checkpoint"))
    assert len(filesystem.glob("objects://bucket/mine/checkpoints/gradwatch-*.ckpt")) == 5


@pytest.mark.parametrize("failure", [OSError("the network is down"), PermissionError("no"), ZeroDivisionError("odd")])
def test_a_store_that_fails_costs_one_line_and_neither_training_nor_watch(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_gradwatch.outputs.worker.PAUSES_S", (0.01,))
    gradwatch = GradWatch(record="objects://bucket/mine")
    with broken(Objects, failure):
        told = train(False, gradwatch)
    assert len([line for line in told if "is left out from now on" in line]) == 1
    assert [alert.kind for alert in gradwatch.alerts] == ["vanishing"]
    assert content("objects://bucket") == {}


@pytest.mark.parametrize("url", ["s3://bucket/run", "nonsense://run"])
def test_a_file_system_that_is_not_installed_costs_one_line_that_says_so(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    told = train(False, GradWatch(record=url))
    (line,) = [line for line in told if "is left out from now on" in line]
    assert "Install s3fs" in line or "Protocol not known: nonsense" in line


def test_an_outage_that_passes_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_gradwatch.outputs.worker.PAUSES_S", (0.01,) * 1000)

    class Healing(GradWatch):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            Objects.failure = None
            super().on_train_end(trainer, pl_module)

    Objects.failure = OSError("the network is down")
    told = train(False, Healing(record="objects://bucket/mine"))
    assert not [line for line in told if "is left out" in line]
    check_files("objects://bucket/mine")
    (run,) = reported("objects://bucket/mine", capsys)
    assert run["optimizers"][0]["versions"][-1]["num_samples"] == 12


def test_a_slow_network_is_not_waited_for_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    request = Objects._request

    def noted(store: Objects) -> None:
        threads.add(threading.current_thread().name)
        request(store)

    monkeypatch.setattr(Objects, "_request", noted)
    monkeypatch.setattr(Objects, "seconds", 0.05)
    train(False, GradWatch(record="objects://bucket/mine"), log_every_n_steps=1)
    assert threads == {"gradwatch-worker"}
    check_files("objects://bucket/mine")


def test_a_url_as_a_path_is_refused_with_its_cure() -> None:
    with pytest.raises(ValueError, match="give a URL as text"):
        GradWatch(record=Path("s3://bucket/run"))
    assert GradWatch(record="s3://bucket/run").config.record == "s3://bucket/run"


def test_both_may_write_to_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        train(False, GradWatch(record="objects://bucket/mine"))
    assert len(content("objects://bucket/mine")["alerts.jsonl"].splitlines()) == 2
    assert sum("tfevents" in name for name in content("objects://bucket/mine")) == 2


def test_the_command_reads_pages_and_names_what_it_cannot_reach(capsys: pytest.CaptureFixture[str]) -> None:
    train(False, GradWatch(record="objects://bucket/mine"))
    status, shown, _ = here(capsys, "report", "objects://bucket")
    assert status == 1
    assert "Gradients vanish" in shown
    status, _, complaint = here(capsys, "report", "objects://bucket", "--html", "objects://bucket/page.html")
    assert (status, complaint) == (1, "Wrote objects://bucket/page.html.\n")
    assert content("objects://bucket")["page.html"].endswith(b"</html>\n")
    status, shown, _ = here(capsys, "watch", "objects://bucket", "--until-alert")
    assert (status, "Gradients vanish" in shown) == (1, True)
    status, _, complaint = here(capsys, "report", "objects://bucket/nowhere")
    assert (status, "which does not exist" in complaint) == (2, True)
    status, _, complaint = here(capsys, "report", "objects://bucket", "--run", "nowhere")
    assert (status, "'mine'" in complaint) == (2, True)
    status, _, complaint = here(capsys, "report", "nonsense://bucket")
    assert (status, "Protocol not known: nonsense" in complaint, complaint.count("\n")) == (2, True, 1)
    with broken(Objects, OSError("the network is down")):
        status, _, complaint = here(capsys, "report", "objects://bucket")
    assert (status, "the network is down" in complaint, complaint.count("\n")) == (2, True, 1)


def train_until_the_end_of_time(url: str) -> None:
    """Train; every step is published, and a record at a URL lags by no more than a fifth of a second."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests under nohup hands on that it is ignored
    record.FLUSH_SECONDS = 0.2  # type: ignore[assignment]
    fit(GradWatch(record=url), sick(), logger=False, max_steps=10**9, log_every_n_steps=1)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs a signal that ends a process")
@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_a_process_that_is_ended_leaves_what_was_there_and_after_a_signal_all(
    name: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path_factory.mktemp("elsewhere")
    root = Path(__file__).parents[1]
    code = f"from tests.test_remote import *; train_until_the_end_of_time('file://{directory}')"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.DEVNULL,
    )

    def last_step() -> int:
        status, shown, _ = here(capsys, "report", f"file://{directory}", "--json")
        return int(json.loads(shown)["runs"][0]["last_step"]) if status == 1 else 0

    try:
        end = time.monotonic() + 120
        while (seen := last_step()) < 100 and time.monotonic() < end and child.poll() is None:
            time.sleep(0.1)
        child.send_signal(signal.Signals[name])
        assert child.wait(60) == -signal.Signals[name]
    finally:  # nothing of it outlives the test
        child.kill()
        child.wait()
    assert last_step() >= seen >= 100
    lines = [json.loads(line) for line in (directory / "alerts.jsonl").read_bytes().splitlines()]
    assert lines[0]["kind"] == "vanishing"
    flights = flight.files(directory)
    first, steps = flight.read(flights[-1])
    if name == "SIGHUP":
        assert first["reason"] == name
        assert last_step() >= first["step"] - 1
    assert steps[-1]["step"] == first["step"]
