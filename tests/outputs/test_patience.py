"""What takes long at the end is explained, what does not is not."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from lightning_gradwatch import GradWatchWarning
from lightning_gradwatch.outputs import page, patience, sinks
from lightning_gradwatch.outputs.patience import explained
from tests.outputs.loggers.test_delivery import MLFlowLogger
from tests.outputs.loggers.training import train

PAGE, NETWORK = "the last page for the loggers is being made", "on its way over a slow network"


def test_it_is_said_while_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    told, heard = list[str](), threading.Event()

    def say(why: str) -> None:
        told.append(why)
        heard.set()

    with explained(say, "a page is being made"):
        assert heard.wait(60)
    assert told == ["a page is being made"]


def test_what_is_quick_is_not_explained_nor_what_fails() -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyError), explained(pytest.fail, "never"):
        raise KeyError
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_who_cannot_say_it_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    tried = threading.Event()

    def say(why: str) -> None:
        tried.set()
        raise OSError("the console is gone")

    with explained(say, "why"):  # pytest complains of what a thread lets out
        assert tried.wait(60)


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_the_end_of_a_run_says_that_it_waits_for_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    monkeypatch.setattr(page, "CLOSE_S", 200.0)
    with caplog.at_level(logging.INFO):
        train(MLFlowLogger(tmp_path), tmp_path)
    assert sum(PAGE in message for message in caplog.messages) == 1


def test_the_time_for_the_page_is_taken_off_that_for_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[float]()

    class Sinks(sinks.Sinks):
        def _settle(self, seconds: float) -> None:
            given.append(seconds)
            super()._settle(seconds)

    monkeypatch.setattr("lightning_gradwatch.opening.Sinks", Sinks)
    monkeypatch.setattr(page, "CLOSE_S", 200.0)
    with pytest.warns(GradWatchWarning):
        train(MLFlowLogger(tmp_path), tmp_path)
    (left,) = given
    assert left < sinks.CLOSE_S
