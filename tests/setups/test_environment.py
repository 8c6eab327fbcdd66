"""``GRADWATCH=1``: GradWatch joins Trainers of both namespaces without a change of code, and never breaks one."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy

from lightning_gradwatch import GradWatch, GradWatchWarning, _lightning
from lightning_gradwatch.callback import GUEST_KEY
from lightning_gradwatch.guest import GradWatchGuest
from lightning_gradwatch.outputs import flight
from tests.tasks import Classifier, deep_net, digits, fit, make_classifier_class, quiet_trainer, read_events, small_net

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def watches_of(trainer: Any) -> list[GradWatch]:
    return [callback for callback in trainer.callbacks if isinstance(callback, GradWatch)]


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWATCH", "1")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_it_joins_every_trainer_and_alerts(namespace: str, tmp_path: Path, wanted: None) -> None:
    module = importlib.import_module(namespace)
    logger = importlib.import_module(f"{namespace}.loggers").TensorBoardLogger(tmp_path, name="", version="")
    trainer = module.Trainer(
        max_steps=12, accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False
    )
    (watch,) = watches_of(trainer)
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        trainer.fit(make_classifier_class(module)(deep_net()), digits())
    assert [alert.kind for alert in watch.alerts] == ["vanishing"]
    assert "gradwatch/total_norm" in read_events(tmp_path).Tags()["scalars"]


@pytest.mark.parametrize("value", ["", "0", "false", " No ", None])
def test_unasked_it_stays_out(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADWATCH", raising=False)
    if value is not None:
        monkeypatch.setenv("GRADWATCH", value)
    assert watches_of(quiet_trainer()) == []


def test_a_value_that_is_neither_yes_nor_no_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWATCH", "maybe")
    with pytest.warns(GradWatchWarning, match=r"GRADWATCH must be 1 or 0, but 'maybe' came.*cure"):
        trainer = quiet_trainer()
    assert watches_of(trainer) == []


@pytest.mark.parametrize("where", ["callbacks", "configure_callbacks"])
def test_it_steps_back_for_an_explicit_one(where: str, tmp_path: Path, wanted: None) -> None:
    explicit = GradWatch(dense_steps=3)

    class Own(Classifier):  # type: ignore[misc, valid-type]
        def configure_callbacks(self) -> Any:
            return [explicit] if where == "configure_callbacks" else []

    trainer = quiet_trainer(*([explicit] if where == "callbacks" else []), directory=tmp_path, log_every_n_steps=5)
    trainer.fit(Own(small_net()), digits())
    assert explicit.profile
    assert all(not watch.profile for watch in watches_of(trainer) if watch is not explicit)
    points = read_events(tmp_path).Scalars("gradwatch/total_norm")
    assert [point.step for point in points] == [4, 9]
    state = trainer._checkpoint_connector.dump_checkpoint()["callbacks"]
    assert [key for key in state if key.startswith("GradWatch")] == ["GradWatch"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize("first", ["environment", "explicit"])
def test_one_goes_on_where_the_other_has_watched(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(kind: str, **options: Any) -> tuple[pl.Trainer, GradWatch]:
        monkeypatch.setenv("GRADWATCH", "1" if kind == "environment" else "0")
        trainer = quiet_trainer(*([GradWatch()] if kind == "explicit" else []), **options)
        trainer.fit(Classifier(deep_net()), digits(), ckpt_path=path if path.exists() else None)
        return trainer, watches_of(trainer)[0]

    path = tmp_path / "half.ckpt"
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        trainer, before = train(first, max_steps=12)
    trainer.save_checkpoint(path)
    _, after = train("explicit" if first == "environment" else "environment", max_steps=15)
    assert after.alerts == before.alerts


class Plain(pl.Callback):
    """A callback that a Trainer takes any number of."""


class Inner(pl.Callback):
    """Trains, or validates, another model in the course of a training, with the callbacks of that one."""

    def __init__(self, callbacks: list[Any], hook: str, way: str) -> None:
        self.callbacks, self.way = callbacks, way
        self.trainer: Any = None
        setattr(self, hook, self.begin)

    def begin(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step >= 7 and self.trainer is None:
            if self.way == "breaks off":
                self.callbacks.append(Breaking())
            self.trainer = pl.Trainer(
                callbacks=self.callbacks, max_steps=5, limit_val_batches=2, accelerator="cpu", logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            model = (Validated if self.way == "validate" else Classifier)(small_net())
            if self.way == "breaks off":
                with pytest.raises(KeyError):
                    self.trainer.fit(model, digits())
            else:
                getattr(self.trainer, self.way)(model, digits())


class Breaking(pl.Callback):
    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        raise KeyError("the inner training's own")


class Validated(Classifier):  # type: ignore[misc, valid-type]
    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_list_of_callbacks_may_be_given_to_many_trainers(namespace: str, tmp_path: Path, wanted: None) -> None:
    module = importlib.import_module(namespace)
    loggers = importlib.import_module(f"{namespace}.loggers")
    callbacks: list[Any] = [type("Plain", (module.Callback,), {})()]
    for fold in range(3):
        trainer = module.Trainer(
            callbacks=callbacks, max_steps=6, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, logger=loggers.TensorBoardLogger(tmp_path, "", fold), log_every_n_steps=2,
        )  # fmt: skip
        trainer.fit(make_classifier_class(module)(small_net()), digits())
        (watch,) = watches_of(trainer)
        assert len(watch.profile) == 3
        points = read_events(tmp_path / f"version_{fold}").Scalars("gradwatch/total_norm")
        assert [point.step for point in points] == [1, 3, 5]


GUEST, EXPLICIT = GradWatchGuest(), GradWatch()


@pytest.mark.parametrize("asked", ["0", "1"])
@pytest.mark.parametrize(
    ("given", "watching"),
    [
        (lambda: [GradWatchGuest(), GradWatchGuest()], 0),
        (lambda: [GUEST, Plain(), GUEST], 0),
        (lambda: [GUEST, copy.deepcopy(GUEST), pickle.loads(pickle.dumps(GUEST))], 0),
        (lambda: [GradWatchGuest(), EXPLICIT, GradWatchGuest()], 1),
        (lambda: [EXPLICIT, GUEST], 0),
        (lambda: _lightning.callbacks(quiet_trainer(GUEST)), 0),
    ],
    ids=["two", "one twice", "copies", "around an explicit one", "behind an explicit one", "of another Trainer"],
)
def test_guests_are_harmless_in_any_number_and_any_order(
    given: Any, watching: int, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = given()
    monkeypatch.setenv("GRADWATCH", asked)
    trainer = quiet_trainer(*callbacks, max_steps=3)
    for _ in range(2):  # and again
        trainer.fit(Classifier(small_net()), digits())
        assert watches_of(trainer) == [callbacks[watching]]
        assert len(callbacks[watching].profile) == 3
        trainer.fit_loop.epoch_loop.max_steps = 6
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    is_guest = isinstance(callbacks[watching], GradWatchGuest)
    assert ([*checkpoint["callbacks"]], GUEST_KEY in checkpoint) == ([] if is_guest else ["GradWatch"], is_guest)


@pytest.mark.parametrize("kind", ["guest", "explicit"])
@pytest.mark.parametrize(
    ("hook", "way"),
    [
        ("on_train_batch_end", "fit"),
        ("on_train_end", "fit"),
        ("on_train_batch_end", "validate"),
        ("on_train_batch_end", "breaks off"),
    ],
)
def test_a_training_within_a_training_disturbs_neither(kind: str, hook: str, way: str, tmp_path: Path) -> None:
    watch = GradWatchGuest() if kind == "guest" else GradWatch()
    callbacks: list[Any] = [watch, GradWatchGuest()] if kind == "guest" else [watch]
    inner = Inner(callbacks, hook, way)
    # an explicit one says that it cannot be in two places; a guest leaves it to the next one
    is_said = kind == "explicit" and way != "validate"
    with pytest.warns(GradWatchWarning, match="stays out") if is_said else contextlib.nullcontext():
        trainer = fit(watch, directory=tmp_path, callbacks=(inner,), log_every_n_steps=2)
    assert watches_of(trainer) == [watch]
    points = read_events(tmp_path).Scalars("gradwatch/total_norm")
    assert [point.step for point in points] == [1, 3, 5, 7, 9]
    assert flight.read(flight.files(tmp_path)[-1])[0]["reason"] == "end"
    if way == "fit":
        assert [len(other.profile) for other in watches_of(inner.trainer)] == ([3] if kind == "guest" else [])


def test_two_explicit_ones_are_refused_wherever_the_second_comes_from() -> None:
    class Own(GradWatch):
        """Of a user."""

    class Bringing(Classifier):  # type: ignore[misc, valid-type]
        def configure_callbacks(self) -> Any:
            return [GradWatch()]

    with pytest.raises(ValueError, match=r"list with one GradWatch, but '2 of them' came.*cure"):
        quiet_trainer(Own()).fit(Bringing(small_net()), digits())


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start"])
def test_where_an_explicit_one_refuses_a_guest_says_so_and_leaves(
    hook: str, wanted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyError("a module of somebody's own")

    monkeypatch.setattr(GradWatch, hook, refuses)
    model = Classifier(small_net())
    with pytest.warns(GradWatchWarning, match="GradWatch leaves this Trainer: KeyError"):
        trainer = fit(None, model, max_steps=3)
    assert trainer.global_step == 3
    assert watches_of(trainer) == []
    assert not any(module._forward_hooks for module in model.modules())


def test_nobody_is_missed_where_a_guest_has_watched_and_does_not_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No warning: Lightning tells of callbacks that a checkpoint knows and the Trainer does not."""
    monkeypatch.setenv("GRADWATCH", "1")
    trainer = fit(None, max_steps=6)
    trainer.save_checkpoint(tmp_path / "6.ckpt")
    assert torch.load(tmp_path / "6.ckpt", weights_only=True)[GUEST_KEY]["watchers"][""]["num_steps"] == 6
    monkeypatch.setenv("GRADWATCH", "0")
    trainer = quiet_trainer(max_steps=8)
    trainer.fit(Classifier(small_net()), digits(), ckpt_path=tmp_path / "6.ckpt")
    assert trainer.global_step == 8


@pytest.mark.parametrize("is_old", [False, True], ids=["", "a checkpoint that keeps it among the callbacks"])
def test_a_guest_goes_on_where_a_guest_has_watched(is_old: bool, tmp_path: Path, wanted: None) -> None:
    path = tmp_path / "6.ckpt"
    fit(None, max_steps=6).save_checkpoint(path)
    if is_old:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["callbacks"][GUEST_KEY] = checkpoint.pop(GUEST_KEY)
        torch.save(checkpoint, path)
    trainer = quiet_trainer(max_steps=8)
    trainer.fit(Classifier(small_net()), digits(), ckpt_path=path)
    trainer.save_checkpoint(path)
    assert torch.load(path, weights_only=True)[GUEST_KEY]["watchers"][""]["num_steps"] == 8


def test_where_it_cannot_be_right_it_says_so_and_training_goes_on(wanted: None) -> None:
    trainer = quiet_trainer()
    (watch,) = watches_of(trainer)
    trainer.strategy.__class__ = type("Sharded", (DeepSpeedStrategy, type(trainer.strategy)), {})
    module = Classifier(small_net())
    with pytest.warns(GradWatchWarning, match="`strategy` must be"):
        watch.setup(trainer, module, "fit")
    watch.on_train_start(trainer, module)
    watch.on_before_optimizer_step(trainer, module, torch.optim.SGD(module.parameters(), 0.1))
    assert watch.state_dict() == {}


def test_a_failure_to_join_costs_a_line_in_the_log(
    wanted: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(cls: Any) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(GradWatchGuest, "__init__", fails)
    with caplog.at_level(logging.WARNING):
        quiet_trainer().fit(Classifier(small_net()), digits())
    assert "cannot join this Trainer: RuntimeError('on purpose')" in caplog.text
