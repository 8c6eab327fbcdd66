"""Holds what is prescribed for the zoo's sick networks against what really cured their twins, and treats them for real.

Use: `python -m benchmarks.prescriptions [--seed 0] [--only NAME ...] [--quick] [--workers 2] [--json FILE]`.

A sick case trains with `GradWatch(prescribe=True)`. Then the remedy on top is applied and the case is trained once
more, as long as its twin; where trouble starts late the run goes on from the alert instead. A healthy case is asked
about before its first step. The zoo says, case by case, what the twin does differently (`Case.remedy`); where that is
a change of code or data there is nothing to rank.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim import Optimizer

from benchmarks.zoo import CASES, Case, Task
from benchmarks.zoo.check_labels import Recorder, ends
from benchmarks.zoo.processes import run_all
from benchmarks.zoo.table import layout
from lightning_gradwatch import Alert, GradWatch, prescribe
from lightning_gradwatch.trials.model import CannotApply, TrialModel
from lightning_gradwatch.trials.remedies import REMEDIES

_HALF = {"16-true": torch.float16, "bf16-true": torch.bfloat16}
ENOUGH = 0.8
"""Share of the twin's improvement that counts as reached."""
SECONDS = 120.0
QUICK = (
    "sigmoid_mlp10_sgd", "relu_smallinit_mlp20_sgd", "wine_raw_tanh", "relu_largeinit_mlp20", "lr_too_high",
    "l2_too_strong", "adam_eps_large", "relu_he_mlp8", "gelu_mlp8_adam", "wine_standardised_tanh",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        name: Name of the case.
        kind: Kind of the alert for which remedies were tried; ``""`` if none was raised.
        step: Its step.
        diagnosis: What was said to be wrong.
        is_needed: Whether anything was said to be wrong.
        ranked: Keys of the remedies, the best first, each with its effect, loss and decades after the trial.
        not_tried: Keys of those that could not be tried, with the reason.
        rank: Place of the first remedy that the twin used, too, from 1, among those that are said to help; None if it
            is not among them.
        top: The remedy that was applied; ``""`` if none helped.
        sick: Loss at the start and at the end, untreated.
        twin: The same of the twin.
        treated: The same with the remedy on top.
        seconds: What the trials took.
        trouble: What failed; ``""`` if nothing did.
    """

    name: str
    kind: str = ""
    step: int | None = None
    diagnosis: str = ""
    is_needed: bool = False
    ranked: tuple[tuple[str, str, float, float], ...] = ()
    not_tried: tuple[tuple[str, str], ...] = ()
    rank: int | None = None
    top: str = ""
    sick: tuple[float, float] | None = None
    twin: tuple[float, float] | None = None
    treated: tuple[float, float] | None = None
    seconds: float = 0.0
    trouble: str = ""

    @property
    def case(self) -> Case:
        """The case with its label."""
        return CASES[self.name]

    @property
    def reached(self) -> float | None:
        """Share of the twin's improvement that the treated case reached, both from the twin's first loss."""
        if self.twin is None or self.treated is None:
            return None
        start, goal = self.twin
        reached = (start - self.treated[1]) / (start - goal)
        return reached if math.isfinite(reached) else 0.0


class TrialRun(Recorder):
    """Keeps the losses, and gives the optimizer another setting or the network another shape half-way."""

    def __init__(self, treatment: Treatment | None = None, at: int | None = None) -> None:
        super().__init__()
        self.treatment, self.at = treatment, at

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Treat, once, when the step has come."""
        if self.treatment is None or self.at is None or trainer.global_step < self.at:
            return
        self.at = None
        old = trainer.optimizers[0]
        settings = [{k: v for k, v in group.items() if k != "params"} for group in old.param_groups]
        self.treatment.apply(pl_module, batch)
        made: Any = pl_module.configure_optimizers()
        new: Optimizer = made["optimizer"] if isinstance(made, dict) else made
        for group, known in zip(new.param_groups, settings, strict=True):
            group.update(known)
        self.treatment.tune(new)
        trainer.strategy.optimizers = [new]
        for config in trainer.lr_scheduler_configs:
            config.scheduler.optimizer = new


class AtStart(Callback):
    """Asks about a network before its first step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.found: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask, once."""
        if self.found is None:
            self.found = prescribe(
                pl_module, batch, optimizer=trainer.optimizers[0], max_seconds=self.seconds, progress=False
            )


class Treatment:
    """A remedy, or two together, for a real training.

    Args:
        key: Their keys, joined by ``" + "``.
    """

    def __init__(self, key: str) -> None:
        self.remedies = [next(r for r in REMEDIES if r.key == part) for part in key.split(" + ")]
        self.trial_model: TrialModel | None = None

    def apply(self, module: LightningModule, batch: Any) -> TrialModel:
        """Change the network in place; what is asked of optimizer and Trainer waits for `tune` and `trainer`."""
        trial_model = TrialModel(module, batch)
        trial_model.loss = _loss
        lengths = [part.shape[1] for part in batch if isinstance(part, torch.Tensor) and part.ndim > 1]
        trial_model.num_time_steps = max(lengths, default=0)
        for remedy in self.remedies:
            remedy.apply(trial_model)
        self.trial_model = trial_model
        return trial_model

    def tune(self, optimizer: Optimizer) -> Optimizer:
        """Settings of the optimizer, in place."""
        trial_model = self.trial_model
        assert trial_model is not None
        for group in optimizer.param_groups:
            group["lr"] *= trial_model.lr_scale
            if trial_model.adam_eps is not None and "eps" in group:
                group["eps"] = trial_model.adam_eps
            if trial_model.weight_decay is not None:
                group["weight_decay"] = trial_model.weight_decay
        return optimizer

    def trainer(self) -> dict[str, Any]:
        """Arguments of the Trainer."""
        trial_model = self.trial_model
        assert trial_model is not None
        if trial_model.loss_scale:
            scaler = torch.amp.GradScaler("cpu")
            return {"precision": None, "plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
        names = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}
        return {} if trial_model.autocast is None else {"precision": names[trial_model.autocast]}


def _to(batch: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    return [part.to(dtype) if part.is_floating_point() else part for part in batch]


def _loss(module: Any, batch: Any) -> torch.Tensor:
    output = module.training_step(batch, 0)
    loss: torch.Tensor = output["loss"] if isinstance(output, dict) else output
    return loss


def run(name: str, seed: int) -> Outcome:
    """Everything about one case."""
    case, start = CASES[name], time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return examine_healthy(case, seed) if case.label == "healthy" else examine_sick(case, seed)
        except Exception as failure:
            return Outcome(name, trouble=repr(failure), seconds=time.perf_counter() - start)


def examine_healthy(case: Case, seed: int) -> Outcome:
    """Ask about a network that learns."""
    ask = AtStart(SECONDS)
    train(build(case, seed), 1, [ask])
    found = ask.found
    return Outcome(case.name, "", 0, found.diagnosis, found.is_needed, *_rows(found.as_dict()), seconds=found.seconds)


def examine_sick(case: Case, seed: int) -> Outcome:
    """Let a network fall ill, see what is prescribed, and take it."""
    watch, trial_run = GradWatch(prescribe=SECONDS), TrialRun()
    train(build(case, seed), case.steps, [watch, trial_run])
    assert case.twin is not None
    of_twin = TrialRun()
    train(build(CASES[case.twin], seed), CASES[case.twin].steps, [of_twin])
    sick, twin = ends(trial_run.losses), ends(of_twin.losses)
    alert = next((alert for alert in watch.alerts if alert.prescription is not None), None)
    if alert is None or alert.prescription is None:
        loud = ", ".join(a.kind for a in watch.alerts if a.level == "alert")
        return Outcome(case.name, sick=sick, twin=twin, trouble=f"nothing was tried (alerts: {loud or 'none'})")
    ranked, not_tried = _rows(alert.prescription)
    helpful = [key for key, effect, *_ in ranked if effect == "helps"]
    top = helpful[0] if helpful else ""
    treated, trouble = (ends(trial_run.losses), "") if not top else treat(case, top, alert, seed)
    return Outcome(
        name=case.name,
        kind=alert.kind,
        step=alert.step,
        diagnosis=alert.prescription["diagnosis"],
        is_needed=True,
        ranked=ranked,
        not_tried=not_tried,
        rank=rank_of(case.remedy, helpful),
        top=top,
        sick=sick,
        twin=twin,
        treated=treated,
        seconds=alert.prescription["seconds"],
        trouble=trouble,
    )


def treat(case: Case, key: str, alert: Alert, seed: int) -> tuple[tuple[float, float] | None, str]:
    """Train a case as long as its twin with a remedy: from the start, or from the alert where trouble starts late."""
    assert case.twin is not None
    treatment, task, steps = Treatment(key), build(case, seed), CASES[case.twin].steps
    is_late = case.onset > 0 and not any(remedy.key.startswith("clip.") for remedy in treatment.remedies)
    try:
        if is_late:
            trial_run = TrialRun(treatment, at=alert.step + 1)
            train(task, steps, [trial_run])
        else:
            trial_run = TrialRun()
            module: Any = task.module
            batch = module.on_after_batch_transfer(next(iter(task.data)), 0)
            half = _HALF.get(str(task.trainer.get("precision")))  # as the Trainer will make of it
            trial_model = treatment.apply(*((module.to(half), _to(batch, half)) if half else (module, batch)))
            factory = module.optimizer
            module.optimizer = lambda parameters: treatment.tune(factory(parameters))
            callbacks: list[Any] = (
                [trial_run, WarmUp(trial_model.warmup_steps)] if trial_model.warmup_steps else [trial_run]
            )
            if trial_model.clip is not None:
                callbacks.append(GradWatch(auto_clip=trial_model.clip, compose_clipping=True))
            task.trainer.update(treatment.trainer())
            train(task, steps, callbacks)
    except (CannotApply, RuntimeError, ValueError, TypeError) as failure:
        return None, f"{key} could not be applied to the training: {failure!r}"
    return ends(trial_run.losses), ""


class WarmUp(Callback):
    """Raises the learning rate linearly over the first steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.rates = steps, list[float]()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate of this step."""
        groups = trainer.optimizers[0].param_groups
        self.rates = self.rates or [group["lr"] for group in groups]
        if trainer.global_step <= self.steps:
            for group, rate in zip(groups, self.rates, strict=True):
                group["lr"] = rate * min(1.0, (trainer.global_step + 1) / self.steps)


def build(case: Case, seed: int) -> Task:
    """The case, afresh."""
    seed_everything(seed, verbose=False)
    return case.build()


def train(task: Task, steps: int, callbacks: Sequence[Any]) -> None:
    """Train on the CPU, quietly."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": -1, **quiet, **task.trainer}
    Trainer(max_steps=steps, callbacks=list(callbacks), **options).fit(task.module, task.data)


def rank_of(patterns: Iterable[str], keys: Sequence[str]) -> int | None:
    """Place, from 1, of the first remedy (or pair) that holds one of those that are meant; None if there is none."""
    return next((i for i, key in enumerate(keys, 1) if _holds(key, patterns)), None)


def _holds(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(part, pattern) for part in key.split(" + ") for pattern in patterns)


def _rows(prescription: Any) -> tuple[Any, Any]:
    trials = [(t["key"], t["effect"], t["loss_after"], t["decades"]) for t in prescription["trials"]]
    return tuple(trials), tuple((n["key"], n["why"]) for n in prescription["not_tried"])


def report(outcomes: Sequence[Outcome]) -> str:
    """A table of the sick cases, what was said of the healthy ones, and the totals."""
    sick = [outcome for outcome in outcomes if outcome.case.label != "healthy"]
    healthy = [outcome for outcome in outcomes if outcome.case.label == "healthy"]
    rows = [_row(outcome) for outcome in sick]
    header = ("case", "alert", "twin's remedy", "rank", "remedy on top", "sick", "treated", "twin", "reached")
    parts = [layout(header, rows)] if rows else []
    parts += [f"{o.name}: {o.trouble}" for o in outcomes if o.trouble]
    parts += [f"{o.name} is healthy, but: {o.diagnosis}" for o in healthy if o.is_needed]
    parts += [f"\n{totals(title, part)}" for title, part in _parts(outcomes)]
    return "\n".join(parts)


def _parts(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    held_out = [outcome for outcome in outcomes if outcome.case.held_out]
    others = [outcome for outcome in outcomes if not outcome.case.held_out]
    parts = [("All cases", list(outcomes)), ("Tuning part", others), ("Held-out part", held_out)]
    return [(title, part) for title, part in parts if part]


def totals(title: str, outcomes: Sequence[Outcome]) -> str:
    """The percentages of the benchmark."""
    sick = [outcome for outcome in outcomes if outcome.case.label == "sick"]
    rankable = [outcome for outcome in sick if outcome.case.remedy]
    others = [outcome for outcome in sick if not outcome.case.remedy]
    healthy = [outcome for outcome in outcomes if outcome.case.label == "healthy"]
    on_top = [outcome for outcome in rankable if outcome.rank is not None and outcome.rank <= 2]
    cured = [outcome for outcome in rankable if (outcome.reached or 0.0) >= ENOUGH]
    all_cured = [outcome for outcome in sick if (outcome.reached or 0.0) >= ENOUGH]
    quiet = [outcome for outcome in healthy if not outcome.is_needed and not outcome.trouble]
    rows = (
        ("the twin's remedy is ranked first or second", _share(on_top, rankable)),
        ("the remedy on top reaches 80 % of the twin's improvement", _share(cured, rankable)),
        ("the same, with the cases that only other code or data can cure", _share(all_cured, sick)),
        ("of these last cases, no remedy is said to help", _share([o for o in others if not o.top], others)),
        ("healthy cases of which nothing is said to be needed", _share(quiet, healthy)),
    )
    return layout((title, ""), rows)


def _share(some: Sequence[object], of: Sequence[object]) -> str:
    return f"{len(some)} / {len(of)} ({len(some) / len(of):.0%})" if of else "-"


def _row(outcome: Outcome) -> tuple[str, ...]:
    losses = (outcome.sick, outcome.treated, outcome.twin)
    return (
        outcome.name + (" (held out)" if outcome.case.held_out else ""),
        f"{outcome.kind}@{outcome.step}" if outcome.kind else "-",
        " ".join(outcome.case.remedy) or "code or data",
        "-" if outcome.rank is None else str(outcome.rank),
        outcome.top or "none helps",
        *("-" if pair is None else f"{pair[1]:.3g}" for pair in losses),
        "-" if outcome.reached is None else f"{outcome.reached:.0%}",
    )


def as_record(outcome: Outcome) -> dict[str, Any]:
    """An outcome for a file; numbers that JSON does not know become strings."""
    facts = {"held_out": outcome.case.held_out, "remedy": outcome.case.remedy, "reached": outcome.reached}
    return dict(_plain({**asdict(outcome), **facts}))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def main() -> int:
    """Read the arguments, run the cases and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prescriptions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases to run; by default all sick and healthy ones")
    parser.add_argument("--quick", action="store_true", help=f"only {len(QUICK)} cases")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for every outcome in full")
    arguments = parser.parse_args()
    judged = [name for name, case in CASES.items() if case.label == "healthy" or (case.label == "sick" and case.twin)]
    names = list(dict.fromkeys(arguments.only or (QUICK if arguments.quick else judged)))
    if unknown := sorted(set(names) - set(judged)):
        parser.error(f"no such sick or healthy case: {', '.join(unknown)}")
    if arguments.workers < 1:
        parser.error("--workers must be at least 1")
    outcomes = run_all(run, names, arguments.seed, arguments.workers)
    print(report(outcomes))
    if arguments.json is not None:
        records = [as_record(outcome) for outcome in outcomes]
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "cases": records}, indent=1), encoding="utf-8")
    return int(any(outcome.trouble for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
