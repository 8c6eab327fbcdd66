"""Runs a case under GradWatch and the baselines, and judges what was raised."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_gradwatch import Alert, GradWatch, GradWatchWarning

from . import CASES
from .baselines import BASELINES
from .case import Case

EARLY = 2  # steps by which an alert may precede the onset


@dataclass(frozen=True)
class Verdict:
    """What a watcher did in a case, by the label of the case.

    Attributes:
        false_kinds: Kinds raised that are neither required nor acceptable, or that came before the onset.
        came_early: Whether anything came before the onset.
        first_steps: First step of each required kind, relative to the onset.
    """

    false_kinds: frozenset[str]
    came_early: bool
    first_steps: dict[str, int]

    @property
    def first_step(self) -> int | None:
        """Step of the first required alert relative to the onset; None if there was none."""
        return min(self.first_steps.values(), default=None)


@dataclass(frozen=True)
class Outcome:
    """One run of one case.

    Attributes:
        name: Name of the case.
        seconds: How long it took.
        alerts: Everything GradWatch raised, notices included.
        openings: Steps at which each baseline's alarm began, by its title.
        troubles: Failures of the run, and warnings of GradWatch about itself.
    """

    name: str
    seconds: float
    alerts: tuple[Alert, ...]
    openings: dict[str, tuple[int, ...]]
    troubles: tuple[str, ...]

    @property
    def case(self) -> Case:
        """The case with its label."""
        return CASES[self.name]

    @property
    def loud(self) -> tuple[Alert, ...]:
        """The alerts without the notices."""
        return tuple(alert for alert in self.alerts if alert.level == "alert")

    @property
    def verdict(self) -> Verdict:
        """The verdict on GradWatch."""
        return judge(self.case, ((alert.kind, alert.step) for alert in self.loud))

    def verdict_on(self, baseline: str) -> Verdict:
        """The verdict on a baseline; whatever it raises is taken for ``vanishing``."""
        return judge(self.case, (("vanishing", step) for step in self.openings[baseline]))

    @property
    def is_cause_right(self) -> bool | None:
        """Whether an alert of a right kind names a right cause; None without such an alert or a known cause."""
        causes = {a.cause for a in self.loud if a.kind in self.case.required | self.case.acceptable}
        return bool(causes & self.case.causes) if causes and self.case.causes else None

    @property
    def objections(self) -> list[str]:
        """What is wrong about this run, in a few words each; empty if it is right."""
        verdict = self.verdict
        found = [f"false {kind}" for kind in sorted(verdict.false_kinds)]
        found += ["before the onset"] * verdict.came_early
        found += ["missed"] * (bool(self.case.required) and verdict.first_step is None)
        found += ["wrong cause"] * (self.is_cause_right is False)
        return [*found, *self.troubles]


def judge(case: Case, raised: Iterable[tuple[str, int]]) -> Verdict:
    """Hold what was raised, as kinds and steps, against the label of the case."""
    false_kinds: set[str] = set()
    first_steps: dict[str, int] = {}
    came_early = False
    for kind, step in raised:
        is_early = step < case.onset - EARLY
        came_early |= is_early
        if is_early or kind not in case.required | case.acceptable:
            false_kinds.add(kind)
        elif kind in case.required:
            first_steps[kind] = min(step - case.onset, first_steps.get(kind, step - case.onset))
    return Verdict(frozenset(false_kinds), came_early, first_steps)


def prepare() -> None:
    """Make a process ready to run cases: one thread, and no words from Lightning."""
    torch.set_num_threads(1)
    for namespace in ("lightning.pytorch", "pytorch_lightning"):  # either may be the one that speaks
        for name in (namespace, f"{namespace}.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)


def run(name: str, seed: int) -> Outcome:
    """Train a case with GradWatch at its defaults and the baselines beside it."""
    watch, baselines = GradWatch(), [baseline() for baseline in BASELINES]
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", GradWatchWarning)
        troubles = _attempt(lambda: _fit(CASES[name], seed, [watch, *baselines]))
    own = [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)]
    troubles += [message for message in own if not message.startswith("GradWatch, ")]  # those are its alerts
    openings = {baseline.title: tuple(baseline.openings) for baseline in baselines}
    return Outcome(name, time.perf_counter() - start, tuple(watch.alerts), openings, tuple(troubles))


def _attempt(fit: Callable[[], None]) -> list[str]:
    try:
        fit()
    except Exception as failure:
        return [f"the run failed: {failure!r}"]
    return []


def _fit(case: Case, seed: int, callbacks: list[Any]) -> None:
    seed_everything(seed, verbose=False)
    task = case.build()
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        **dict.fromkeys(quiet, False),
        **task.trainer,
    }
    Trainer(max_steps=case.steps, callbacks=callbacks, **arguments).fit(task.module, task.data)
