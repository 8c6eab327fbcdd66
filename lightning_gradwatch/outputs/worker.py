"""What may take long, as a network does, is done by a thread of its own: training never waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from lightning_gradwatch.remote import RemoteError

T = TypeVar("T")
Job: TypeAlias = Callable[[], object]

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""What fails is tried again after each of these pauses, one after the other; clients of stores have done so before."""
_TICK_S = 0.05


class Worker:
    """Does one job after the other, until one has failed for good.

    Args:
        max_waiting: Jobs that may wait.
        regular: What is done whenever nothing else was to be done for a while; None for nothing.
        every_s: That while, in seconds.
    """

    def __init__(self, max_waiting: int = 1000, regular: Job | None = None, every_s: float | None = None) -> None:
        self._max_waiting = max_waiting
        self._regular = regular
        self._every_s = every_s
        # a queue into which also a handler of signals may put something, whatever it has interrupted
        self._jobs: queue.SimpleQueue[Job | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._trouble: Exception | None = None
        self._has_failed = False

    def start(self) -> None:
        """Begin, unless it has begun.

        Raises:
            Exception: What has failed for good.
        """
        if self._has_failed and self._trouble is not None:
            raise self._trouble
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gradwatch-worker", daemon=True)
            self._thread.start()

    def submit(self, job: Job) -> None:
        """Have something done.

        Raises:
            Exception: What has failed for good.
            OSError: If too many jobs wait.
        """
        self.start()
        if self._jobs.qsize() >= self._max_waiting:
            raise RemoteError(f"{self._max_waiting} writes wait for a network that is slow or down{self._why()}")
        self._jobs.put(job)

    def settle(self, seconds: float) -> None:
        """Wait until everything is done that was submitted, but not for ever.

        Raises:
            Exception: What has failed for good.
            OSError: If it takes longer.
        """
        if self._thread is None:
            return
        done, end = threading.Event(), time.monotonic() + seconds
        self._jobs.put(done)
        while self._thread.is_alive() and not done.wait(_TICK_S):
            if time.monotonic() > end:
                raise RemoteError(f"a network that is slow or down has not taken everything in time{self._why()}")
        self.start()

    def ask(self, question: Callable[[], T], seconds: float) -> T | None:
        """An answer, unless it takes long or cannot be had: then None."""
        answers: list[T] = []
        try:
            self.submit(lambda: answers.append(question()))
            self.settle(seconds)
        except OSError:
            return None
        return answers[0] if answers else None

    def close(self) -> None:
        """Do nothing any more, once everything is done that was submitted."""
        if self._thread is not None:
            self._jobs.put(None)

    def _why(self) -> str:
        return "" if self._trouble is None else f" ({self._trouble})"

    def _work(self) -> None:
        while not self._has_failed:
            try:
                job = self._jobs.get(timeout=self._every_s)
            except queue.Empty:
                job = self._regular
            if job is None:
                return
            if isinstance(job, threading.Event):
                job.set()
            else:
                self._do(job)

    def _do(self, job: Job) -> None:
        for pause in (*PAUSES_S, None):
            try:
                job()
            except Exception as failure:  # whatever it is, it must stay in this thread
                self._trouble = failure
                if pause is None or not isinstance(failure, OSError) or getattr(failure, "is_final", False):
                    self._has_failed = True
                    return
                time.sleep(pause)
            else:
                self._trouble = None
                return
