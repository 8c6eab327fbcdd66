"""GradWatch in Fabric: it finds what it finds in a Trainer, and changes nothing."""

from __future__ import annotations

import importlib
import pickle
import warnings
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn

from lightning_gradwatch import GradWatch as TrainerGradWatch
from lightning_gradwatch import GradWatchWarning
from lightning_gradwatch.fabric import GradWatch
from lightning_gradwatch.outputs import alerts_file
from tests.tasks import Classifier, deep_net, digits, fit, read_events, scalars, small_net


class Run:
    """A loop as public training scripts write it: accumulation, clipping, checkpoints."""

    def __init__(self, net: nn.Module, namespace: str = "lightning.fabric", **options: Any) -> None:
        kind = importlib.import_module(namespace).Fabric
        arguments = options.pop("arguments", {})
        self.fabric: Fabric = kind(accelerator="cpu", devices=1, **options)
        self.net = net
        model, optimizer = self.fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
        self.model: Any = model
        self.optimizer: Any = optimizer
        self.watch = None if arguments is None else GradWatch(self.fabric, self.model, self.optimizer, **arguments)
        self.norms: list[float] = []

    def train(self, steps: int, every: int = 1, max_norm: float | None = None, start: int = 0) -> GradWatch | None:
        batches = islice(cycle(digits(32)), start * every, (start + steps) * every)
        for place, (inputs, targets) in enumerate(batches, start=1):
            is_last = place % every == 0
            with self.fabric.no_backward_sync(self.model, enabled=not is_last):
                loss = nn.functional.cross_entropy(self.model(inputs), targets)
                self.fabric.backward(loss / every)
            if is_last:
                if max_norm is not None:
                    self.fabric.clip_gradients(self.model, self.optimizer, max_norm=max_norm)
                self.optimizer.step()
                present = [p.grad for p in self.net.parameters() if p.grad is not None]
                self.norms.append(float(torch.nn.utils.get_total_norm(present)))
                self.optimizer.zero_grad()
        return self.watch


def finished(run: Run, *args: Any, **kwargs: Any) -> GradWatch:
    watch = run.train(*args, **kwargs)
    assert watch is not None
    watch.close()
    return watch


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("namespace", ["lightning.fabric", "lightning_fabric"])
def test_it_finds_what_a_trainer_finds(namespace: str, every: int, tmp_path: Path) -> None:
    callback = TrainerGradWatch()
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        fit(callback, Classifier(deep_net()), digits(32), max_steps=10, accumulate_grad_batches=every)
    logger = importlib.import_module(f"{namespace}.loggers").TensorBoardLogger(tmp_path, name="", version="run")
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        watch = finished(Run(deep_net(), namespace, loggers=logger, arguments={"log_every_n_steps": 2}), 10, every)
    (expected,), (found,) = callback.alerts, watch.alerts
    assert (found.kind, found.step, found.cause) == (expected.kind, expected.step, expected.cause)
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    assert found.attribution is not None
    assert list(watch.profile.values()) == pytest.approx(list(callback.profile.values()), rel=1e-4)
    loss = callback.history.numbers["loss"].values
    assert watch.history.numbers["loss"].values == pytest.approx(loss, rel=0.2)  # the sum of the step's, not the last
    events = read_events(tmp_path / "run")
    assert list(scalars(events, "gradwatch/total_norm")) == [1, 3, 5, 7, 9]
    assert [line["event"] for line in alerts_file.read(tmp_path / "run")] == ["opened"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_are_bit_identical_with_and_without(precision: Any) -> None:
    watched, bare = Run(small_net(), precision=precision), Run(small_net(), precision=precision, arguments=None)
    finished(watched, 12)
    bare.train(12)
    assert all(torch.equal(a, b) for a, b in zip(watched.net.parameters(), bare.net.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.net.modules())
    names = ("backward", "clip_gradients_norm", "clip_gradients_value", "optimizer_step")
    assert not any(name in vars(watched.fabric.strategy) for name in names)


def test_norms_are_those_before_fabric_clips_and_ours_clips_before_the_step() -> None:
    bare, clipped = Run(small_net()), Run(small_net())
    first, second = finished(bare, 1), finished(clipped, 1, max_norm=1e-2)
    assert clipped.norms == pytest.approx([1e-2], rel=1e-3)
    norms = [watch.history.numbers["total_norm"].values for watch in (first, second)]
    assert norms[0] == pytest.approx(norms[1])
    ours = Run(small_net(), arguments={"auto_clip": 1e-2})
    finished(ours, 5)
    assert ours.norms == pytest.approx([1e-2] * 5, rel=1e-3)


def test_gradients_of_a_loss_scaler_are_unscaled() -> None:
    from lightning.fabric.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = Run(small_net(), plugins=MixedPrecision("16-mixed", "cpu", scaler=scaler))
    plain = Run(small_net())
    found = [finished(run, 6).history.numbers for run in (scaled, plain)]
    for name in ("total_norm", "loss"):
        assert found[0][name].values == pytest.approx(found[1][name].values, rel=2e-2)


def test_a_run_goes_on_from_what_fabric_has_saved(tmp_path: Path) -> None:
    run = Run(deep_net())
    with pytest.warns(GradWatchWarning, match="vanish"):
        first = run.train(12)
    assert first is not None
    run.fabric.save(tmp_path / "half.ckpt", {"model": run.model, "optimizer": run.optimizer, "watch": first})
    first.close()
    again = Run(deep_net())
    state = {"model": again.model, "optimizer": again.optimizer, "watch": again.watch}
    again.fabric.load(tmp_path / "half.ckpt", state, weights_only=True)
    watch = finished(again, 5, start=12)  # a second warning would be an error here
    assert watch.alerts == first.alerts
    assert watch.state_dict()["num_steps"] == 17


def test_networks_whose_optimizers_take_turns_are_watched_apart() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    nets: dict[str, Any] = {
        "generator": small_net(),
        "critic": nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1)),
    }
    optimizers: list[Any] = []
    for name, net in list(nets.items()):
        nets[name], optimizer = fabric.setup(net, torch.optim.Adam(net.parameters()))
        optimizers.append(optimizer)
    watch = GradWatch(fabric, nets, optimizers)
    for inputs, _ in islice(digits(), 6):
        for turn in (0, 1, 1):
            made = nets["critic"](nets["generator"](inputs))
            for optimizer in optimizers:
                optimizer.zero_grad()
            fabric.backward(made.mean() if turn else -made.mean())
            optimizers[turn].step()
    counted = {one.watcher.name: one.watcher.sampling.num_steps for one in watch._session.watches}
    layers = {name.split(".")[0] for name in watch.profile}
    watch.close()
    assert counted == {"Adam": 6, "Adam-1": 12}
    assert layers == {"generator", "critic"}


def test_the_loss_is_that_of_ones_own_network_and_step() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    first, second = small_net(), small_net()
    model, optimizer = fabric.setup(first, torch.optim.SGD(first.parameters(), lr=0.1))
    other, others = fabric.setup(second, torch.optim.SGD(second.parameters(), lr=0.1))
    watch, losses = GradWatch(fabric, model, optimizer), []
    for place, (inputs, targets) in enumerate(islice(digits(), 10)):
        loss = nn.functional.cross_entropy(model(inputs), targets, reduction="none" if place % 2 else "mean")
        if place == 4:  # a step that the loop itself leaves out
            fabric.backward(loss * torch.nan)
            optimizer.zero_grad()
            continue
        fabric.backward(loss, gradient=torch.full_like(loss, 1 / loss.numel()))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach().mean()))
        fabric.backward(other(inputs).sum() * torch.nan)
        others.step()
    watch.close()
    assert watch.alerts == []
    assert watch.history.numbers["loss"].values == pytest.approx(losses, rel=1e-5)


def test_a_model_that_is_trained_in_eval_mode_is_watched() -> None:
    run = Run(small_net())
    run.model.eval()
    assert finished(run, 3).profile


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_model_that_is_compiled_in_place_is_trained_as_ever(place: str) -> None:
    torch.compiler.reset()
    net = small_net()
    if place == "before":
        net.compile(backend="eager")
    run = Run(net)
    if place == "after":
        run.model.compile(backend="eager")
    finished(run, 3)
    assert len(run.norms) == 3
    torch.compiler.reset()


def test_a_step_with_a_closure_is_seen_after_it() -> None:
    run = Run(small_net())
    inputs, targets = next(iter(digits()))

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(run.model(inputs), targets)
        run.fabric.backward(loss)
        return loss

    for _ in range(4):
        run.optimizer.step(closure)
    assert run.watch is not None
    run.watch.close()
    assert run.watch.history.numbers["total_norm"].values[0] > 0
    assert run.watch.state_dict()["num_steps"] == 4


@pytest.mark.parametrize("action", ["checkpoint", "stop"])
def test_actions_are_done_as_in_a_trainer(action: str, tmp_path: Path) -> None:
    run = Run(deep_net(), loggers=CSVLogger(tmp_path, name="", version="run"), arguments={"on_alert": action})
    with pytest.warns(GradWatchWarning, match="vanish"):
        watch = finished(run, 12)
    assert watch.should_stop == (action == "stop")
    if action == "checkpoint":
        (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
        assert set(torch.load(saved, weights_only=True)) == {"model", "optimizer", "step"}


def test_without_a_logger_a_directory_can_be_named(tmp_path: Path) -> None:
    finished(Run(small_net(), arguments={"record": str(tmp_path / "here")}), 3)
    assert list((tmp_path / "here").glob("events*"))


def test_the_strategy_can_be_pickled_meanwhile() -> None:
    run = Run(small_net())
    copied = pickle.loads(pickle.dumps(run.fabric.strategy.backward))
    assert not hasattr(copied, "_around")
    assert run.watch is not None
    run.watch.close()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"prescribe": True}, "`loss_fn` must be a function"),
        ({"sample_at": "backward"}, "`sample_at` must be"),
        ({"include": "nothing"}, "`include` must be globs"),
        ({"log_every_n_steps": 0}, "`log_every_n_steps` must be"),
    ],
)
def test_what_it_cannot_serve_is_refused(arguments: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Run(small_net(), arguments=arguments)


def test_steps_that_go_past_fabric_are_missed_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gradwatch.watched._MANY", 30)
    fabric, net = Fabric(accelerator="cpu", devices=1), small_net()
    raw = torch.optim.SGD(net.parameters(), lr=0.1)
    model, optimizer = fabric.setup(net, raw)
    with GradWatch(fabric, model, optimizer), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for inputs, targets in islice(cycle(digits(32)), 70):
            fabric.backward(nn.functional.cross_entropy(model(inputs), targets))
            raw.step()
            raw.zero_grad()
    said = [str(each.message) for each in caught if "no optimizer step" in str(each.message)]
    assert len(said) == 1
    assert "in 30 forward passes" in said[0]
    assert "`step()` of what `fabric.setup` returns" in said[0]


def test_an_optimizer_that_was_not_set_up_is_refused_with_the_cure() -> None:
    fabric, net = Fabric(accelerator="cpu", devices=1), small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"`optimizer` must be what `fabric.setup` or .* To cure it: set it up"):
        GradWatch(fabric, fabric.setup_module(net), optimizer)


def test_a_policy_that_does_not_fit_is_refused_and_nothing_is_left_behind() -> None:
    fabric, net = Fabric(accelerator="cpu", devices=1), small_net()
    model, optimizer = fabric.setup(net, torch.optim.LBFGS(net.parameters()))
    GradWatch(fabric, model, optimizer, auto_clip=True)
    with pytest.raises(ValueError, match="`auto_clip` must be None with LBFGS"):
        model(next(iter(digits()))[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "backward" not in vars(fabric.strategy)


def test_loggers_of_fabric_get_the_numbers(tmp_path: Path) -> None:
    table = CSVLogger(tmp_path / "csv", name="", version="")
    board = TensorBoardLogger(tmp_path / "tb", name="", version="")
    finished(Run(small_net(), loggers=[table, board], arguments={"log_every_n_steps": 2}), 4)
    table.save()
    assert scalars(read_events(tmp_path / "tb"), "gradwatch/total_norm")
    assert "gradwatch/total_norm" in (tmp_path / "csv" / "metrics.csv").read_text()
