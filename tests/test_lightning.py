"""What is asked of Lightning and of what users have written for it: an odd answer costs that answer, and no more."""

from __future__ import annotations

import contextlib
import copy
import pickle
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import Precision
from torch.utils.data import DataLoader, RandomSampler
from torchmetrics import MeanMetric

from lightning_gradwatch import GradWatch, GradWatchWarning, _lightning, _places
from lightning_gradwatch._clipping_by_hand import before_clipping_by_hand
from lightning_gradwatch._lightning import LightningHost
from lightning_gradwatch.outputs import flight
from tests.tasks import Classifier, digits, fit, quiet_trainer, small_net


class OwnLogger(Logger):
    """A logger of somebody's own, with a property that is made to order."""

    save_dir, log_dir, version = "logs", None, 3
    name: Any = "own"

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def own_logger(**properties: Any) -> Logger:
    """A logger whose properties are these; functions are called each time."""
    made = {name: property(value) if callable(value) else value for name, value in properties.items()}
    return type("OwnLogger", (OwnLogger,), made)()


def refuse(self: Any) -> Any:
    raise ConnectionError("no server")


def mock(self: Any) -> Any:
    return MagicMock()


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, "logs/own/3"),
        ({"version": "v"}, "logs/own/v"),
        ({"name": None, "version": None}, "logs"),
        ({"log_dir": Path("elsewhere")}, "elsewhere"),
        ({"log_dir": "elsewhere"}, "elsewhere"),
        ({"save_dir": None}, None),
        *(({name: mock}, None) for name in ("log_dir", "save_dir", "name", "version")),
        ({"log_dir": refuse}, "logs/own/3"),
        ({"name": refuse}, None),
        ({"version": refuse}, None),
    ],
)
def test_only_a_path_is_a_directory(
    properties: dict[str, Any], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = fit(GradWatch(), logger=own_logger(**properties), max_steps=3, default_root_dir=".")
    assert _places.log_dir(trainer) == expected
    (where,) = {path.parent for path in Path().rglob("*") if path.is_file()}
    assert str(where) == expected or (expected is None and where.parent == Path("gradwatch"))


class OddSampler(RandomSampler):
    @property
    def seed(self) -> int:
        raise RuntimeError("asked too early")


def test_a_sampler_and_a_batch_size_that_json_does_not_know_cost_no_record(tmp_path: Path) -> None:
    data = digits().dataset
    loader = DataLoader(data, batch_size=64, sampler=OddSampler(data), drop_last=True)  # type: ignore[arg-type]
    loader.__dict__["batch_size"] = torch.tensor(64)
    fit(GradWatch(), data=loader, directory=tmp_path, max_steps=5)
    first, steps = flight.read(flight.files(tmp_path)[-1])
    assert first["batches"] == [{"batch_size": None, "num_workers": 0, "sampler": "OddSampler"}]
    assert len(steps) == 5


class Counted(MeanMetric):
    """Counts how often somebody wants to know it."""

    num_computed = 0

    def compute(self) -> torch.Tensor:
        type(self).num_computed += 1
        return super().compute()  # type: ignore[no-any-return]


class Measured(Classifier):  # type: ignore[misc, valid-type]
    def __init__(self, breaks: bool) -> None:
        super().__init__(small_net())
        self.mean, self.breaks = Counted(), breaks

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.mean(loss.detach())
        self.log("mean", self.mean, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        if self.breaks:
            raise KeyError("before Lightning computes the epoch's mean")


@pytest.mark.parametrize("breaks", [False, True])
def test_metrics_of_the_user_are_computed_as_often_as_without_us(breaks: bool, tmp_path: Path) -> None:
    """Under DDP every such computation waits for the other ranks, which may be far away when one breaks off."""
    counts = []
    for watch in (None, GradWatch(progress_bar=True, log_every_n_steps=1)):
        Counted.num_computed = 0
        with pytest.raises(KeyError) if breaks else contextlib.nullcontext():
            fit(watch, Measured(breaks), logger=CSVLogger(tmp_path), max_epochs=2, max_steps=-1, limit_train_batches=5)
        counts.append(Counted.num_computed)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("kind", ["callback_metrics", "progress_bar_metrics"])
def test_lightning_keeps_the_numbers_where_we_put_them(kind: Any) -> None:
    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            assert _lightning.known_metrics(trainer, kind) is getattr(trainer, kind)

    quiet_trainer(Look(), max_steps=3).fit(Classifier(small_net()), digits())


class ByHand(Classifier):  # type: ignore[misc, valid-type]
    """Steps and clips in manual optimization."""

    def __init__(self) -> None:
        super().__init__(small_net())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        optimizer.step()


def test_a_precision_plugin_is_pickled_and_copied_in_mid_run_as_without_us() -> None:
    class Pickling(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            plugin = trainer.precision_plugin
            for same in (pickle.loads(pickle.dumps(plugin)), copy.deepcopy(plugin)):
                assert type(same) is type(plugin)
                assert same.clip_gradients == type(plugin).clip_gradients.__get__(same)

    trainer = fit(GradWatch(), ByHand(), callbacks=(Pickling(),), max_steps=3)
    assert "clip_gradients" not in vars(trainer.precision_plugin)


def test_clipping_by_hand_is_left_as_it_was_in_whatever_order_it_is_undone() -> None:
    trainer = quiet_trainer()
    plugin: Any = trainer.precision_plugin
    heard: list[Any] = []
    for own in (None, plugin.clip_gradients):
        if own is not None:
            plugin.clip_gradients = own
        undo = [before_clipping_by_hand(trainer, heard.append) for _ in range(3)]
        for place in (1, 0, 2):
            undo[place]()
        assert vars(plugin).get("clip_gradients") is own
        undone = before_clipping_by_hand(trainer, heard.append)
        ours, plugin.clip_gradients = plugin.clip_gradients, lambda *args: None  # somebody comes above
        undone()
        plugin.clip_gradients = ours  # and goes again
        plugin.clip_gradients(torch.optim.SGD([torch.zeros(1)]), 0.1)
        assert heard == []


class Refusing(Precision):
    """A precision plugin that is made to order, and takes no attributes of others."""

    precision: Any = "32-true"

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "clip_gradients":
            raise AttributeError("frozen")
        super().__setattr__(name, value)


def test_a_precision_plugin_that_takes_no_attributes_costs_the_look_before_clipping_alone() -> None:
    with pytest.warns(GradWatchWarning, match="changes between") as caught:
        fit(GradWatch(), ByHand(), plugins=[Refusing()], max_steps=3)
    assert [w.category for w in caught].count(GradWatchWarning) == 1


class Unfit:
    """Answers questions with what nobody can make anything of."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure

    def __getattr__(self, name: str) -> Any:
        if self.failure is not None:
            raise self.failure
        return np.zeros(3)  # of which nobody knows whether it is true


class Collecting(OwnLogger):
    """Remembers what it is given."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.known = {**vars(self).get("known", {}), **metrics}


@pytest.mark.parametrize("failure", [None, KeyError("no")])
@pytest.mark.parametrize("name", ["log_dir", "name", "version", "_prefix", "LOGGER_JOIN_CHAR"])
def test_a_logger_whose_answers_are_unfit_is_given_its_numbers(
    failure: Exception | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unfit = property(lambda self: Unfit(failure).anything)
    logger = type("Unfitting", (Collecting,), {name: unfit})()
    fit(GradWatch(log_every_n_steps=1), logger=logger, max_steps=3)
    assert "gradwatch/total_norm" in logger.known


@pytest.mark.parametrize("failure", [None, AttributeError("no"), KeyError("no")])
@pytest.mark.parametrize("manual", [False, True])
def test_a_scaler_whose_answers_are_unfit_is_none(failure: Exception | None, manual: bool) -> None:
    class Scaling(Precision):
        scaler = Unfit(failure)

    class Raising(Precision):
        @property
        def scaler(self) -> Any:
            raise RuntimeError("not yet")

    for plugin in (Scaling(), Raising()):
        watch = GradWatch()
        trainer = fit(watch, ByHand() if manual else None, plugins=[plugin], max_steps=3)
        assert LightningHost(trainer, trainer.lightning_module, watch).loss_scale() is None
        assert watch.profile


class Guarded(torch.optim.SGD):
    """An optimizer that refuses in its own way to be asked for what it lacks."""

    def __getattr__(self, name: str) -> Any:
        asked_by_torch = name.startswith("__") or name in ("grad_scale", "found_inf")
        raise AttributeError(name) if asked_by_torch else RuntimeError(name)


def test_an_optimizer_that_refuses_questions_is_watched() -> None:
    watch = GradWatch(auto_clip=0.1)
    fit(watch, Classifier(small_net(), optimizer=Guarded), max_steps=3)
    assert watch.profile


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_numbers_for_others_are_on_the_host_whatever_the_default_device_is() -> None:
    class Elsewhere(pl.Callback):
        def on_train_start(self, *args: Any) -> None:
            torch.set_default_device("meta")

    class Silent(Classifier):  # type: ignore[misc, valid-type]
        def log(self, *args: Any, **kwargs: Any) -> None: ...

    batches = list(digits())
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    try:
        trainer = fit(None, Silent(small_net()), loader, callbacks=(Elsewhere(), GradWatch()), max_steps=12)
    finally:
        torch.set_default_device(None)
    assert trainer.global_step == 12
    assert {metric.device.type for metric in trainer.callback_metrics.values()} == {"cpu"}
