"""``GRADWATCH=1``: GradWatch joins Trainers of both namespaces without a change of code, and never breaks one."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from lightning_gradwatch import GradWatch, GradWatchWarning
from tests.tasks import Classifier, deep_net, digits, make_classifier_class, quiet_trainer, read_events, small_net

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


def test_where_it_cannot_be_right_it_says_so_and_training_goes_on(wanted: None) -> None:
    trainer = quiet_trainer()
    (watch,) = watches_of(trainer)
    trainer.strategy.__class__ = type("Sharded", (FSDPStrategy, type(trainer.strategy)), {})
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

    monkeypatch.setattr(GradWatch, "from_environment", classmethod(fails))
    with caplog.at_level(logging.WARNING):
        quiet_trainer().fit(Classifier(small_net()), digits())
    assert "cannot join this Trainer: RuntimeError('on purpose')" in caplog.text
