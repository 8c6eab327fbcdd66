"""A fast part of the zoo: one network per kind of trouble, its cause, and healthy ones that look odd."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import pytest

from benchmarks.zoo import CASES, blind
from lightning_gradwatch import Alert, GradWatch
from tests.tasks import quiet_trainer, session_of

SICK = [
    "sigmoid_mlp10_sgd",
    "relu_smallinit_nobias_mlp12",
    "tanh_hugeinit_mlp20_sgd",
    "wine_raw_tanh",
    "dead_relu_mid",
    "detached_encoder",
    "output_saturated_mse",
    "lr_too_small",
    "lr_too_high",
    "nan_batch",
    "log_of_zero",
    "fp16_underflow",
    "adam_eps_dominates",
    "late_weight_decay",
    "rnn_explode_T60",
]
HEALTHY = [
    "relu_he_mlp20",
    "sigmoid_bn_mlp10",
    "tiny_loss_adam",
    "lora",
    "zero_init_residual",
    "sparse_embeddings",
    "lr_warmup",
    "thawed_midway",
    "moe_rare_experts",
    "inplace_relu_mlp8",
    "unused_params",
    "accumulated_gelu8",
]

AT_ONCE = {"sigmoid_mlp10_sgd", "dead_relu_mid", "detached_encoder", "lr_too_high", "nan_batch", "rnn_explode_T60"}
AT_ONCE |= {"relu_he_mlp20", "tiny_loss_adam", "lora", "zero_init_residual", "lr_warmup", "unused_params"}
"""Those that are trained in every run of the tests; the others in the slow ones."""


def cases(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in AT_ONCE)) for name in names]


def alerts_of(name: str) -> list[Alert]:
    case, watch = CASES[name], GradWatch()
    pl.seed_everything(0, verbose=False)
    task = case.build()
    trainer = quiet_trainer(watch, **{"max_steps": case.steps, **task.trainer})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task.module, task.data)
    assert not session_of(watch).is_off
    return watch.alerts


@pytest.mark.parametrize("name", cases(SICK))
def test_sick_networks_are_found_with_their_cause(name: str) -> None:
    case, alerts = CASES[name], alerts_of(name)
    kinds = {alert.kind for alert in alerts}
    assert kinds & case.required
    assert kinds <= case.required | case.acceptable
    assert {alert.cause for alert in alerts} & case.causes
    assert all(alert.step >= case.onset for alert in alerts)


@pytest.mark.parametrize("name", cases(HEALTHY))
def test_healthy_networks_are_left_alone(name: str) -> None:
    assert alerts_of(name) == []


def test_every_sick_network_has_a_twin_that_is_healthy_and_no_name_stands_twice() -> None:
    known = {**CASES, **blind.CASES}
    assert len(known) == len(CASES) + len(blind.CASES)
    twins = {case.name: case.twin for case in known.values() if case.twin is not None}
    assert {known[twin].label for twin in twins.values()} <= {"healthy", "borderline"}
    assert all(case.held_out for case in blind.CASES.values())
