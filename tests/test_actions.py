"""What is done about alerts, in one process and alike on all ranks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_gradwatch import Alert, GradientAlertError, GradWatch, GradWatchWarning, actions
from lightning_gradwatch.core.watcher import Watcher
from tests.servers import Inbox
from tests.setups.processes import run_ranks, tell
from tests.setups.test_ddp import Gated, cards
from tests.tasks import Classifier, Poison, Sponge, deep_net, digits, fit, quiet_trainer, session_of, small_net

pytestmark = pytest.mark.filterwarnings("ignore:.*add the following callbacks.*")

BATCHES = list(digits())


def fit_sick(watch: GradWatch, model: Any = None, **options: Any) -> pl.Trainer:
    with pytest.warns(GradWatchWarning):
        return fit(watch, model or Classifier(deep_net()), **{"max_steps": 40, **options})


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").glob("*"))


@pytest.mark.parametrize("on_alert", ["warn", {"nonfinite": "stop"}, {}])
def test_by_default_training_goes_on(on_alert: Any, tmp_path: Path) -> None:
    trainer = fit_sick(GradWatch(on_alert=on_alert), directory=tmp_path)
    assert trainer.global_step == 40
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize("on_alert", ["stop", {"vanishing": "stop", "nonfinite": "raise"}])
def test_training_can_stop(on_alert: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer = fit_sick(GradWatch(on_alert=on_alert))
    assert trainer.global_step == 10
    assert trainer.state.finished
    assert "GradWatch stops the training because of vanishing (step 9)." in caplog.text


def test_an_error_carries_the_alerts() -> None:
    watch, model = GradWatch(on_alert="raise"), Classifier(deep_net())
    trainer = quiet_trainer(watch)
    with pytest.warns(GradWatchWarning), pytest.raises(GradientAlertError, match="Gradients vanish") as raised:
        trainer.fit(model, digits())
    assert list(raised.value.alerts) == watch.alerts
    assert trainer.global_step == 9
    assert not any(module._forward_hooks for module in model.modules())


def test_an_alert_found_at_the_very_end_is_acted_upon() -> None:
    watch = GradWatch(on_alert="raise", dense_steps=0, sample_every_n_steps=1000)
    trainer = quiet_trainer(watch, Poison(13), max_steps=15)
    with pytest.warns(GradWatchWarning), pytest.raises(GradientAlertError):
        trainer.fit(Classifier(small_net()), digits())
    assert trainer.global_step == 15


class Replayed(Classifier):  # type: ignore[misc, valid-type]
    """Takes its batch by its number, as a data loader that can be resumed would hand it out."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(BATCHES[batch_idx], batch_idx)


class Diary(pl.Callback):
    """The batch and the weights of each step, as they were before it."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[int, float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        weights = sum(p.double().abs().sum().item() for p in pl_module.parameters())
        self.steps[trainer.global_step] = (self.batch_idx, weights)


@pytest.mark.parametrize(("poisoned", "sampled"), [(13, True), (33, False)])
def test_a_checkpoint_replays_the_batch(tmp_path: Path, poisoned: int, sampled: bool) -> None:
    """Resumed from it, training takes the same batch with the same weights; the poison was still outside of them."""
    diary = Diary()
    watch = GradWatch(on_alert={"nonfinite": "checkpoint"}, sample_every_n_steps=10)
    fit_sick(watch, Replayed(small_net()), directory=tmp_path, callbacks=(Poison(poisoned), Sponge(), diary))
    assert watch.alerts[0].step == poisoned
    assert checkpoints(tmp_path) == [f"gradwatch-nonfinite-step={poisoned}.ckpt"]
    again = Diary()
    path = tmp_path / "checkpoints" / checkpoints(tmp_path)[0]
    trainer = quiet_trainer(Poison(poisoned), Sponge(), again, max_steps=40)
    trainer.fit(Replayed(small_net()), digits(), ckpt_path=path)
    first = min(again.steps)
    assert first == poisoned if sampled else poisoned < first < poisoned + 15
    assert again.steps[first] == diary.steps[first]
    assert again.steps[39] == diary.steps[39]


def test_under_accumulation_a_checkpoint_waits_for_the_whole_step(tmp_path: Path) -> None:
    diary, again = Diary(), Diary()
    options: dict[str, Any] = {"accumulate_grad_batches": 3, "max_steps": 20}
    fit_sick(GradWatch(on_alert="checkpoint"), Replayed(deep_net()), directory=tmp_path, callbacks=(diary,), **options)
    (name,) = checkpoints(tmp_path)
    assert name == "gradwatch-vanishing-step=9.ckpt"
    trainer = quiet_trainer(again, **options)
    trainer.fit(Replayed(deep_net()), digits(), ckpt_path=tmp_path / "checkpoints" / name)
    assert min(again.steps) == 10
    assert {step: diary.steps[step] for step in again.steps} == again.steps


class Duel(Classifier):  # type: ignore[misc, valid-type]
    """Two optimizers that take turns within a batch."""

    def __init__(self) -> None:
        super().__init__(deep_net())
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        half = list(self.net.parameters())
        return [torch.optim.SGD(half[:20], 0.1), torch.optim.SGD(half[20:], 0.1)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            loss = nn.functional.cross_entropy(self.net(BATCHES[batch_idx][0]), BATCHES[batch_idx][1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


def test_with_several_optimizers_a_checkpoint_waits_for_the_end_of_the_batch(tmp_path: Path) -> None:
    diary, again = Diary(), Diary()
    watch = GradWatch(on_alert="checkpoint")
    fit_sick(watch, Duel(), directory=tmp_path, callbacks=(diary,))
    path = tmp_path / "checkpoints" / checkpoints(tmp_path)[0]
    quiet_trainer(again, max_steps=40).fit(Duel(), digits(), ckpt_path=path)
    assert min(again.steps) == 2 * (watch.alerts[0].step + 1)
    assert {step: diary.steps[step] for step in again.steps} == again.steps


def test_few_checkpoints_are_left_by_many_alerts(tmp_path: Path) -> None:
    steps = tuple(range(0, 400, 25))
    watch = GradWatch(on_alert="checkpoint")
    options: dict[str, Any] = {"directory": tmp_path, "callbacks": (Poison(*steps), Sponge()), "max_steps": 400}
    fit_sick(watch, Classifier(small_net()), **options)
    assert len(watch.alerts) == len(steps) > actions.MAX_CHECKPOINTS
    assert len(checkpoints(tmp_path)) == actions.MAX_CHECKPOINTS
    assert "gradwatch-nonfinite-step=0.ckpt" in checkpoints(tmp_path)


def test_a_checkpoint_that_cannot_be_saved_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.warns(GradWatchWarning) as caught:
        trainer = fit(GradWatch(on_alert="checkpoint"), Classifier(deep_net()), directory=tmp_path, max_steps=15)
    assert trainer.global_step == 15
    assert sum("cannot save" in str(w.message) for w in caught) == 1


def test_a_function_is_given_each_alert_once() -> None:
    seen: list[Alert] = []
    watch = GradWatch(on_alert=seen.append)
    options: dict[str, Any] = {"callbacks": (Poison(3, 28), Sponge()), "max_steps": 60}
    fit_sick(watch, Classifier(small_net()), **options)
    assert [(alert.kind, alert.step, alert.until_step) for alert in seen] == [
        ("nonfinite", 3, None),
        ("nonfinite", 28, None),
    ]


def test_a_function_that_fails_is_reported_once_and_training_goes_on() -> None:
    def broken(alert: Alert) -> None:
        raise OSError("no pager today")

    watch = GradWatch(on_alert={"nonfinite": broken})
    trainer = quiet_trainer(watch, Poison(3, 28), Sponge(), max_steps=60)
    with pytest.warns(GradWatchWarning) as caught:
        trainer.fit(Classifier(small_net()), digits())
    assert trainer.global_step == 60
    assert sum("no pager today" in str(w.message) for w in caught) == 1


def test_a_function_may_end_the_training() -> None:
    def end(alert: Alert) -> None:
        raise GradientAlertError([alert])

    with pytest.warns(GradWatchWarning), pytest.raises(GradientAlertError, match="vanish"):
        fit(GradWatch(on_alert=end), Classifier(deep_net()), max_steps=15)


@pytest.mark.parametrize(
    ("on_alert", "message"),
    [
        ("halt", """must be "warn", "checkpoint", "stop", "raise", a function .* but 'halt' came. To cure it: """),
        (None, "but None came"),
        ({"vanishing": "halt"}, "but 'halt' came"),
        ({"melting": "stop"}, "must be a dict by kinds of alerts, but 'melting' came. To cure it: .* vanishing"),
    ],
)
def test_wrong_actions_are_refused(on_alert: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"`on_alert` {message}" if message.startswith("must") else message):
        GradWatch(on_alert=on_alert)


class BrokenWatch(pl.Callback):
    """Breaks the watch on rank one, after a few steps."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 5:

            def broken(*args: Any, **kwargs: Any) -> Any:
                raise RuntimeError("broken on one rank")

            Watcher.observe = broken  # type: ignore[method-assign]


class Heard:
    """A function for alerts, and what it was given."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def __call__(self, alert: Alert) -> None:
        self.alerts.append(alert)


def train(directory: Path, on_alert: Any, *callbacks: Any, model: Any = None, **options: Any) -> dict[str, Any]:
    """Train on this rank, and tell what became of it; rank zero alone sees the gradient vanish."""
    import warnings

    pl.seed_everything(1, verbose=False)
    heard = Heard()
    watch = GradWatch(on_alert=heard if on_alert == "function" else on_alert, **options)
    trainer = quiet_trainer(watch, *callbacks, directory=directory, strategy="ddp", devices=2, max_steps=90)
    error = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(Gated() if model is None else model, cards())
        except GradientAlertError as raised:
            error = str(raised.alerts[0].kind)
    return {
        "step": trainer.global_step,
        "error": error,
        "alerts": [asdict(alert) for alert in watch.alerts],
        "heard": [asdict(alert) for alert in heard.alerts],
        "is_off": session_of(watch).is_off,
    }


SCRIPT = "import sys; from tests import test_actions; test_actions.train_everything(sys.argv[1])"


def train_everything(directory: str) -> None:
    """What one rank does."""
    import os

    torch.set_num_threads(1)
    place = Path(directory)
    os.environ["GRADWATCH_NOTIFY"] = (place / "address.txt").read_text()
    told = {"stop": train(place / "stop", "stop")}
    del os.environ["GRADWATCH_NOTIFY"]
    told["raise"] = train(place / "raise", "raise")
    told["checkpoint"] = train(place / "checkpoint", "checkpoint")
    told["unsaved"] = train(place / "unsaved", "checkpoint")
    told["function"] = train(place / "function", "function")
    observe = Watcher.observe
    told["broken"] = train(place / "broken", "stop", BrokenWatch())
    Watcher.observe = observe  # type: ignore[method-assign]
    tell(told)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path, list[dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("ranks")
    (directory / "unsaved").mkdir()
    (directory / "unsaved/checkpoints").write_text("in the way")
    with Inbox() as inbox:
        (directory / "address.txt").write_text(inbox.address())
        return run_ranks(SCRIPT, directory), directory, inbox.messages


@pytest.mark.slow
def test_ranks_stop_together_and_one_message_is_sent(ranks: Any) -> None:
    (zero, one), _, messages = ranks
    assert [alert["kind"] for alert in zero["stop"]["alerts"]] == ["vanishing"]
    assert one["stop"]["alerts"] == []  # it has not seen what rank zero saw
    assert zero["stop"]["step"] == one["stop"]["step"] < 70
    assert [message["title"].split(" in ")[0] for message in messages] == ["GradWatch: vanishing opened"]


@pytest.mark.slow
def test_ranks_raise_together(ranks: Any) -> None:
    (zero, one), _, _ = ranks
    assert zero["raise"]["error"] == one["raise"]["error"] == "vanishing"
    assert zero["raise"]["step"] == one["raise"]["step"] < 70


@pytest.mark.slow
def test_ranks_save_together(ranks: Any) -> None:
    (zero, one), directory, _ = ranks
    assert zero["checkpoint"]["step"] == one["checkpoint"]["step"] == 90
    (name,) = checkpoints(directory / "checkpoint")
    assert name == f"gradwatch-vanishing-step={zero['checkpoint']['alerts'][0]['step']}.ckpt"
    assert "state_dict" in torch.load(directory / "checkpoint/checkpoints" / name, weights_only=True)


@pytest.mark.slow
def test_no_rank_waits_for_a_checkpoint_that_cannot_be_saved(ranks: Any) -> None:
    (zero, one), _, _ = ranks
    assert zero["unsaved"]["step"] == one["unsaved"]["step"] == 90


@pytest.mark.slow
def test_a_function_is_called_on_every_rank_with_what_rank_zero_saw(ranks: Any) -> None:
    (zero, one), _, _ = ranks
    assert zero["function"]["heard"] == one["function"]["heard"] == zero["function"]["alerts"]


@pytest.mark.slow
def test_ranks_stop_together_though_the_watch_has_failed_on_one(ranks: Any) -> None:
    (zero, one), _, _ = ranks
    assert (zero["broken"]["is_off"], one["broken"]["is_off"]) == (False, True)
    assert zero["broken"]["step"] == one["broken"]["step"] < 70


@pytest.mark.slow
def test_what_was_announced_is_in_the_file(ranks: Any) -> None:
    (zero, _), directory, _ = ranks
    lines = [json.loads(line) for line in (directory / "stop/alerts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "opened"] == [zero["stop"]["alerts"][0]["step"]]
