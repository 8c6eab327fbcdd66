"""Trainings in which GradWatch fails on one of several ranks, each of which holds a part of the gradients."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core.engines.deepspeed import Zero
from lightning_gradwatch.core.fitting import Fitting
from lightning_gradwatch.core.judge import Judge
from lightning_gradwatch.core.measure import NormWindow
from lightning_gradwatch.core.publishing import Publisher
from lightning_gradwatch.core.reader import Reader
from lightning_gradwatch.reporting import Reporter
from lightning_gradwatch.watches import Watches
from tests.setups.sharded_training import MAX_NORM, NUM_STEPS
from tests.setups.test_sharded import train_by_hand


@dataclass(frozen=True)
class Failure:
    """What fails.

    Attributes:
        owner: Whose method it is.
        name: Of the method.
        first_step: From which step on.
        is_once: Whether it fails once, and not again and again.
        arguments: Of the watch.
        is_clipped: Whether the gradient is clipped to the end; otherwise until the first step at which it fails.
    """

    owner: type
    name: str
    first_step: int = 8
    is_once: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    is_clipped: bool = True

    @property
    def num_clipped_steps(self) -> int:
        """Steps that are clipped."""
        if "auto_clip" not in self.arguments:
            return 0
        return NUM_STEPS if self.is_clipped else self.first_step


CLIPPED: dict[str, Any] = {"auto_clip": MAX_NORM}
FAILURES: dict[str, Failure] = {
    "making the watchers, once": Failure(Watches, "add", 0, is_once=True),
    "making the instruments, once": Failure(Fitting, "refit", 0, is_once=True),
    "before the first forward pass": Failure(Watches, "begin_batch", 0),
    "at the first step": Failure(NormWindow, "push", 0),
    "at the first step, clipped": Failure(NormWindow, "push", 0, arguments=CLIPPED, is_clipped=False),
    "before a forward pass, once": Failure(Watches, "begin_batch", is_once=True),
    "before each forward pass": Failure(Watches, "begin_batch"),
    "measuring, once": Failure(NormWindow, "push", is_once=True),
    "measuring": Failure(NormWindow, "push"),
    "measuring, clipped, once": Failure(NormWindow, "push", is_once=True, arguments=CLIPPED),
    "measuring, clipped": Failure(NormWindow, "push", arguments=CLIPPED, is_clipped=False),
    "sampling, once": Failure(Reader, "due", is_once=True),
    "judging": Failure(Judge, "judge"),
    "judging, clipped": Failure(Judge, "judge", arguments=CLIPPED),
    "publishing": Failure(Publisher, "publish"),
    "reporting": Failure(Reporter, "handle"),
    "after the step": Failure(Watches, "end_batch"),
}
BACKWARD: dict[str, Failure] = {
    "measuring after the backward pass": Failure(NormWindow, "push", arguments={"sample_at": "backward"}),
    "judging after the backward pass": Failure(Judge, "judge", arguments={"sample_at": "backward"}),
}
REACHING: dict[str, Failure] = {
    "reaching the gradients": Failure(Zero, "_gradient_of"),
    "reaching the first gradients": Failure(Zero, "_gradient_of", 0),
    "reaching the gradients, clipped": Failure(Zero, "_gradient_of", arguments=CLIPPED, is_clipped=False),
}
"""Under DeepSpeed, where that takes some doing."""


def train_failing(
    train: Callable[[GradWatch], pl.Trainer], weights_of: Callable[[pl.Trainer], list[Any]], failure: Failure, rank: int
) -> dict[str, Any]:
    """Train while something fails on one rank; all ranks must come to the end of it."""
    watch = GradWatch(dense_steps=4, sample_every_n_steps=4, **failure.arguments)
    real, failed = getattr(failure.owner, failure.name), list[int]()

    def failing(*args: Any, **kwargs: Any) -> Any:
        step = watch._session.watches.num_steps if watch._session is not None else 0
        is_here = os.environ["RANK"] == str(rank) and step >= failure.first_step
        if is_here and not (failed and failure.is_once):
            failed.append(step)
            raise RuntimeError("on purpose")
        return real(*args, **kwargs)

    logged: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        logged.append(record.getMessage())
        return False

    logger = logging.getLogger("lightning_gradwatch")
    logger.addFilter(keep)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(failure.owner, failure.name, failing)
        trainer = train(watch)
    logger.removeFilter(keep)
    lines = [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)]
    return {"weights": weights_of(trainer), "said": lines + logged, "steps": trainer.global_step}


def train_all(
    failures: Mapping[str, Failure],
    train: Callable[[GradWatch], pl.Trainer],
    weights_of: Callable[[pl.Trainer], list[Any]],
) -> dict[str, Any]:
    """Let everything fail on each of two ranks."""
    return {
        f"{rank} {what}": train_failing(train, weights_of, failure, rank)
        for rank in (0, 1)
        for what, failure in failures.items()
    }


def assert_survived(ranks: list[dict[str, Any]], rank: int, what: str, failure: Failure) -> None:
    """Both ranks have come to the end, with the weights of one process, and each has said what happened."""
    told = [one[f"{rank} {what}"] for one in ranks]
    assert [one["steps"] for one in told] == [NUM_STEPS] * 2
    truth = train_by_hand(MAX_NORM, failure.num_clipped_steps)["net"]
    for one in told:
        for ours, theirs in zip(one["weights"], truth.parameters(), strict=True):
            assert torch.allclose(torch.tensor(ours), theirs, rtol=1e-5, atol=1e-6)
    failed, other = told[rank]["said"][0], told[1 - rank]["said"][0]
    assert failed.endswith("RuntimeError: on purpose\n")
    assert other.startswith("GradWatch failed on another rank, whose log says why")
    can_clip = failure.is_clipped or "auto_clip" not in failure.arguments
    assert [len(told[0]["said"]), len(told[1]["said"])] == [1 if can_clip else 2, 1]
    if not can_clip:
        assert told[0]["said"][1].startswith("GradWatch can no longer clip the gradients.")
