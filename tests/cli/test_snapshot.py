"""``gradwatch snapshot`` on the logs of real trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.quantities import BY_NAME
from tests.cli.command import alert, gradwatch, here
from tests.tasks import Classifier, deep_net, fit
from tests.tensorboard.browser import write_run
from tests.tensorboard.logs import SICK_LAYERS
from tests.tensorboard.record import record

ALWAYS = {"grad_norm", "output_grad_norm", "update_ratio", "weight_norm", "zero_fraction", "nonfinite_fraction"}


def told(capsys: Any, *arguments: Any) -> dict[str, Any]:
    """The JSON."""
    status, out, err = here(capsys, "snapshot", *arguments, "--json")
    assert err == ""
    document: dict[str, Any] = json.loads(out)
    assert document["exit_status"] == status
    return document


def test_every_quantity_of_every_layer_is_there(logs: Path, capsys: Any) -> None:
    document = told(capsys, logs / "sick", "--step", 20)
    assert (document["schema"], document["step"], document["status"], document["last_step"]) == (1, 20, "sick", 39)
    (optimizer,) = document["optimizers"]
    assert [layer["layer"] for layer in optimizer["layers"]] == SICK_LAYERS
    assert set(optimizer["samples"]) == {*ALWAYS, "log10_histogram"}
    for layer in optimizer["layers"]:
        assert set(layer) == {"layer", "values", "grad_norm_range", "histogram"}
        assert set(layer["values"]) == ALWAYS
        assert layer["histogram"]["p5"] < layer["histogram"]["p50"] < layer["histogram"]["p95"]
    norms = [layer["values"]["grad_norm"] for layer in optimizer["layers"]]
    assert norms[-1] > 1e6 * norms[0] > 0
    assert set(optimizer["numbers"]) >= {"loss", "total_norm"}
    assert optimizer["numbers"]["total_norm"]["mean"] == pytest.approx(np.linalg.norm(norms), rel=0.01)


def test_the_numbers_are_those_of_the_step(tmp_path: Path, capsys: Any) -> None:
    """The gradient of the step, measured beside GradWatch, is what the snapshot tells."""

    class Norms(pl.Callback):
        """Weight and gradient norms before each step, in float64."""

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            layers = [module for module in pl_module.modules() if isinstance(module, nn.Linear)]
            gradients = [[p.grad.flatten() for p in layer.parameters() if p.grad is not None] for layer in layers]
            norms[trainer.global_step] = [float(torch.cat(parts).double().norm()) for parts in gradients]
            middles[trainer.global_step] = [float(torch.cat(parts).abs().median()) for parts in gradients]

    norms: dict[int, list[float]] = {}
    middles: dict[int, list[float]] = {}
    net = deep_net(nn.Tanh, depth=4)
    fit(GradWatch(histogram_every=1), Classifier(net), directory=tmp_path, callbacks=[Norms()], max_steps=12)
    for step in range(12):
        (optimizer,) = told(capsys, tmp_path, "--step", step)["optimizers"]
        assert optimizer["samples"]["grad_norm"] == {"step": step, "last_step": step, "num_steps": 1}
        assert [layer["values"]["grad_norm"] for layer in optimizer["layers"]] == pytest.approx(norms[step], rel=2e-3)
        if optimizer["samples"]["log10_histogram"]["step"] == step:  # bins are a quarter of a decade wide
            found = [layer["histogram"]["p50"] for layer in optimizer["layers"]]
            assert found == pytest.approx(middles[step], rel=10**0.25 - 1)


def test_of_several_steps_it_tells_the_range_and_the_steps(tmp_path: Path, capsys: Any) -> None:
    with record(tmp_path, ["a", "b"]) as run:
        norms = np.array([[1.0, 1.0], [100.0, 1.0], [10.0, 1.0], [10.0, -1.0]] + [[2.0, 3.0]] * 4)
        run.write(0, norms, [[float(i), float(10 * i)] for i in range(8)], width=4)
    (optimizer,) = told(capsys, tmp_path, "--step", 2)["optimizers"]
    assert optimizer["samples"]["grad_norm"] == {"step": 0, "last_step": 3, "num_steps": 4}
    ends = optimizer["layers"][0]["grad_norm_range"]
    assert [ends["low"], ends["mean"], ends["high"]] == pytest.approx([1.0, 10.0, 100.0], rel=0.02)
    assert optimizer["layers"][0]["values"]["grad_norm"] == ends["high"]
    loss = optimizer["numbers"]["loss"]
    assert (loss["low"], loss["mean"], loss["high"]) == (0.0, 15.0, 30.0)
    out = here(capsys, "snapshot", tmp_path, "--step", 2)[1]
    assert "loss: 15, from 0 to 30 (steps 0-3)" in out
    assert "grad_norm high" in out


@pytest.mark.parametrize(("step", "nearest"), [(0, 0), (4, 0), (5, 0), (6, 10), (10, 10), (14, 10), (29, 20)])
def test_a_quantity_that_was_not_measured_then_is_that_of_the_nearest_step(
    tmp_path: Path, capsys: Any, step: int, nearest: int
) -> None:
    with record(tmp_path, ["a"]) as run:
        run.write(0, [[1.0]] * 30)
        for sampled in (0, 10, 20):
            run.write_plain("weight_norm", sampled, [float(sampled)])
    (optimizer,) = told(capsys, tmp_path, "--step", step)["optimizers"]
    assert optimizer["samples"]["weight_norm"]["step"] == nearest
    assert optimizer["layers"][0]["values"]["weight_norm"] == nearest
    assert optimizer["samples"]["grad_norm"]["step"] == step


def test_what_is_no_number_is_a_word_and_what_is_missing_is_null(tmp_path: Path, capsys: Any) -> None:
    with record(tmp_path, ["nan", "inf", "none", "zero"]) as run:
        run.write(0, [[float("nan"), float("inf"), -1.0, 0.0]])
        run.write_plain("weight_norm", 0, [float("nan"), float("inf"), -1.0, 0.0])
    (optimizer,) = told(capsys, tmp_path, "--step", 0)["optimizers"]
    for quantity in ("grad_norm", "weight_norm"):
        assert [layer["values"][quantity] for layer in optimizer["layers"]] == ["NaN", "Infinity", None, 0.0]
    assert [layer["histogram"] for layer in optimizer["layers"]] == [None] * 4
    rows = here(capsys, "snapshot", tmp_path)[1].splitlines()[-4:]
    assert [row.split()[1] for row in rows] == ["NaN", "Infinity", "-", "0"]


def test_every_optimizer_tells_its_layers(logs: Path, capsys: Any) -> None:
    found = told(capsys, logs / "gan")["optimizers"]
    assert len({optimizer["name"] for optimizer in found}) == 2
    assert {layer["layer"][0] for layer in found[0]["layers"]} != {layer["layer"][0] for layer in found[1]["layers"]}
    assert here(capsys, "snapshot", logs / "gan")[1].count("\nOptimizer ") == 2


def test_layers_are_those_of_the_time(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path / "first", ["a"], {step: [1.0] for step in range(10)})
    for version, names in enumerate((["a"], ["a", "b"])):
        with record(tmp_path / "run", names, version=version) as run:
            run.write(10 * version, [[1.0] * len(names)] * 10)
    for step, names in ((3, ["a"]), (12, ["a", "b"])):
        (optimizer,) = told(capsys, tmp_path, "--run", "run", "--step", step)["optimizers"]
        assert [layer["layer"] for layer in optimizer["layers"]] == names


def test_a_log_of_an_early_version_is_read(stored: Path, capsys: Any) -> None:
    document = told(capsys, stored, "--step", 12)
    (optimizer,) = document["optimizers"]
    assert optimizer["samples"]["grad_norm"]["num_steps"] == 1
    assert set(optimizer["numbers"]) == {"loss", "total_norm"}
    assert all(set(layer["values"]) <= set(BY_NAME) for layer in optimizer["layers"])


def test_the_last_step_is_meant_unless_told_otherwise(logs: Path, capsys: Any) -> None:
    assert told(capsys, logs / "healthy") == told(capsys, logs / "healthy", "--step", 39)


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_the_table_fits_the_window(logs: Path, columns: int) -> None:
    found = gradwatch("snapshot", logs / "clipped", COLUMNS=str(columns))
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    heads = [word for line in lines for word in line.split() if word in BY_NAME]
    assert set(heads) == {*ALWAYS, "clipped_fraction"}
    assert len(heads) == len(set(heads))


@pytest.mark.parametrize("step", ["40", "1000000000000"])
def test_a_step_that_is_not_on_record_is_refused(logs: Path, capsys: Any, step: str) -> None:
    status, out, err = here(capsys, "snapshot", logs / "healthy", "--step", step)
    assert (status, out) == (2, "")
    assert f"`--step` must be from 0 to 39, the steps on record, but {step} came. To cure it" in err


def test_where_there_are_several_runs_one_must_be_named(logs: Path, capsys: Any) -> None:
    status, out, err = here(capsys, "snapshot", logs, "--step", "3")
    assert (status, out) == (2, "")
    assert "`--run` must name one run" in err
    assert "'healthy'" in err
    assert told(capsys, logs, "--run", "healthy/", "--step", "3")["run"] == "healthy"
    assert "`--run` must be a run in" in here(capsys, "snapshot", logs, "--run", "helthy")[2]


def test_a_run_of_which_there_are_only_alerts_is_refused(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path, [], {}, alert())
    status, out, err = here(capsys, "snapshot", tmp_path)
    assert (status, out) == (2, "")
    assert "`RUN_DIR` must hold a run of which layers are on record" in err
