"""Hosts: a Trainer and a hand-written loop answer the same questions, and a session behind either finds the same."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import subprocess
import sys
import warnings
import weakref
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradwatch import GradWatch, GradWatchWarning, watch
from lightning_gradwatch._lightning import LightningHost
from lightning_gradwatch.host import Host
from lightning_gradwatch.loop import WatchedLoop
from lightning_gradwatch.loop_host import LoopHost
from lightning_gradwatch.outputs import alerts_file, flight
from tests.tasks import Classifier, deep_net, digits, fit, loop_host, quiet_trainer, read_events, scalars, small_net


def members(kind: type) -> set[str]:
    return {name for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")}


@pytest.mark.parametrize("kind", [LightningHost, LoopHost])
def test_a_host_answers_every_question(kind: type) -> None:
    assert members(Host) <= members(kind)
    for name in members(Host):
        asked, answered = (inspect.signature(getattr(place, name)).parameters for place in (Host, kind))
        assert list(asked) == list(answered), name


def step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, session: WatchedLoop) -> Tensor:
    session.before_forward(batch)
    loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    session.step(loss)
    optimizer.step()
    return loss.detach()


def train(net: nn.Module, directory: Path | None = None, steps: int = 30, **arguments: Any) -> WatchedLoop:
    """Train by hand, as a user would; the loop when it is over."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = list(digits())
    with watch(net, optimizer, directory, log_every_n_steps=10, **arguments) as session:
        for place in range(steps):
            step(net, optimizer, batches[place % len(batches)], session)
            if session.should_stop:
                break
    return session


def test_a_loop_finds_what_a_trainer_finds(tmp_path: Path) -> None:
    callback = GradWatch()
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        fit(callback, Classifier(deep_net()), directory=tmp_path / "trainer", max_steps=20, log_every_n_steps=10)
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        session = train(deep_net(), tmp_path / "loop", steps=20)
    (expected,), (found,) = callback.alerts, session.alerts
    assert (found.kind, found.step, found.cause) == (expected.kind, expected.step, expected.cause)
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    assert list(session.profile.values()) == pytest.approx(list(callback.profile.values()), rel=1e-4)
    assert session.metrics["gradwatch/alerts"] == 1.0
    by_hand, by_trainer = (read_events(tmp_path / name) for name in ("loop", "trainer"))
    norms = scalars(by_hand, "gradwatch/total_norm")
    assert list(norms) == [9, 19]
    assert norms == pytest.approx(scalars(by_trainer, "gradwatch/total_norm"), rel=1e-5)
    assert [line["event"] for line in alerts_file.read(tmp_path / "loop")] == ["opened"]
    first, steps = flight.read(flight.files(tmp_path / "loop")[-1])
    assert (first["reason"], len(steps)) == ("end", 20)


def test_weights_are_bit_identical_with_and_without() -> None:
    watched, bare = small_net(), small_net()
    train(watched)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    batches = list(digits())
    for place in range(30):
        inputs, targets = batches[place % len(batches)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(bare(inputs), targets).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), bare.parameters(), strict=True))
    assert not any(module._forward_hooks for module in watched.modules())


def test_it_clips_and_stops_and_saves_as_it_is_asked_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(GradWatchWarning), caplog.at_level(logging.INFO):
        session = train(deep_net(), tmp_path, auto_clip=1e-3, on_alert="stop")
    assert session.should_stop
    assert "Clipped the gradient in 100.0% of 10 steps." in caplog.text
    with pytest.warns(GradWatchWarning):
        train(deep_net(), tmp_path, on_alert="checkpoint", steps=12)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert torch.load(saved, weights_only=True)["step"] == 9


def test_gradients_of_a_loss_scaler_are_unscaled_before_they_are_judged() -> None:
    totals = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        for unscales_first in (False, True):
            net = small_net()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            inputs, targets = next(iter(digits()))
            with watch(net, optimizer, scaler=scaler) as session:
                session.before_forward()
                loss = nn.functional.cross_entropy(net(inputs), targets)
                scaled = loss if scaler is None else scaler.scale(loss)
                scaled.backward()
                if scaler is not None and unscales_first:
                    scaler.unscale_(optimizer)
                session.step(scaled)
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
            totals.append(list(session.profile.values()))
    assert all(total == pytest.approx(totals[0], rel=1e-5) for total in totals)


def break_off(net: nn.Module, directory: Path) -> None:
    """Train for seven steps, and raise."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with watch(net, optimizer, directory) as session:
        for batch in list(digits())[:7]:
            step(net, optimizer, batch, session)
        raise KeyError("the loop's own")


def test_an_exception_leaves_a_record_and_passes(tmp_path: Path) -> None:
    net = small_net()
    with pytest.raises(KeyError, match="own"):
        break_off(net, tmp_path)
    first, steps = flight.read(flight.files(tmp_path)[-1])
    assert (first["reason"], len(steps)) == ("KeyError", 7)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_loop_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    net = deep_net()
    with pytest.warns(GradWatchWarning, match="vanish"):
        first = train(net, steps=12)
    torch.save(first.state_dict(), tmp_path / "half.pt")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    again = watch(net, optimizer)
    again.load_state_dict(torch.load(tmp_path / "half.pt", weights_only=True))
    with again as session:  # a second warning would be an error here
        for batch in list(digits())[12:17]:
            step(net, optimizer, batch, session)
    assert again.alerts == first.alerts
    assert again.state_dict()["num_steps"] == 17


def test_where_a_policy_does_not_fit_nothing_is_left_behind(tmp_path: Path) -> None:
    net = small_net()
    loop = watch(net, torch.optim.LBFGS(net.parameters()), tmp_path, auto_clip=True)
    with pytest.raises(ValueError, match="`auto_clip` must be None with LBFGS"):
        loop.__enter__()
    assert not any(module._forward_hooks for module in net.modules())
    assert loop._session.is_closed


def test_several_optimizers_step_together() -> None:
    net = small_net()
    halves = list(net.parameters())
    optimizers = [torch.optim.SGD(halves[:2], lr=0.1), torch.optim.SGD(halves[2:], lr=0.1)]
    inputs, targets = next(iter(digits()))
    with watch(net, optimizers) as session:
        for _ in range(3):
            session.before_forward()
            loss = nn.functional.cross_entropy(net(inputs), targets)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            session.step(loss)
            for optimizer in optimizers:
                optimizer.step()
    names = [one.watcher.name for one in session._session.watches]
    assert names == ["SGD", "SGD-1"]
    assert [one.watcher.sampling.num_steps for one in session._session.watches] == [3, 3]


@pytest.mark.parametrize("arguments", [{"sample_at": "backward"}])
def test_what_a_loop_cannot_serve_is_refused(arguments: dict[str, Any]) -> None:
    net = small_net()
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be .* in a hand-written loop.* To cure it"):
        watch(net, torch.optim.SGD(net.parameters()), **arguments)


def test_a_selection_of_nothing_is_refused_at_once() -> None:
    net = small_net()
    with pytest.raises(ValueError, match="`include` must be globs"):
        watch(net, torch.optim.SGD(net.parameters()), include="nothing")


def test_where_warnings_are_errors_a_loop_logs_them(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop_host().warn("trouble")
    assert "trouble" in caplog.text


def test_a_trainer_is_not_kept_alive_by_its_host() -> None:
    trainer, callback = quiet_trainer(), GradWatch()
    host, alive = LightningHost(trainer, Classifier(small_net()), callback), weakref.ref(trainer)
    assert host.belongs_to(trainer)
    assert not host.belongs_to(quiet_trainer())
    assert not host.is_busy_beside(quiet_trainer())  # it is not fitting
    del trainer
    gc.collect()
    assert alive() is None
    assert not host.is_busy_beside(quiet_trainer())


def loop_of(net: nn.Module, **arguments: Any) -> Any:
    return watch(net, torch.optim.SGD(net.parameters(), 0.1), **arguments)


def test_a_run_that_is_over_takes_no_more_steps_and_leaves_nothing_behind() -> None:
    net = deep_net(nn.ReLU, 3)
    loop = loop_of(net)
    with loop:
        loop.before_forward()
    for call in (loop.before_forward, loop.step, loop.__enter__):
        with pytest.raises(ValueError, match=r"this run is over.* To cure it: make a new watch"):
            call()
    loop.close()  # once more, to no effect
    net(torch.ones(2, 64)).sum().backward()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_loop_that_does_not_call_its_model_is_told_once_how_to_say_when_a_batch_begins() -> None:
    net = deep_net(nn.ReLU, 3)
    loop = loop_of(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            net.forward(torch.ones(2, 64)).sum().backward()
            loop.step()
        loop.close()
    assert len([w for w in caught if "call its `before_forward` before each forward pass" in str(w.message)]) == 1


def test_a_loop_that_announces_no_step_is_told_so_when_it_ends() -> None:
    net = deep_net(nn.ReLU, 3)
    loop = loop_of(net)
    for _ in range(20):
        net(torch.ones(2, 64)).sum().backward()
    with pytest.warns(GradWatchWarning, match="no optimizer step in 20 forward passes.* Try: call `step` of the watch"):
        loop.close()


def accumulate(net: nn.Module, num_batches: int, every: int = 1, **arguments: Any) -> WatchedLoop:
    """Train as public scripts do, with gradients accumulated over some batches; the loop when it is over."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loop = watch(net, optimizer, **arguments)
    for place, (inputs, targets) in enumerate(islice(cycle(digits(32)), num_batches), start=1):
        loss = nn.functional.cross_entropy(net(inputs), targets)
        (loss / every).backward()
        if place % every == 0:
            loop.step(loss)
            optimizer.step()
            optimizer.zero_grad()
        net.eval()  # what is evaluated is no batch
        net(inputs)
        net.train()
    loop.close()
    return loop


@pytest.mark.parametrize("every", [1, 3])
def test_two_lines_and_one_in_the_loop_find_what_a_trainer_finds(every: int, tmp_path: Path) -> None:
    callback = GradWatch()
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        fit(callback, Classifier(deep_net()), digits(32), max_steps=10, accumulate_grad_batches=every)
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        loop = accumulate(deep_net(), 10 * every, every, log_dir=tmp_path, log_every_n_steps=2)
    (expected,), (found,) = callback.alerts, loop.alerts
    assert (found.kind, found.step, found.cause) == (expected.kind, expected.step, expected.cause)
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    assert list(loop.profile.values()) == pytest.approx(list(callback.profile.values()), rel=1e-4)
    assert list(scalars(read_events(tmp_path), "gradwatch/total_norm")) == [1, 3, 5, 7, 9]


def test_optimizers_that_take_turns_have_counters_of_their_own() -> None:
    generator, critic = small_net(), nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizers = [torch.optim.Adam(net.parameters()) for net in (generator, critic)]
    loop = watch({"generator": generator, "critic": critic}, optimizers)
    for inputs, _ in list(digits())[:12]:
        for turn in range(3):
            made = critic(generator(inputs))
            loss = made.mean() if turn else -made.mean()
            chosen = optimizers[0 if turn == 0 else 1]
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            loop.step(loss, chosen)
            chosen.step()
    counted = {one.watcher.name: one.watcher.sampling.num_steps for one in loop._session.watches}
    layers = {name.split(".")[0] for name in loop.profile}
    loop.close()
    assert counted == {"Adam": 12, "Adam-1": 24}
    assert layers == {"generator", "critic"}
    other = loop_of(small_net())
    with pytest.raises(ValueError, match="`optimizer` must be one of those that `watch` was given"):
        other.step(None, optimizers[0])
    other.close()


def test_names_are_the_models_own_whatever_stands_around_it(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wraps: list[Any] = [DistributedDataParallel, partial(torch.compile, backend="eager")]
        for wrap in wraps:
            with pytest.warns(GradWatchWarning, match="Gradients vanish"):
                loop = accumulate(wrap(deep_net()), 20)
            assert "0" in loop.profile
            assert [alert.kind for alert in loop.alerts] == ["vanishing"]
    finally:
        torch.distributed.destroy_process_group()


def test_a_copy_of_the_model_and_a_file_of_it_have_nothing_of_ours(tmp_path: Path) -> None:
    net = small_net()
    loop = loop_of(net)
    net(torch.ones(2, 64)).sum().backward()
    copied = copy.deepcopy(net)
    torch.save(net, tmp_path / "net.pt")
    saved = torch.load(tmp_path / "net.pt", weights_only=False)
    assert not any(m._forward_pre_hooks or m._forward_hooks for other in (copied, saved) for m in other.modules())
    num_batches = loop._num_batches
    copied(torch.ones(2, 64)).sum().backward()
    assert loop._num_batches == num_batches
    loop.close()


NOT_CLOSED = """
import sys, torch
from torch import nn
from lightning_gradwatch import watch
from tests.tasks import digits, small_net

def train(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loop = watch(net, optimizer, sys.argv[1])
    for inputs, targets in list(digits())[:7]:
        loss = nn.functional.cross_entropy(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        loop.step(loss)
        optimizer.step()

net = small_net()
train(net)
if sys.argv[2] == "raise":
    raise KeyError("the script's own")
"""


@pytest.mark.parametrize(("end", "reason"), [("", "end"), ("raise", "KeyError")])
def test_a_run_that_nobody_closes_ends_with_the_process(end: str, reason: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NOT_CLOSED, str(tmp_path), end]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if end == "raise" else 0), done.stderr
    assert "Exception ignored" not in done.stderr
    first, steps = flight.read(flight.files(tmp_path)[-1])
    assert (first["reason"], len(steps)) == (reason, 7)
    assert read_events(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"optimizer": "adam"}, "`optimizer` must be a torch optimizer"),
        ({"optimizer": []}, "`optimizer` must be a torch optimizer"),
        ({"optimizer": [nn.Parameter(torch.ones(1))]}, "`optimizer` must be a torch optimizer"),
        ({"log_every_n_steps": 0}, "`log_every_n_steps` must be an integer"),
        ({"log_every_n_steps": 2.5}, "`log_every_n_steps` must be an integer"),
    ],
)
def test_arguments_that_are_none_are_refused_by_name(arguments: dict[str, Any], why: str) -> None:
    net = deep_net(nn.ReLU, 3)
    with pytest.raises(ValueError, match=why):
        watch(net, **{"optimizer": torch.optim.SGD(net.parameters(), 0.1), **arguments})


@pytest.mark.parametrize("model", ["net", {}, {"net": 3}, None])
def test_a_model_that_is_none_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="`model` must be a torch module, or a dict of them by name"):
        watch(model, torch.optim.SGD(small_net().parameters(), 0.1))
