"""A session behind a loop: what fails costs one warning, and what was asked for goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradwatch import GradientAlertError, GradWatchWarning
from lightning_gradwatch.config import configure
from lightning_gradwatch.core.clip.clippers import Clippers
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.given import Given
from lightning_gradwatch.guarding import Health, Once
from lightning_gradwatch.loop_host import LoopHost
from lightning_gradwatch.run_state import RunState
from lightning_gradwatch.session import Session
from tests.tasks import deep_net, digits, small_net

pytestmark = pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")


class Loop:
    """A loop that calls every method of a session in its turn."""

    def __init__(self, net: nn.Module, state: RunState | None = None, **arguments: Any) -> None:
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        self.host = LoopHost(Given(net), [self.optimizer])
        self.session = Session(configure(**arguments), self.host, net, state or RunState())
        self.batches = list(digits())
        self.norms: list[float] = []

    def train(self, steps: int) -> None:
        self.session.start()
        self.session.before_epoch()
        for _ in range(steps):
            self.step()
        self.session.finish()
        self.session.close()

    def step(self) -> None:
        batch = self.batches[self.host.num_steps % len(self.batches)]
        self.session.before_forward(batch, self.host.num_steps)
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.optimizer.zero_grad()
        self.session.before_backward(loss)
        loss.backward()
        self.session.after_backward()
        self.session.before_step(self.optimizer)
        present = [p.grad for p in self.net.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(present)))
        self.optimizer.step()
        self.host.num_steps += 1
        self.session.after_batch()


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("on purpose")


def test_a_failure_costs_one_warning_and_clipping_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(small_net(), auto_clip=1e-2)
    monkeypatch.setattr(Watcher, "observe", broken)
    with pytest.warns(GradWatchWarning, match="RuntimeError: on purpose") as caught:
        loop.train(8)
    assert len(caught) == 1
    assert "failed in _observe_step and has switched itself off" in str(caught[0].message)
    assert loop.session.guard.health is Health.CLIPPING
    assert loop.norms == pytest.approx([1e-2] * 8, rel=1e-4)
    assert not any(module._forward_hooks for module in loop.net.modules())


def test_where_clipping_fails_as_well_that_is_said_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(small_net(), auto_clip=1e-2)
    monkeypatch.setattr(Clippers, "clip_", broken)
    with pytest.warns(GradWatchWarning) as caught:
        loop.train(8)
    told = [str(warning.message).splitlines()[0] for warning in caught]
    assert [line[:40] for line in told] == [
        "GradWatch failed in _observe_step and ha",
        "GradWatch can no longer clip the gradien",
    ]
    assert loop.session.guard.health is Health.SILENT


def test_an_error_that_was_asked_for_is_raised_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for fails in (False, True):
        loop = Loop(small_net(), on_nonfinite="raise")
        loop.session.start()
        loop.step()
        with torch.no_grad():
            next(loop.net.parameters()).fill_(torch.nan)
        with monkeypatch.context() as patch:
            if fails:
                patch.setattr(Watcher, "observe", broken)
            with pytest.raises(GradientAlertError) as raised:
                loop.step()
        assert [alert.kind for alert in raised.value.alerts] == ([] if fails else ["nonfinite"])


class TimeUpError(Exception):
    """A user's own time limit."""


@pytest.fixture
def time_limit() -> Iterator[None]:
    def up(*_: Any) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGUSR1, up)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_what_a_users_handler_of_signals_raises_passes_through(
    monkeypatch: pytest.MonkeyPatch, time_limit: None
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)

    for name in ("observe", "flush", "close"):
        loop = Loop(small_net())
        with monkeypatch.context() as patch:
            patch.setattr(Watcher, name, interrupted)
            with pytest.raises(TimeUpError):
                loop.train(3)
        assert not loop.session.is_off


def test_it_goes_on_with_the_state_of_the_run_before() -> None:
    first, state = Loop(deep_net()), RunState()
    first.train(12)
    assert [alert.kind for alert in first.session.state.alert_log.alerts] == ["vanishing"]
    state.load_state_dict(first.session.state_dict())
    again = Loop(first.net, state)
    again.host.num_steps = 12
    again.train(5)
    (watch,) = again.session.watches
    assert watch.watcher.sampling.num_steps == 17
    assert len(state.alert_log.alerts) == 1  # it is still open, and no news


def test_state_of_another_version_is_refused_and_lost_parts_are_named_once() -> None:
    state = RunState()
    with pytest.raises(ValueError, match="version 2 instead of 1"):
        state.load_state_dict({"version": 2})
    state.load_state_dict({"version": 1, "num_alerts": "many", "watchers": {"": 3}})
    complaint = state.complaint()
    assert complaint is not None
    assert "num_alerts" in complaint
    assert state.complaint() is None


def test_an_optimizer_that_takes_anothers_place_takes_over_its_watch() -> None:
    loop = Loop(small_net())
    loop.session.start()
    for _ in range(3):
        loop.step()
    loop.optimizer = torch.optim.SGD(loop.net.parameters(), lr=0.01)
    loop.host._optimizers = [loop.optimizer]
    for _ in range(3):
        loop.step()
    (watch,) = loop.session.watches
    assert watch.optimizer is loop.optimizer
    assert watch.watcher.sampling.num_steps == 6


def test_a_loop_whose_optimizer_holds_another_networks_parameters_is_told_which_get_the_gradients() -> None:
    loop = Loop(small_net())
    loop.optimizer = torch.optim.SGD(small_net().parameters(), lr=0.1)
    loop.host._optimizers = [loop.optimizer]
    with pytest.warns(
        GradWatchWarning, match=r"0\.weight, 0\.bias, 2\.weight and \d+ more get gradients, and no"
    ) as caught:
        loop.train(45)
    assert len(caught) == 1
    assert "give these parameters to an optimizer" in str(caught[0].message)


def test_a_loop_whose_gradients_never_come_is_told_once() -> None:
    loop = Loop(small_net())
    loop.optimizer = torch.optim.SGD([torch.ones(1)])  # which nobody knows
    with pytest.warns(GradWatchWarning, match="No gradient has reached GradWatch in 20 batches") as caught:
        loop.train(45)
    assert len(caught) == 1


def test_actions_are_taken_where_they_were_promised() -> None:
    loop = Loop(deep_net(), on_alert="stop")
    loop.train(12)
    assert loop.host.should_stop
    with pytest.raises(GradientAlertError):
        Loop(deep_net(), on_alert="raise").train(12)


def test_nothing_is_left_behind_and_a_second_end_does_nothing(tmp_path: Path) -> None:
    loop = Loop(small_net(), on_nonfinite="skip")
    before = signal.getsignal(signal.SIGTERM)
    loop.train(3)
    loop.session.close()
    assert loop.session.is_closed
    assert signal.getsignal(signal.SIGTERM) is before
    assert not any(module._forward_hooks for module in loop.net.modules())
    assert not hasattr(loop.optimizer, "found_inf")


def test_each_thing_is_said_once() -> None:
    said: list[str] = []
    once = Once(said.append)
    for line, about in (("a", None), ("a", None), ("b", "c"), ("d", "c")):
        once(line, about)
    assert said == ["a", "b"]
