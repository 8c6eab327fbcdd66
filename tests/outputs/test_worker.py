"""The thread for what may take long: in order, again after a failure, bounded, and never waited for without an end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from lightning_gradwatch.outputs import worker as worker_module
from lightning_gradwatch.outputs.worker import Worker
from lightning_gradwatch.remote import RemoteError


def ends(worker: Worker) -> bool:
    """Whether its thread comes to an end."""
    assert worker._thread is not None
    worker._thread.join(10.0)
    return not worker._thread.is_alive()


def test_jobs_are_done_in_order_by_a_thread_that_ends() -> None:
    worker, done = Worker(), list[tuple[int, str]]()
    worker.settle(0.0)  # nothing was ever asked of it
    worker.close()
    assert worker._thread is None
    for number in range(100):
        worker.submit(lambda number=number: done.append((number, threading.current_thread().name)))  # type: ignore[misc]
    worker.settle(10.0)
    assert done == [(number, "gradwatch-worker") for number in range(100)]
    worker.close()
    assert ends(worker)


def test_what_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PAUSES_S", (0.0, 0.0))
    worker, tries = Worker(), list[None]()

    def flaky() -> None:
        tries.append(None)
        if len(tries) < 3:
            raise RemoteError("down")

    worker.submit(flaky)
    worker.settle(10.0)
    assert len(tries) == 3
    worker.close()


@pytest.mark.parametrize(
    ("failure", "num_tries"),
    [
        (RemoteError("down"), 3),
        (OSError("down"), 3),
        (RemoteError("no", is_final=True), 1),
        (ZeroDivisionError("?"), 1),
    ],
    ids=["remote", "os", "final", "odd"],
)
def test_what_fails_for_good_is_told_with_the_next_job_and_ends_the_thread(
    failure: Exception, num_tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "PAUSES_S", (0.0, 0.0))
    worker, tries = Worker(), list[None]()

    def fail() -> None:
        tries.append(None)
        raise failure

    worker.submit(fail)
    with pytest.raises(type(failure)):
        worker.settle(10.0)
    with pytest.raises(type(failure)):
        worker.submit(fail)
    assert len(tries) == num_tries
    assert ends(worker)


def test_waiting_has_an_end_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PAUSES_S", (1000.0,))
    is_free = threading.Event()
    for job, why in ((is_free.wait, "in time"), (_down, r"in time \(the cable is cut\)")):
        worker = Worker()
        worker.submit(job)
        with pytest.raises(RemoteError, match=why):
            worker.settle(0.2)
        assert worker.ask(lambda: 1, 0.0) is None
    is_free.set()


def _down() -> None:
    raise RemoteError("the cable is cut")


def test_jobs_that_wait_are_bounded() -> None:
    worker, is_free = Worker(max_waiting=3), threading.Event()
    worker.submit(is_free.wait)
    while worker._jobs.qsize():
        time.sleep(0.001)
    for _ in range(3):
        worker.submit(is_free.wait)
    with pytest.raises(RemoteError, match="3 writes wait"):
        worker.submit(is_free.wait)
    is_free.set()
    worker.settle(10.0)
    worker.close()


def test_an_answer_is_had_from_the_thread() -> None:
    worker = Worker()
    assert worker.ask(lambda: threading.current_thread().name, 10.0) == "gradwatch-worker"
    worker.close()


def test_what_is_regular_is_done_without_being_asked_for() -> None:
    done = threading.Event()
    worker: Any = Worker(regular=done.set, every_s=0.01)
    worker.start()
    assert done.wait(10.0)
    worker.close()
