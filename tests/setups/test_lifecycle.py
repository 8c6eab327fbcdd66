"""How a run begins, is interrupted and ends: nothing is left behind, and what comes next is as if it had not been."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_gradwatch import GradWatch, GradWatchWarning
from tests.setups.by_hand import train_by_hand
from tests.setups.published import numbers, same
from tests.tasks import (
    Classifier,
    deep_net,
    digits,
    fit,
    make_classifier_class,
    quiet_trainer,
    read_events,
    scalars,
    small_net,
)

pytestmark = pytest.mark.slow

AT = 3
"""The step at which a run is interrupted: one that is sampled."""

HAS_PROC = Path("/proc/self/fd").exists()

both_namespaces = pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Lightning ignores Ctrl+C for ever once it has been pressed."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def hooks_on(model: nn.Module, *optimizers: torch.optim.Optimizer) -> list[str]:
    """Every hook that torch knows, on modules, parameters and optimizers."""
    owners: list[tuple[str, Any]] = [*model.named_modules(), *((type(o).__name__, o) for o in optimizers)]
    found = [(name, key, hooks) for name, owner in owners for key, hooks in vars(owner).items() if "hook" in key]
    for name, parameter in model.named_parameters():
        for key in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            found.append((name, key, getattr(parameter, key)))
    return [f"{name}: {key}" for name, key, hooks in found if hooks]


def open_files() -> Counter[str]:
    """What this process holds open."""
    files: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the directory is closed by now
            files[os.readlink(descriptor)] += 1
    return files


def failing(base: type, place: str, failure: BaseException, at: int = AT) -> Any:
    """A kind of Callback or LightningModule that fails in one of its hooks, from the chosen step on."""

    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self.trainer if isinstance(self, nn.Module) else args[0]
        if trainer.global_step >= at:
            raise failure
        return getattr(base, place)(self, *args, **kwargs)

    return type("Failing", (base,), {place: hook})


class Prompt(nn.Module):
    """Its output is its parameter, so that a hook on the one is a hook on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(64))

    def forward(self) -> Tensor:
        return self.weight


class Prompted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = Prompt()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.prompt()


def prompted_net() -> nn.Sequential:
    return nn.Sequential(Prompted(), *small_net())


class Stream(IterableDataset[Any]):
    """The batches of the digits, and a failure after some of them."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure

    def __iter__(self) -> Iterator[Any]:
        yield from islice(digits(), AT if self.failure else None)
        if self.failure:
            raise self.failure


class Fuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("stop here")


class Explosive(Classifier):  # type: ignore[misc, valid-type]
    """Fails in the middle of a backward pass."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.net[:5](batch[0])
        logits = self.net[5](Fuse.apply(x) if self.trainer.global_step >= AT else x)
        return nn.functional.cross_entropy(logits, batch[1])


STARTS = ["on_fit_start", "on_train_start"]
PLACES = [
    "training_step", "backward pass", "data loader", "on_train_batch_start", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end", "on_validation_batch_start", *STARTS,
]  # fmt: skip


def interrupt(
    place: str, failure: BaseException, *callbacks: Any, directory: Path, **options: Any
) -> tuple[Any, pl.Trainer]:
    """A run of 30 steps that is interrupted at the fourth, or before the first; its model and its Trainer."""
    kind, data = Classifier, DataLoader(Stream(failure if place == "data loader" else None), batch_size=None)
    if place == "training_step":
        kind = failing(Classifier, place, failure)
    elif place == "backward pass":
        kind = Explosive
    elif place != "data loader":
        callbacks = (*callbacks, failing(pl.Callback, place, failure, at=0 if place in STARTS else AT)())
    model = kind(prompted_net())
    model.validation_step = lambda batch, batch_idx: None
    trainer = quiet_trainer(
        *callbacks, directory=directory, max_steps=30, log_every_n_steps=2, val_check_interval=1, limit_val_batches=1,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip
    with pytest.raises((type(failure), SystemExit)):
        trainer.fit(model, data, digits())
    return model, trainer


class Spy(pl.Callback):
    """Shows that there was something to leave behind."""

    hooks: frozenset[str] = frozenset()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.hooks |= {*hooks_on(pl_module)}

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self.hooks |= {*hooks_on(pl_module)}


def check_nothing_is_left(directory: Path, place: str, failure: BaseException, **options: Any) -> None:
    """Neither on the model nor in the callback."""
    watch, spy = GradWatch(dense_steps=99), Spy()
    model, trainer = interrupt(place, failure, watch, spy, directory=directory / "first", **options)
    assert {"net.1: _forward_hooks", "net.0.prompt.weight: _backward_hooks"} <= spy.hooks or place in STARTS
    assert hooks_on(model, *trainer.optimizers) == []
    for name, one in (("again", watch), ("fresh", GradWatch(dense_steps=99))):
        fit(one, directory=directory / name, max_steps=20, log_every_n_steps=3)
    assert same(numbers(directory / "again"), numbers(directory / "fresh"))


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_leaves_no_hook_behind_and_the_next_run_is_a_fresh_one(tmp_path: Path, place: str) -> None:
    check_nothing_is_left(tmp_path, place, RuntimeError("stop here"))


@pytest.mark.parametrize("place", ["training_step", "data loader", "on_after_backward"])
def test_neither_does_a_keyboard_interrupt(tmp_path: Path, place: str) -> None:
    check_nothing_is_left(tmp_path, place, KeyboardInterrupt())


@pytest.mark.parametrize("place", ["training_step", "on_after_backward", "on_validation_batch_start"])
def test_neither_does_a_failure_between_the_micro_batches_of_a_step(tmp_path: Path, place: str) -> None:
    check_nothing_is_left(tmp_path, place, RuntimeError("stop here"), accumulate_grad_batches=2)


@pytest.mark.skipif(not HAS_PROC, reason="needs /proc, where open files are listed")
@pytest.mark.parametrize("place", ["the end", *PLACES])
def test_no_file_stays_open(tmp_path: Path, place: str) -> None:
    before = open_files()
    if place == "the end":
        with pytest.warns(GradWatchWarning):
            fit(GradWatch(), Classifier(deep_net()), directory=tmp_path, max_steps=12, log_every_n_steps=2)
        assert (tmp_path / "alerts.jsonl").exists()
    else:
        interrupt(place, RuntimeError("stop here"), GradWatch(), directory=tmp_path)
    assert open_files() - before == Counter()


@pytest.mark.skipif(not HAS_PROC, reason="needs /proc, where open files are listed")
def test_an_open_file_would_be_seen(tmp_path: Path) -> None:
    before = open_files()
    with (tmp_path / "alerts.jsonl").open("w"):
        assert open_files() - before == {str(tmp_path / "alerts.jsonl"): 1}


@pytest.mark.parametrize(
    ("place", "last"), [("training_step", 2), ("on_before_optimizer_step", 3), ("on_fit_start", 0)]
)
def test_an_interrupted_run_publishes_what_it_has_seen(tmp_path: Path, place: str, last: int) -> None:
    interrupt(place, RuntimeError("stop here"), GradWatch(), directory=tmp_path)
    totals = [step.total for step in train_by_hand(prompted_net(), AT + 1)]
    expected = {step: totals[step] for step in {1, last} if 0 < step <= last}
    found = {step: norm for (tag, step), norm in numbers(tmp_path).items() if tag == "gradwatch/total_norm"}
    assert found == pytest.approx(expected, rel=1e-5)


@both_namespaces
def test_a_run_that_ends_well_leaves_no_hook_behind(tmp_path: Path, namespace: str) -> None:
    space: Any = importlib.import_module(namespace)
    trainer = space.Trainer(callbacks=[GradWatch()], max_steps=5, accelerator="cpu", default_root_dir=tmp_path)
    model = make_classifier_class(space)(small_net())
    trainer.fit(model, digits())
    assert hooks_on(model, *trainer.optimizers) == []


@both_namespaces
@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_fast_dev_run_writes_nothing_and_says_nothing(
    tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: Any = importlib.import_module(namespace)
    watch, model = GradWatch(), make_classifier_class(space)(small_net())
    trainer = space.Trainer(callbacks=[watch], fast_dev_run=2, accelerator="cpu", enable_model_summary=False)
    trainer.fit(model, digits())
    assert list(tmp_path.iterdir()) == []
    assert hooks_on(model, *trainer.optimizers) == []
    assert list(watch.profile) == ["net.0", "net.2", "net.4"]


def test_overfit_batches_is_watched_like_any_run(tmp_path: Path) -> None:
    fit(GradWatch(), directory=tmp_path, max_steps=40, overfit_batches=2, log_every_n_steps=1)
    steps = train_by_hand(small_net(), 40, batches=2)
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    assert found == pytest.approx({i: step.total for i, step in enumerate(steps)}, rel=1e-4)


class Validated(Classifier):  # type: ignore[misc, valid-type]
    """Has a part that is trained by nobody and runs in validation only, on other data."""

    def __init__(self) -> None:
        super().__init__(small_net())
        self.judge = nn.Linear(10, 2)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.judge(self.net(100 * batch[0])).sum()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_validation_between_the_steps_and_in_the_middle_of_them_is_not_seen(tmp_path: Path, accumulated: int) -> None:
    options = {"max_steps": 60, "log_every_n_steps": 3, "accumulate_grad_batches": accumulated}
    for name, validation in (("with", 1), ("without", 0)):
        pl.seed_everything(1, verbose=False)
        watch = GradWatch(sample_every_n_steps=2)
        trainer = quiet_trainer(
            watch, directory=tmp_path / name, val_check_interval=1, limit_val_batches=validation, **options
        )
        trainer.fit(Validated(), digits(), digits())
        assert watch.alerts == []
    assert same(numbers(tmp_path / "with"), numbers(tmp_path / "without"))


class Tunable(Classifier):  # type: ignore[misc, valid-type]
    """Learning rate and batch size are attributes, as the Tuner wants them."""

    def __init__(self) -> None:
        super().__init__(small_net())
        self.lr, self.batch_size = 0.1, 64

    def train_dataloader(self) -> Any:
        return digits(self.batch_size)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def find_lr(trainer: pl.Trainer, model: Any) -> None:
    Tuner(trainer).lr_find(model, num_training=12, update_attr=False)


def find_batch_size(trainer: pl.Trainer, model: Any) -> None:
    Tuner(trainer).scale_batch_size(model, steps_per_trial=2, init_val=16, max_trials=4)
    assert model.batch_size > 64
    model.batch_size = 64


@pytest.mark.parametrize("tune", [find_lr, find_batch_size])
def test_the_tuner_is_not_watched_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tuned", "fresh"):
        watch, model = GradWatch(), Tunable()
        trainer = quiet_trainer(watch, directory=tmp_path / name, max_steps=30, log_every_n_steps=3)
        if name == "tuned":
            tune(trainer, model)
            assert hooks_on(model) == []
            assert numbers(tmp_path / name) == {} == watch.profile
        trainer.fit(model)
    assert same(numbers(tmp_path / "tuned"), numbers(tmp_path / "fresh"))


@pytest.mark.parametrize("finder_first", [True, False])
def test_a_finder_of_learning_rates_among_the_callbacks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finder_first: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tuned", "fresh"):
        callbacks: list[Any] = [GradWatch()]
        if name == "tuned":
            callbacks.insert(0 if finder_first else 1, LearningRateFinder(num_training_steps=12, update_attr=False))
        model = Tunable()
        quiet_trainer(*callbacks, directory=tmp_path / name, max_steps=30, log_every_n_steps=3).fit(model)
        assert hooks_on(model) == []
    assert same(numbers(tmp_path / "tuned"), numbers(tmp_path / "fresh"))


def test_a_second_fit_of_the_same_model_goes_on_with_the_first(tmp_path: Path) -> None:
    watch, model = GradWatch(), Classifier(deep_net())
    trainer = quiet_trainer(watch, directory=tmp_path, max_steps=14, log_every_n_steps=5)
    with pytest.warns(GradWatchWarning, match="Gradients vanish with depth"):
        trainer.fit(model, digits())
    (alert,) = watch.alerts
    trainer.fit_loop.epoch_loop.max_steps = 40
    trainer.fit(model, digits())  # a second warning would be an error here
    assert watch.alerts == [alert]
    assert len((tmp_path / "alerts.jsonl").read_text().splitlines()) == 1
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    assert list(found) == [4, 9, 13, 14, 19, 24, 29, 34, 39]
    net = deep_net()
    totals = [step.total for step in [*train_by_hand(net, 14), *train_by_hand(net, 26)]]
    assert list(found.values()) == pytest.approx([totals[step] for step in found], rel=1e-4)


def test_a_second_fit_of_another_model_is_a_run_of_its_own(tmp_path: Path) -> None:
    """By the same Trainer: its counters go on, but what was known of the first model is no news of the second."""
    watch = GradWatch()
    trainer = quiet_trainer(watch, directory=tmp_path, max_steps=15, log_every_n_steps=5)
    for max_steps in (15, 30):
        trainer.fit_loop.epoch_loop.max_steps = max_steps
        with pytest.warns(GradWatchWarning, match="Gradients vanish with depth"):
            trainer.fit(Classifier(deep_net()), digits())
        assert [(alert.kind, alert.step) for alert in watch.alerts] == [("vanishing", max_steps - 6)]
    trainer.fit_loop.epoch_loop.max_steps = 60
    trainer.fit(Classifier(small_net()), digits())
    assert watch.alerts == []
    assert trainer.callback_metrics["gradwatch/alerts"] == 0.0
    drift = {step: value for (tag, step), value in numbers(tmp_path).items() if tag == "gradwatch/weight_drift"}
    assert drift[34] == pytest.approx(1.0, abs=0.05)


def test_another_trainer_starts_with_a_clean_sheet(tmp_path: Path) -> None:
    watch = GradWatch()
    with pytest.warns(GradWatchWarning):
        fit(watch, Classifier(deep_net()), max_steps=12)
    fit(watch, directory=tmp_path / "again", max_steps=12, log_every_n_steps=3)
    fit(GradWatch(), directory=tmp_path / "fresh", max_steps=12, log_every_n_steps=3)
    assert watch.alerts == []
    assert same(numbers(tmp_path / "again"), numbers(tmp_path / "fresh"))


COPIES: dict[str, Callable[[GradWatch], GradWatch]] = {
    "copied": copy.deepcopy,
    "pickled": lambda watch: pickle.loads(pickle.dumps(watch)),
    "copied with its Trainer": lambda watch: vars(copy.deepcopy(quiet_trainer(watch)))["callbacks"][0],
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_works_like_the_original_before_and_after_use(tmp_path: Path, way: str) -> None:
    original = GradWatch(include="net.*", sample_every_n_steps=3)
    copied = COPIES[way](original)
    for name, watch in (("original", original), ("copied", copied)):
        with pytest.warns(GradWatchWarning):
            fit(watch, Classifier(deep_net()), directory=tmp_path / name, max_steps=30, log_every_n_steps=3)
    used = COPIES[way](copied)
    assert used.alerts == copied.alerts == original.alerts != []
    with pytest.warns(GradWatchWarning):
        fit(used, Classifier(deep_net()), directory=tmp_path / "used", max_steps=30, log_every_n_steps=3)
    assert same(numbers(tmp_path / "copied"), numbers(tmp_path / "original"))
    assert same(numbers(tmp_path / "used"), numbers(tmp_path / "original"))


def test_a_copy_made_in_the_middle_of_a_run_disturbs_nobody(tmp_path: Path) -> None:
    class Copying(pl.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            (watch,) = [c for c in trainer.callbacks if isinstance(c, GradWatch)]
            copied = pickle.loads(pickle.dumps(copy.deepcopy(watch)))
            assert copied.alerts == watch.alerts
            assert copied.settings == watch.settings

    for name, others in (("copying", [Copying()]), ("alone", [])):
        trainer = quiet_trainer(GradWatch(), *others, directory=tmp_path / name, max_steps=30, log_every_n_steps=3)
        with pytest.warns(GradWatchWarning):
            trainer.fit(Classifier(deep_net()), digits())
    assert same(numbers(tmp_path / "copying"), numbers(tmp_path / "alone"))
