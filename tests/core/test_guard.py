"""An exception that a handler of signals raises is the user's, wherever it comes; all others are for us to survive."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core._guard import attempt, is_the_users
from lightning_gradwatch.core.clip.clippers import Clippers
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.probe import Probe
from tests.test_survival import ROOMS, model, train


class Limit:
    """A user's time limit, in all the ways in which a handler may be written."""

    def method(self, number: int, frame: object) -> None:
        raise TimeoutError("the user's time is up")

    __call__ = method


def function(number: int, frame: object) -> None:
    raise TimeoutError("the user's time is up")


def together(first: str, number: int, frame: object) -> None:
    function(number, frame)


@contextmanager
def handled_by(handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "handler", [function, lambda *given: function(*given), Limit().method, Limit(), functools.partial(together, "a")]
)
def test_what_a_handler_raises_is_the_users_however_it_is_written(handler: Callable[..., None]) -> None:
    with handled_by(handler), pytest.raises(TimeoutError) as caught:
        attempt(lambda: signal.raise_signal(signal.SIGALRM))
    assert not is_the_users(caught.value)  # there is no such handler any more


def test_what_no_handler_raises_is_ours() -> None:
    def fail() -> None:
        raise TimeoutError("a slow disk")

    with handled_by(function):
        attempt(fail)
        assert OptionalFigures(lambda _: None).take("weights", 0, fail) == 0


_UNUSED = [(Clippers, "state_dict"), (Probe, "sequences")]  # by this run
_SEEN = [room for room in ROOMS if room not in _UNUSED]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
@pytest.mark.parametrize(("place", "name"), _SEEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_users_time_limit_that_comes_in_any_room_ends_the_run_as_without_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    net, room, calls = model(), getattr(place, name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGALRM)
        return room(*args, **kwargs)

    monkeypatch.setattr(place, name, interrupted)
    watch = GradWatch(dense_steps=10, sample_every_n_steps=5, histogram_every=2, auto_clip="percentile")
    with handled_by(function), pytest.raises(TimeoutError, match="time is up"):
        train(watch, net, tmp_path)
    assert calls
    if name != "detach":
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
