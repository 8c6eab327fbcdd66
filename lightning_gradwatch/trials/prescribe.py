"""Tries remedies on copies of a model, and says which of them help it."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from numbers import Real
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.core._check import refuse, require
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.clip import ClipPolicy, make_policies
from lightning_gradwatch.core.records import Alert, to_try
from lightning_gradwatch.trials.copying import unwrapped
from lightning_gradwatch.trials.diagnosis import diagnose
from lightning_gradwatch.trials.headroom.in_trials import headroom_of
from lightning_gradwatch.trials.memory import TooLargeError
from lightning_gradwatch.trials.model import CannotApply, Remedy
from lightning_gradwatch.trials.ranking import ranked
from lightning_gradwatch.trials.records import NotTried, Prescription, Trial
from lightning_gradwatch.trials.run import TrialRun
from lightning_gradwatch.trials.runner import Conditions, TimeUpError, TrialRunner
from lightning_gradwatch.trials.state import undisturbed

_SETTINGS = ("lr", "weight_decay", "clip")
LARGE = 2**26
"""Bytes of parameters above which memory is cleared after each trial."""


def prescribe(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    optimizer: Optimizer | Callable[..., Any] | None = None,
    steps: int = 20,
    candidates: Literal["plausible", "all"] | str | Sequence[str] = "plausible",
    max_seconds: float = 60.0,
    max_memory: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
    alert: Alert | None = None,
    precision: torch.dtype | None = None,
    clip: bool | float | str | ClipPolicy | Sequence[float | str | ClipPolicy] | None = None,
    remedies: Sequence[Remedy] | None = None,
) -> Prescription:
    """Find out by trial which remedy helps a network whose gradients are in trouble.

    Copies of the model are treated, each with one remedy and one with the best two of different families, and trained
    for a few steps from the same state with the same random numbers. Where a setting is the cause, or the untreated
    copy diverges, the weights may be spoilt already, and neither another setting nor other weights help alone: what
    changes a setting and does not help is tried once more together with He initialisation. The model, the optimizer
    and every generator of random numbers are afterwards as they were, bit for bit.

    Args:
        model: A module or a LightningModule, at any point of its training, on the device to try it on. One that is in
            evaluation mode as a whole is tried in training mode.
        batch: What a training step gets, with any shapes; a pair ``(inputs, targets)`` for a module with ``loss_fn``;
            or a ``DataLoader``, of which the first 8 batches are taken in turns.
        loss_fn: ``loss_fn(model(inputs), targets)`` for a pair, otherwise ``loss_fn(model, batch)``. None for a
            LightningModule, whose ``training_step`` is used and no other hook, and for a module whose
            ``model(**batch)`` has a ``.loss``.
        optimizer: The run's own, which is copied with its rates and state; or a function that makes one of parameters.
            None for ``configure_optimizers`` of a LightningModule, and Adam with a rate of 1e-3 for other modules.
        steps: Optimizer steps of each trial; 0 for a single backward pass.
        candidates: ``"plausible"`` for those that the diagnosis suggests, ``"all"``, or globs over keys of remedies
            such as ``"init.*"``, which are then tried whether or not something is wrong.
        max_seconds: Time for all of it, above 0; what is not reached is listed as not tried.
        max_memory: Bytes that a trial may take in all; None for nine tenths of what is free on the model's device.
        seed: For the trials' random numbers.
        progress: Whether to show a progress bar; None for one if it takes longer than a second.
        alert: The alert that asks for it; None to watch an untreated copy for up to 70 steps first.
        precision: Dtype of mixed precision in the trials; float16 comes with a loss scaler. None for that of the model.
        clip: How the run itself clips its gradients, as for ``auto_clip`` of ``GradWatch``.
        remedies: What to try instead of the package's own.

    Returns:
        What was tried and what came of it, best first; ``print`` shows a table.

    Raises:
        ValueError: If an argument is wrong, or the model is one that cannot be tried on a copy.
        RuntimeError: If the model cannot be copied, does not run as it is, or leaves no memory for a trial.
    """
    require("steps", steps, minimum=0, cure="use 0 for a single backward pass")
    for name, limit in (("max_seconds", max_seconds), ("max_memory", max_memory)):
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, (Real, float)) or not float(limit) > 0
        ):
            raise refuse(name, "a number above 0", limit, "leave it out for the default")
    require("seed", seed, minimum=0, cure="leave it out for 0")
    if precision not in (None, torch.bfloat16, torch.float16):
        raise refuse(
            "precision", "None, torch.bfloat16 or torch.float16", precision, "leave it out for that of the model"
        )
    make_policies(clip)
    if remedies is None:
        from lightning_gradwatch.trials.remedies import REMEDIES

        remedies = REMEDIES
    chosen = _chosen(candidates, remedies)
    start = perf_counter()
    model = unwrapped(model)
    conditions = Conditions(loss_fn, optimizer, steps, max_seconds, max_memory, seed, precision, clip)
    with undisturbed(model):
        runner = TrialRunner(model, batch, conditions)
        with _explained():
            said = alert or diagnose(runner)
            found = None if isinstance(said, str) else said
            trials = _Trials(runner, found, conditions)
        suggested = _plausible(remedies, found) if chosen is None else chosen
        headroom = headroom_of(runner) if any(remedy.key.startswith("lr.") for remedy in suggested) else None
        trials.run(suggested, progress, chosen or remedies)
    return Prescription(
        diagnosis=said if isinstance(said, str) else said.message.removesuffix(to_try(said.remedies)),
        untreated=trials.untreated,
        trials=tuple(trials.ranked()),
        not_tried=tuple(trials.not_tried),
        num_steps=steps,
        seconds=perf_counter() - start,
        kind=found.kind if found else "",
        cause=found.cause if found else "",
        headroom=headroom,
    )


def _chosen(candidates: str | Sequence[str], remedies: Sequence[Remedy]) -> list[Remedy] | None:
    """The remedies that were asked for; None for those that will be plausible."""
    if candidates == "plausible":
        return None
    globs = ["*"] if candidates == "all" else [candidates] if isinstance(candidates, str) else candidates
    known = ", ".join(sorted({remedy.key for remedy in remedies}))
    for glob in globs:
        if not isinstance(glob, str) or not any(fnmatchcase(remedy.key, glob) for remedy in remedies):
            rule = '"plausible", "all" or globs that each match a remedy'
            raise refuse("candidates", rule, glob, f"the remedies are {known}")
    return [remedy for remedy in remedies if any(fnmatchcase(remedy.key, glob) for glob in globs)]


@contextmanager
def _explained() -> Iterator[None]:
    """Say of a failure of the untreated model that it is one."""
    try:
        yield
    except Exception as failure:
        is_explained = isinstance(failure, ValueError) and str(failure).startswith("GradWatch")
        if is_explained or is_the_users(failure):
            raise
        raise _untreatable(failure) from failure


def _untreatable(failure: Exception) -> RuntimeError:
    if str(failure).startswith("GradWatch"):
        return RuntimeError(str(failure))
    return RuntimeError(f"GradWatch: no remedy can be tried, as the untreated model fails on a copy: {_brief(failure)}")


class _Trials:
    """The trials of one prescription: each remedy alone, then some together."""

    def __init__(self, runner: TrialRunner, alert: Alert | None, conditions: Conditions) -> None:
        self._runner, self._conditions = runner, conditions
        self._kind, self._cause = (alert.kind, alert.cause) if alert else ("", "")
        untreated = runner.treat(())
        self._seconds = _swiftest(untreated)
        self.untreated = self._written((), untreated)
        self.done: list[Trial] = []
        self.not_tried: list[NotTried] = []

    def run(self, remedies: Sequence[Remedy], progress: bool | None, known: Sequence[Remedy] = ()) -> None:
        """Try them, as far as they fit and the time lasts.

        Args:
            remedies: What to try.
            progress: Whether to show a bar.
            known: Those of which one may come to the help of a setting.
        """
        with _bar(len(remedies) + (len(remedies) > 1), progress) as advance:
            for remedy in remedies:
                self._try((remedy,))
                advance()
            for pair in (_best_two(remedies, self.ranked()), *self._rescues(remedies, known)):
                if pair:
                    self._try(pair)
            advance()

    def ranked(self) -> list[Trial]:
        """What was tried so far, best first."""
        return ranked(self.untreated, self.done, self._kind, self._cause)

    def _rescues(self, remedies: Sequence[Remedy], known: Sequence[Remedy]) -> list[tuple[Remedy, ...]]:
        """Settings that do not help alone, with new weights: where those at hand may be spoilt by a wrong setting.

        Without the cause only where no new weights alone keep the loss finite, and where they could: they mend neither
        data nor operations. Not where hardly anything has moved.
        """
        helpful = [trial.key for trial in self.ranked() if trial.effect == "helps"]
        is_lost = not math.isfinite(self.untreated.loss_after) and not any(k.startswith("init.") for k in helpful)
        is_lost = is_lost and self._cause not in ("bad_data", "unstable_op")
        if self._kind == "stalled" or not (self._cause in ("weight_decay", "learning_rate") or is_lost):
            return []
        fresh = [remedy for remedy in known if remedy.key == "init.he"]
        tried = {trial.key for trial in self.done} - {*helpful}
        settings = [r for r in remedies if r.key in tried and r.key.split(".")[0] in _SETTINGS]
        return [(setting, *fresh) for setting in settings if fresh]

    def _try(self, remedies: Sequence[Remedy]) -> None:
        why = ""
        try:
            if self._runner.is_time_up():
                raise TimeUpError
            self.done.append(self._written(remedies, self._runner.treat(remedies)))
        except (CannotApply, TooLargeError) as reason:
            why = str(reason)
        except TimeUpError:
            why = f"time was up after {self._conditions.max_seconds:.3g} s; a larger max_seconds tries it"
        except Exception as failure:
            if is_the_users(failure):
                raise
            why = "out of memory" if _is_out_of_memory(failure) else f"the treated copy fails: {_brief(failure)}"
        if why:
            self.not_tried.append(NotTried(_join(remedies, "key"), _join(remedies, "name"), why))
        if self._runner.num_bytes > LARGE:
            gc.collect()

    def _written(self, remedies: Sequence[Remedy], trial_run: TrialRun) -> Trial:
        count = sum(p.numel() for p in trial_run.trial_model.model.parameters())
        return Trial(
            key=_join(remedies, "key"),
            remedy=_join(remedies, "name") or "untreated",
            effect="no change",
            decades=trial_run.seen.lost(self._kind == "vanishing_through_time"),
            loss_before=trial_run.loss_before,
            loss_after=trial_run.loss_after,
            parameters_percent=100 * (count / max(self._runner.num_parameters, 1) - 1),
            time_percent=100 * (_swiftest(trial_run) / self._seconds - 1) if trial_run.is_rebuilt else 0.0,
            code=trial_run.trial_model.code,
        )


def _swiftest(trial_run: TrialRun) -> float:
    """Time of the fastest step in seconds: the one that the machine's other work has disturbed least."""
    return min(trial_run.seconds or trial_run.sampled_seconds, default=math.nan)


def _plausible(remedies: Sequence[Remedy], alert: Alert | None) -> list[Remedy]:
    """Those for the cause first, then those for the kind."""
    if alert is None:
        return []
    fitting = [r for r in remedies if alert.cause in r.causes or alert.kind in r.kinds]
    return sorted(fitting, key=lambda remedy: alert.cause not in remedy.causes)


def _best_two(remedies: Sequence[Remedy], trials: Sequence[Trial]) -> tuple[Remedy, ...]:
    """The best two that help, of different families, in the order in which remedies are applied."""
    helpful = [trial.key for trial in trials if trial.effect == "helps" and " + " not in trial.key]
    second = next((key for key in helpful if key.split(".")[0] != helpful[0].split(".")[0]), None)
    return () if second is None else tuple(r for r in remedies if r.key in (helpful[0], second))


def _join(remedies: Sequence[Remedy], name: Literal["key", "name"]) -> str:
    return " + ".join(getattr(remedy, name) for remedy in remedies)


def _brief(failure: BaseException) -> str:
    text = str(failure).strip().partition("\n")[0]
    return f"{type(failure).__name__}: {text}"[:200]


def _is_out_of_memory(failure: Exception) -> bool:
    return isinstance(failure, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(failure)


@contextmanager
def _bar(total: int, progress: bool | None) -> Iterator[Callable[[], Any]]:
    """What to call after each trial: a progress bar, unless it is quick or nobody looks."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        progress = False
    if progress is False or not total:
        yield lambda: None
        return
    with tqdm(total=total, desc="GradWatch tries remedies", delay=0 if progress else 1, leave=False) as bar:
        yield bar.update
