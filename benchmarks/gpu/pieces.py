"""A piece of work with a budget of its own, and the order in which pieces are done."""

from __future__ import annotations

import gc
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from .report import Report

Status = Literal["right", "WRONG", "measured", "not run"]
OVERTIME = 1.5
"""By which factor of its budget a piece may run over while a row is under way, before that row is interrupted."""


class OverTimeError(BaseException):
    """A row takes too long. No ``except Exception`` of a hook or a compiler swallows it."""


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` for a dry run.
        is_dry: Whether everything is small, to see that it runs.
    """

    device: str
    is_dry: bool

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU, so that what is said about it means something."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        name: What was checked or measured.
        status: How it came out.
        figures: Numbers by their name, with the unit in it.
        note: A sentence, or the failure.
    """

    name: str
    status: Status
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Piece:
    """Some rows that belong together.

    Attributes:
        name: For ``--only``.
        title: For the table.
        seconds: What it may take: it begins no further row afterwards, a row is interrupted at 1.5 times as much, and
            the piece is left out where less than a third is left.
        rows: Makes them one by one.
    """

    name: str
    title: str
    seconds: float
    rows: Callable[[Setting], Iterator[Row]]


def tried(name: str, make: Callable[[], Row], or_else: Status = "WRONG") -> Row:
    """A row; what fails costs this row alone."""
    try:
        return make()
    except Exception:
        return Row(name, or_else, note=traceback.format_exc())


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt what runs in here after so many seconds, unless it hangs in C++; that of the caller goes on afterwards.

    Raises:
        OverTimeError: Then.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(*_: object) -> None:
        raise OverTimeError

    start, handler = time.monotonic(), signal.signal(signal.SIGALRM, interrupt)
    others, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if others:
            signal.setitimer(signal.ITIMER_REAL, max(others - (time.monotonic() - start), 0.01))


def run(pieces: Sequence[Piece], setting: Setting, budget: float, report: Report) -> None:
    """One piece after the other; a failure costs the rest of its piece."""
    end = time.monotonic() + budget
    for piece in pieces:
        left = end - time.monotonic()
        if left < piece.seconds / 3:
            report.add(piece, Row("everything", "not run", note=f"{left:.0f} s were left of {budget:.0f}"), 0.0)
            continue
        _run_one(piece, setting, min(left, piece.seconds), report)
        release(setting)


def _run_one(piece: Piece, setting: Setting, seconds: float, report: Report) -> None:
    start = before = time.monotonic()
    try:
        with limited(OVERTIME * seconds):
            for row in piece.rows(setting):
                now = time.monotonic()
                report.add(piece, row, now - before)
                before = now
                if now - start > seconds:
                    report.add(piece, Row("the rest", "not run", note=f"{seconds:.0f} s were over"), 0.0)
                    return
    except OverTimeError:
        note = f"interrupted after {OVERTIME * seconds:.0f} s"
        report.add(piece, Row("the rest", "not run", note=note), time.monotonic() - before)
    except Exception:
        report.add(piece, Row("the rest", "WRONG", note=traceback.format_exc()), time.monotonic() - before)


def release(setting: Setting) -> None:
    """Give memory back that nobody holds any more."""
    gc.collect()
    if setting.is_gpu and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
