"""The flight record: right, complete where it matters, bounded, and enough to find a batch again."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchmetrics import Metric

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch._lightning import LightningHost
from lightning_gradwatch.alert_log import AlertLog
from lightning_gradwatch.core.records import Alert, Layer, Observation
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.outputs import alerts_file, flight
from lightning_gradwatch.outputs.flight import FlightRecorder
from lightning_gradwatch.outputs.sinks import Sinks
from tests.builders import alert
from tests.servers import Inbox
from tests.setups.test_resume import Oracle
from tests.tasks import Classifier, Poison, Sponge, deep_net, digits, fit, quiet_trainer, read_events, small_net

Steps = list[dict[str, Any]]


def last(directory: Path) -> tuple[dict[str, Any], Steps]:
    return flight.read(flight.files(directory)[-1])


class Losses(pl.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self.losses.append(loss.item())


def test_a_record_holds_every_step_as_it_was(tmp_path: Path) -> None:
    oracle, losses = Oracle(), Losses()
    model = Classifier(small_net(), lr=0.05, momentum=0.9)
    pl.seed_everything(1, verbose=False)
    trainer = quiet_trainer(oracle, losses, GradWatch(auto_clip=0.7), directory=tmp_path, max_steps=50)
    trainer.fit(model, digits())
    first, steps = last(tmp_path)
    assert (first["reason"], first["step"], first["run"], first["seed"]) == ("end", 49, tmp_path.name, "1")
    assert first["layers"] == {"": ["net.0", "net.2", "net.4"]}
    assert [step["step"] for step in steps] == list(range(50))
    for at, step in enumerate(steps):
        assert (step["epoch"], step["batch_idx"]) == divmod(at, 28)
        assert step["lr"] == [0.05]
        assert step["loss"] == pytest.approx(losses.losses[at], rel=1e-5)
        assert step["total_norm"] == pytest.approx(oracle.totals[at], rel=1e-5)
        expected = [oracle.layers[f"net.{i}"][at] for i in (0, 2, 4)]
        assert step["norms"] == pytest.approx(expected, rel=1e-5)
        (clip,) = step["clips"]
        assert clip["threshold"] == pytest.approx(0.7)
        assert clip["coefficient"] == pytest.approx(min(1, 0.7 / oracle.totals[at]), rel=1e-3)


def test_it_is_read_with_plain_python_and_is_plain_json(tmp_path: Path) -> None:
    with pytest.warns(GradWatchWarning):
        fit(GradWatch(), directory=tmp_path, max_steps=20, callbacks=(Poison(9, value=math.inf), Sponge()))

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    for path in flight.files(tmp_path):
        with gzip.open(str(path), "rt") as file:
            lines = [json.loads(line, parse_constant=refuse) for line in file]
        assert float(lines[10]["total_norm"]) == math.inf
        assert lines[0]["alerts"][0]["kind"] == "nonfinite"


def test_only_the_last_steps_are_kept(tmp_path: Path) -> None:
    fit(GradWatch(flight_steps=7), directory=tmp_path, max_steps=50)
    _, steps = last(tmp_path)
    assert [step["step"] for step in steps] == list(range(43, 50))


def test_no_record_is_kept_where_none_is_wanted_or_nothing_is_written(tmp_path: Path) -> None:
    fit(GradWatch(flight_steps=0), directory=tmp_path / "unwanted", max_steps=5)
    fit(GradWatch(), default_root_dir=tmp_path / "silent", max_steps=5)
    fit(GradWatch(), directory=tmp_path / "dev", fast_dev_run=True)
    assert not list(tmp_path.rglob("flight*"))


def test_the_loss_scale_is_that_of_the_step(tmp_path: Path) -> None:
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10))
    fit(GradWatch(dense_steps=1), directory=tmp_path, max_steps=35, plugins=[scaler])
    _, steps = last(tmp_path)
    assert [step["loss_scale"] for step in steps] == [64.0 * 2 ** (at // 10) for at in range(35)]


def test_accumulation_tells_the_last_batch_of_the_step(tmp_path: Path) -> None:
    fit(GradWatch(), directory=tmp_path, max_steps=15, accumulate_grad_batches=4)
    first, steps = last(tmp_path)
    assert first["accumulate_grad_batches"] == 4
    assert [(step["epoch"], step["batch_idx"]) for step in steps[:8]] == [
        *((0, idx) for idx in range(3, 28, 4)),
        (1, 3),
    ]


def test_several_optimizers_have_their_own_steps(tmp_path: Path) -> None:
    from tests.test_actions import Duel

    with pytest.warns(GradWatchWarning):
        fit(GradWatch(), Duel(), directory=tmp_path, max_steps=40)
    first, steps = last(tmp_path)
    assert sorted(first["layers"]) == ["SGD", "SGD-1"]
    assert [(s["step"], s["optimizer"]) for s in steps[:4]] == [(0, "SGD"), (0, "SGD-1"), (1, "SGD"), (1, "SGD-1")]
    assert all(len(s["norms"]) == 10 for s in steps)


BAD = 1000
"""A sample that is not a number."""


def bad_digits(**options: Any) -> DataLoader[Any]:
    inputs, targets = digits().dataset.tensors  # type: ignore[attr-defined]
    inputs[BAD] = math.nan
    return DataLoader(TensorDataset(inputs, targets, torch.arange(len(inputs))), batch_size=32, **options)


class Ailing(Classifier):  # type: ignore[misc, valid-type]
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch[:2], batch_idx)


@pytest.mark.parametrize("drawn", ["in order", "shuffled", "shuffled by workers", "by a sampler for several ranks"])
@pytest.mark.parametrize("stop_at", [1, 2])
def test_the_offending_batch_is_found_again(tmp_path: Path, drawn: str, stop_at: int) -> None:
    """From the record alone, and the data loader: the batch of a step with NaN holds the bad sample."""

    def loader() -> DataLoader[Any]:
        if "sampler" in drawn:
            data = bad_digits().dataset
            return DataLoader(data, batch_size=32, sampler=DistributedSampler(data, 1, 0, seed=5))
        return bad_digits(shuffle="shuffled" in drawn, num_workers=2 * ("workers" in drawn))

    watch = GradWatch()
    with pytest.warns(GradWatchWarning):
        fit(
            watch,
            Ailing(small_net()),
            loader(),
            callbacks=(Sponge(),),
            directory=tmp_path,
            max_epochs=stop_at,
            max_steps=-1,
        )
    first, steps = last(tmp_path)
    bad = [step for step in steps if step["total_norm"] == "nan"][-1]
    assert bad["epoch"] == stop_at - 1
    assert bad["bad_inputs"]
    again = loader()
    if "sampler" in drawn:
        assert (first["batches"][0]["sampler"], first["batches"][0]["seed"]) == ("DistributedSampler", 5)
        again.sampler.set_epoch(bad["epoch"])  # type: ignore[attr-defined]
    state = bytes.fromhex(first["rng_state_at_epoch_start"][str(bad["epoch"])])
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    batch = list(again)[bad["batch_idx"]]
    assert BAD in batch[2]


class Failing(pl.Callback):
    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 27:
            raise KeyError("the training's own")


def test_an_exception_leaves_a_record_up_to_its_step(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fit(GradWatch(), directory=tmp_path, callbacks=(Failing(),), max_steps=60)
    first, steps = last(tmp_path)
    assert (first["reason"], first["step"]) == ("KeyError", 26)
    assert [step["step"] for step in steps] == list(range(27))
    assert all(step["total_norm"] > 0 for step in steps)


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("broken by the same cause")


@pytest.mark.parametrize(
    ("place", "name"),
    [(Watcher, "flush"), (AlertLog, "record"), (Sinks, "write_alerts"), (LightningHost, "set_metrics")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_record_of_a_crash_comes_before_all_that_may_break_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    class BreakingUs(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 27:
                monkeypatch.setattr(place, name, broken)
                raise KeyError("the training's own")

    callbacks = (BreakingUs(), Poison(25), Sponge())
    with pytest.raises(KeyError), pytest.warns(GradWatchWarning) as caught:
        fit(GradWatch(), directory=tmp_path, callbacks=callbacks, max_steps=60)
    assert sum("switched itself off" in str(w.message) for w in caught) == 1
    first, steps = last(tmp_path)
    assert (first["reason"], first["step"]) == ("KeyError", 26)
    assert [step["step"] for step in steps] == list(range(27))
    assert not any("goes on" in str(w.message) for w in caught)  # it does not


class Pair(Metric):  # type: ignore[misc]
    """Computes what Lightning refuses."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("value", torch.tensor(0.0))

    def update(self, value: float) -> None:
        self.value += value

    def compute(self) -> Any:
        return self.value, self.value


class Refused(Classifier):  # type: ignore[misc, valid-type]
    def __init__(self) -> None:
        super().__init__(small_net())
        self.pair = Pair()

    def on_train_epoch_end(self) -> None:
        self.pair.update(1.0)
        self.log("pair", self.pair)


def test_a_metric_that_lightning_refuses_leaves_a_record_and_no_word_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a tensor"):
        fit(GradWatch(), Refused(), directory=tmp_path, limit_train_batches=5)
    first, steps = last(tmp_path)
    assert (first["reason"], len(steps)) == ("ValueError", 5)


def test_a_failure_of_ours_leaves_a_record_up_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be an error of the device, of which the training will die, too."""

    class BreakingUs(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 12:
                monkeypatch.setattr(Watcher, "observe", broken)

    with pytest.warns(GradWatchWarning, match="switched itself off"):
        fit(GradWatch(), directory=tmp_path, callbacks=(BreakingUs(),), max_steps=20)
    (path,) = flight.files(tmp_path)
    first, steps = flight.read(path)
    assert (first["reason"], steps[-1]["step"]) == ("GradWatch failed", 12)


FORKED = """
import os, signal, sys, time, warnings
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
import lightning.pytorch as pl
import torch
from lightning_gradwatch import GradWatch
from tests.tasks import Classifier, Poison, Sponge, digits, fit, small_net

torch.set_num_threads(1)  # torch's own threads do not come along
warnings.simplefilter("ignore")
parent, ends = os.getpid(), []

class Forking(Classifier):
    def training_step(self, batch, batch_idx):
        if os.getpid() == parent and batch_idx in (12, 13, 14, 15):
            child = os.fork()
            if child and batch_idx in (12, 13):
                time.sleep(0.3)
                os.kill(child, {12: signal.SIGTERM, 13: signal.SIGHUP}[batch_idx])
                time.sleep(0.3)
                os.kill(child, signal.SIGKILL)
            if child:
                ends.append(os.waitpid(child, 0)[1])
            elif batch_idx in (12, 13):
                time.sleep(60)
            elif batch_idx == 14:
                raise SystemExit  # comes by on_exception
        elif os.getpid() != parent and batch_idx == 27:
            os._exit(8)  # has trained on so far, through an alert
        return super().training_step(batch, batch_idx)

class Leave(pl.Callback):  # before Lightning waits for the thread of TensorBoard's writer, which a child lacks
    def on_exception(self, *args):
        os._exit(7)

fit(GradWatch(log_every_n_steps=1), Forking(small_net()), callbacks=(Poison(20), Sponge(), Leave()),
    directory=sys.argv[1], max_steps=28, log_every_n_steps=10**6)
print(ends)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_forked_child_writes_and_sends_nothing_and_ends_as_without_us(tmp_path: Path) -> None:
    with Inbox() as inbox:
        environment = {**os.environ, "GRADWATCH_NOTIFY": inbox.address(), "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", FORKED, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [signal.SIGKILL, signal.SIGHUP, 7 << 8, 8 << 8]  # Lightning survives SIGTERM
    assert {flight.read(path)[0]["reason"] for path in flight.files(tmp_path)} == {"alert", "end"}
    assert [line["event"] for line in alerts_file.read(tmp_path)] == ["opened"]
    assert done.stderr.count("GradWatch watched") == 1
    assert len(inbox.messages) == 1
    points = read_events(tmp_path).Scalars("gradwatch/total_norm")
    assert [point.step for point in points] == list(range(28))


SIGNALLED = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
from pathlib import Path
import lightning.pytorch as pl
from lightning_gradwatch import GradWatch
from tests.tasks import Classifier, digits, quiet_trainer, small_net

class Ready(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 27:
            Path(sys.argv[1], "ready").touch()
            time.sleep(60)

signal.signal(signal.SIGUSR1, lambda *_: print("theirs", flush=True))
quiet_trainer(GradWatch(), Ready(), directory=sys.argv[1], max_steps=60).fit(Classifier(small_net()), digits())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_leaves_a_record_and_does_what_it_does_anyway(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", SIGNALLED, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        while not flight.files(tmp_path):
            time.sleep(0.05)
        if name == "SIGHUP":  # ends the process, as it always did
            assert process.wait(30) == -number
    finally:
        process.kill()
        output, _ = process.communicate()
    first, steps = last(tmp_path)
    assert first["reason"] == name
    assert steps[-1]["step"] == 26
    assert steps[-1]["batch_idx"] == 26
    if name == "SIGUSR1":
        assert output == "theirs\n"


def test_handlers_of_signals_are_as_before_after_a_run(tmp_path: Path) -> None:
    numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
    before = [signal.getsignal(number) for number in numbers]
    fit(GradWatch(), directory=tmp_path / "1", max_steps=5)
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(KeyError):
        fit(GradWatch(), directory=tmp_path / "2", callbacks=(Failing(),), max_steps=60)
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_run_outside_of_the_main_thread_is_recorded(tmp_path: Path) -> None:
    thread = threading.Thread(target=lambda: fit(GradWatch(), directory=tmp_path, max_steps=5))
    thread.start()
    thread.join()
    assert last(tmp_path)[0]["step"] == 4


def observation(step: int, num_steps: int = 10) -> Observation:
    layers = (Layer("net", ("net.weight",)),)
    steps = tuple(range(step - num_steps + 1, step + 1))
    norms = torch.ones(num_steps, 2)
    return Observation(
        step, layers, steps, norms, (1.0,) * num_steps, (None,) * num_steps, 0.1, frozenset(), None, None, None, False
    )


def test_ten_thousand_alerts_leave_few_files_and_every_one_is_within_a_record(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, 200, {})
    written: set[int] = set()
    for step in range(9, 10_000, 10):
        recorder.add(observation(step))
        for at in range(step - 9, step + 1):
            recorder.alert([alert(at)], [])
        for path in flight.files(tmp_path)[-1:]:
            written.update(line["step"] for line in flight.read(path)[1])
    recorder.dump("end")
    written.update(line["step"] for line in flight.read(flight.files(tmp_path)[-1])[1])
    assert written == set(range(10_000))
    files = flight.files(tmp_path)
    assert len(files) <= flight.MAX_FILES
    assert files[0].name == "flight-9.jsonl.gz"
    assert [path.name for path in tmp_path.iterdir() if path not in files] == []
    assert sum(len(track.rows) + len(track.coming) for track in recorder._tracks.values()) <= 400


def test_another_kind_of_alert_is_recorded_at_once(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, 200, {})
    recorder.add(observation(9))
    recorder.alert([alert(5)], [])
    recorder.add(observation(19))
    recorder.alert([alert(15)], [])
    assert [path.name for path in flight.files(tmp_path)] == ["flight-9.jsonl.gz"]
    recorder.alert([alert(16, kind="dead")], [])
    assert [path.name for path in flight.files(tmp_path)] == ["flight-9.jsonl.gz", "flight-19.jsonl.gz"]


def test_steps_whose_numbers_have_not_arrived_are_told_by_what_the_host_knows(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, 20, {})
    for step in range(15):
        recorder.begin_step("", step, 0, step, [{"lr": 0.1}], torch.tensor(8.0))
    recorder.add(observation(9))
    path = recorder.dump("SIGTERM", may_wait=False)
    assert path is not None
    _, steps = flight.read(path)
    assert [(line["step"], line["batch_idx"]) for line in steps] == [(step, step) for step in range(15)]
    assert ["total_norm" in line for line in steps] == [True] * 10 + [False] * 5
    assert {line["loss_scale"] for line in steps} == {None}


def test_a_record_that_cannot_be_finished_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = FlightRecorder(tmp_path, 20, {})
    recorder.add(observation(9))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space"):
            recorder.dump("alert")
    assert flight.files(tmp_path) == []
    assert recorder.dump("end") == tmp_path / "flight-9.jsonl.gz"
    assert [path.name for path in tmp_path.iterdir()] == ["flight-9.jsonl.gz"]


def test_a_directory_that_takes_no_file_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / ".flight.unfinished").mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(GradWatch(), Classifier(deep_net()), directory=tmp_path, max_steps=15)
    assert trainer.global_step == 15
    assert sum("the flight record cannot be written" in str(w.message) for w in caught) == 1


def test_what_a_layer_is_called_may_change_in_the_course_of_a_run(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, 30, {})
    recorder.add(observation(9))
    changed = observation(19)
    object.__setattr__(changed, "layers", (Layer("head", ("head.weight",)),))
    recorder.add(changed)
    path = recorder.dump("end")
    assert path is not None
    first, steps = flight.read(path)
    assert first["layers"] == {"": ["head"]}
    assert ["layers" in line for line in steps] == [True] * 10 + [False] * 10
    assert steps[0]["layers"] == ["net"]


def test_a_fit_that_fails_before_it_reaches_us_changes_no_earlier_record(tmp_path: Path) -> None:
    class Broken(Classifier):  # type: ignore[misc, valid-type]
        def prepare_data(self) -> None:
            raise OSError("no data")

    trainer = fit(GradWatch(), directory=tmp_path, max_steps=20)
    before = {path: flight.read(path) for path in flight.files(tmp_path)}
    with pytest.raises(OSError, match="no data"):
        trainer.fit(Broken(small_net()), digits())
    assert {path: flight.read(path) for path in flight.files(tmp_path)} == before


def test_a_record_is_json_whatever_numbers_are_in_it(tmp_path: Path) -> None:
    numbers = (math.inf, -math.inf, math.nan)
    figures = {"figures": [{"loss": number} for number in numbers]}
    told = Alert("vanishing", "alert", 3, None, "", math.inf, 1.0, "...", prescription=figures)
    recorder = FlightRecorder(tmp_path, 20, {"seed": math.nan, "batches": [{"batch_size": math.inf}]})
    recorder.begin_step("", 0, 0, 0, [{"lr": number} for number in numbers])
    path = recorder.dump("end", [told])
    assert path is not None
    with gzip.open(str(path), "rt") as file:
        first, step = [json.loads(line, parse_constant=pytest.fail) for line in file]
    assert first["alerts"][0]["prescription"] == {"figures": [{"loss": text} for text in ("inf", "-inf", "nan")]}
    assert (first["seed"], first["batches"]) == ("nan", [{"batch_size": "inf"}])
    assert step["lr"] == ["inf", "-inf", "nan"]
