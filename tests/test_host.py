"""Hosts: a Trainer and a hand-written loop answer the same questions, and a session behind either finds the same."""

from __future__ import annotations

import gc
import inspect
import logging
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, GradWatchWarning, watch
from lightning_gradwatch._lightning import LightningHost
from lightning_gradwatch.config import configure
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
    session.after_backward(loss)
    optimizer.step()
    return loss.detach()


def train(net: nn.Module, directory: Path | None = None, steps: int = 30, **arguments: Any) -> WatchedLoop:
    """Train by hand, as a user would; the loop when it is over."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = list(digits())
    with watch(net, optimizer, directory, log_every_n_steps=10, config=configure(**arguments)) as session:
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
                session.after_backward(scaled)
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
    loop = watch(net, torch.optim.LBFGS(net.parameters()), tmp_path, config=configure(auto_clip=True))
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
            session.after_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
    names = [one.watcher.name for one in session._session.watches]
    assert names == ["SGD", "SGD-1"]
    assert [one.watcher.sampling.num_steps for one in session._session.watches] == [3, 3]


@pytest.mark.parametrize("arguments", [{"sample_at": "backward"}, {"prescribe": True}])
def test_what_a_loop_cannot_serve_is_refused(arguments: dict[str, Any]) -> None:
    net = small_net()
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be .* in a hand-written loop.* To cure it"):
        watch(net, torch.optim.SGD(net.parameters()), config=configure(**arguments))


def test_a_selection_of_nothing_is_refused_at_once() -> None:
    net = small_net()
    with pytest.raises(ValueError, match="`include` must be globs"):
        watch(net, torch.optim.SGD(net.parameters()), config=configure(include="nothing"))


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


def test_calls_outside_of_the_with_statement_are_refused_and_leave_nothing_behind() -> None:
    net = deep_net(nn.ReLU, 3)
    loop = loop_of(net)
    with pytest.raises(ValueError, match="`before_forward` must be called while its `with` statement lasts"):
        loop.before_forward()
    with loop:
        loop.before_forward()
    for call in (loop.before_forward, loop.after_backward):
        with pytest.raises(ValueError, match="'a call outside of it' came"):
            call()
    assert not any(module._forward_hooks for module in net.modules())


def test_a_loop_that_does_not_say_when_a_forward_pass_begins_is_told_once() -> None:
    net = deep_net(nn.ReLU, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with loop_of(net) as loop:
            for _ in range(3):
                net(torch.ones(2, 64)).sum().backward()
                loop.after_backward()
    assert len([w for w in caught if "before_forward" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"optimizer": "adam"}, "`optimizer` must be a torch optimizer"),
        ({"optimizer": []}, "`optimizer` must be a torch optimizer"),
        ({"optimizer": [nn.Parameter(torch.ones(1))]}, "`optimizer` must be a torch optimizer"),
        ({"config": {"auto_clip": True}}, "`config` must be what"),
        ({"log_every_n_steps": 0}, "`log_every_n_steps` must be an integer"),
        ({"log_every_n_steps": 2.5}, "`log_every_n_steps` must be an integer"),
    ],
)
def test_arguments_that_are_none_are_refused_by_name(arguments: dict[str, Any], why: str) -> None:
    net = deep_net(nn.ReLU, 3)
    with pytest.raises(ValueError, match=why):
        watch(net, **{"optimizer": torch.optim.SGD(net.parameters(), 0.1), **arguments})
