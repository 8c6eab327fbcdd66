"""Signals: we hear of them, and whatever would happen without us happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch.signals import SignalWatch

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
ASKED = getattr(signal, "SIGUSR1", signal.SIGTERM)


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What the handler of a user has heard."""
    names: list[str] = []
    before = signal.signal(ASKED, lambda number, _: names.append("theirs"))
    yield names
    signal.signal(ASKED, before)


def test_a_later_handler_that_is_put_back_brings_ours_not_back_to_life(heard: list[str]) -> None:
    watch = SignalWatch(heard.append)
    first = signal.getsignal(ASKED)
    watch.start()
    later = signal.signal(ASKED, signal.SIG_IGN)
    watch.stop()
    signal.signal(ASKED, later)
    signal.raise_signal(ASKED)
    assert heard == ["theirs"]
    signal.signal(ASKED, first)


def test_watches_that_stop_in_any_order_leave_nothing(heard: list[str]) -> None:
    before = signal.getsignal(ASKED)
    watches = [SignalWatch(heard.append) for _ in range(3)]
    for watch in watches:
        watch.start()
    for watch in (watches[1], watches[0], watches[2]):
        watch.stop()
    assert signal.getsignal(ASKED) is before


PREPARED = """
import faulthandler, os, signal, sys
from lightning_gradwatch.signals import SignalWatch
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
watch = SignalWatch(lambda name: print(name, flush=True))

def later(number, frame):
    if callable(old):
        old(number, frame)
    print("later", flush=True)

"""
IN_C = "faulthandler.register(signal.SIGHUP, file=open(os.devnull, 'w'), chain=False)\nwatch.start()\n"
ABOVE = "watch.start()\nold = signal.signal(signal.SIGHUP, later)\n"
RAISE = "signal.raise_signal(signal.SIGHUP)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "expected", "ending"),
    [
        (f"watch.start()\n{RAISE}", ["SIGHUP"], -signal.SIGHUP),
        (f"{IN_C}{RAISE}", [], 0),
        (f"{IN_C}watch.stop()\n{RAISE}", [], 0),
        (f"{ABOVE}{RAISE}", ["SIGHUP", "later"], 0),
        (f"{ABOVE}watch.stop()\n{RAISE}", ["later"], 0),
        (f"{ABOVE}watch.stop()\nsignal.signal(signal.SIGHUP, old)\n{RAISE}", [], -signal.SIGHUP),
    ],
)
def test_a_process_ends_of_a_signal_exactly_where_it_would_without_us(script: str, expected: Any, ending: int) -> None:
    command = [sys.executable, "-c", PREPARED + script]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.returncode) == (expected, ending), done.stderr
