"""How runs under DeepSpeed go on after alerts, after another fit and after a refusal, one process per rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_gradwatch import GradWatch
from tests.setups.acting import act
from tests.setups.deepspeed.cpu import pretend_float16
from tests.setups.deepspeed.deepspeed_training import (
    STAGES,
    WATCH,
    Regression,
    full_weights,
    refusal,
    sgd,
    train,
)
from tests.setups.fsdp1_training import sick
from tests.setups.sharded_training import BATCH, make_data, make_net
from tests.tasks import session_of, watchers_of

ACTING: dict[str, tuple[int, dict[str, Any]]] = {
    **{str(stage): (stage, {}) for stage in STAGES},
    "2 accumulating": (2, {"accumulate_grad_batches": 2}),
}


def act_all(directory: Path) -> dict[str, Any]:
    """What is done about an alert, at every stage, and where batches are accumulated."""

    def train_with(stage: int, options: dict[str, Any]) -> Any:
        return lambda watch, **more: train(stage, watch, net=sick, make_optimizer=sgd, **options, **more)

    return {name: act(train_with(*how), directory / name) for name, how in ACTING.items()}


NUM_RESUMED_STEPS = 30


def resume_all(directory: Path) -> dict[str, Any]:
    """Weights of a whole training, of one from the checkpoint that an alert has left, and before that.

    All batches are the same, since Lightning begins the epoch again.
    """
    told: dict[str, Any] = {}
    for stage in STAGES:
        here = directory / str(stage)
        same: dict[str, Any] = {"net": sick, "make_optimizer": sgd, "data": make_data()[:BATCH].repeat(64, 1, 1)}
        how: dict[str, Any] = {**same, "directory": here, "default_root_dir": here}
        whole = train(stage, GradWatch(on_alert={"vanishing": "checkpoint"}), max_steps=NUM_RESUMED_STEPS, **how)
        (saved,) = here.rglob("gradwatch-vanishing-*.ckpt")
        resumed = train(stage, GradWatch(), resume=saved, max_steps=NUM_RESUMED_STEPS, **how)
        half = train(stage, GradWatch(), max_steps=NUM_RESUMED_STEPS // 2, **how)
        told[str(stage)] = [full_weights(trainer) for trainer in (whole, resumed, half)]
    return told


WEIGHED = [(stage, accumulate) for stage in STAGES for accumulate in (1, 4)]
NUM_WEIGHED_STEPS = 8


def still(parameters: Any) -> torch.optim.Optimizer:
    """It moves nothing, so that the loss is that of the first weights, however many steps the loss scaler skips."""
    return torch.optim.SGD(parameters, lr=0.0)


def weigh(stage: int, accumulate: int, directory: Path, **options: Any) -> None:
    """Record the loss of every step."""
    options = {"accumulate_grad_batches": accumulate, "max_steps": NUM_WEIGHED_STEPS, **options}
    train(stage, GradWatch(**WATCH), directory=directory, make_optimizer=still, **options)


def weigh_all(directory: Path) -> dict[str, Any]:
    """In half precision, with DeepSpeed's own loss scaler."""
    pretend_float16()
    for stage, accumulate in WEIGHED:
        weigh(stage, accumulate, directory / f"{stage} {accumulate}", precision="16-mixed")
    return {}


NUM_FIRST_STEPS, NUM_STEPS = 14, 40
REFITTED = (2, 3)


def fit_twice(stage: int, net: str, directory: Path) -> dict[str, Any]:
    """The second fit of a model goes on with the first; in one process at stage 0."""
    watch = GradWatch(**{**WATCH, "dense_steps": NUM_STEPS})
    options: dict[str, Any] = {"net": sick} if net == "sick" else {}
    trainer = train(stage, watch, directory=directory, make_optimizer=sgd, max_steps=NUM_FIRST_STEPS, **options)
    alerts = [[(alert.kind, alert.step) for alert in watch.alerts]]
    trainer.fit_loop.epoch_loop.max_steps = NUM_STEPS
    trainer.fit(trainer.lightning_module, trainer.train_dataloader)
    alerts.append([(alert.kind, alert.step) for alert in watch.alerts])
    num_steps = [watcher.sampling.num_steps for watcher in watchers_of(watch)]
    return {"alerts": alerts, "num_steps": num_steps, "is_off": session_of(watch).is_off}


def fit_after_refusals(stage: int, directory: Path) -> dict[str, Any]:
    """A watch that was refused with one Trainer watches with the next; and so does one of a model that had another."""
    watch = GradWatch(**WATCH)
    refused = [refusal(stage, watch, zero={"stage": 0}) if stage else ""]
    trained = Regression(lambda: make_net("fsdp"), sgd, 1)
    again: Any = {"model": lambda *_: trained}
    refused.append(refusal(stage, GradWatch(auto_clip="agc"), **again) if stage else "")
    train(stage, watch, directory=directory, **again)
    return {"refused": refused, "is_off": session_of(watch).is_off}


def fit_all(directory: Path) -> dict[str, Any]:
    """Under DeepSpeed, one after the other."""
    told: dict[str, Any] = {}
    for stage in REFITTED:
        for net in ("usual", "sick"):
            told[f"{net} {stage}"] = fit_twice(stage, net, directory / f"{net} {stage}")
        told[f"refused {stage}"] = fit_after_refusals(stage, directory / f"refused {stage}")
    return told
