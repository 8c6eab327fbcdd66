"""What ``gradwatch report --json`` prints: a schema that other programs may rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_gradwatch.cli.choice import exit_status
from lightning_gradwatch.cli.logs import Logs, OpenRun, Run
from lightning_gradwatch.core.quantities import BY_NAME
from lightning_gradwatch.paths import Place
from lightning_gradwatch.reading import answers
from lightning_gradwatch.reading.heatmaps import Column, column
from lightning_gradwatch.reading.schema import SCHEMA_VERSION, plain


def encode(logs: Logs, runs: Sequence[Run], directory: Place) -> dict[str, Any]:
    """Runs as plain JSON; NaN and infinity are the words ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.

    Args:
        logs: Where they are.
        runs: The sickest first.
        directory: Where the logs lie.

    Returns:
        ``schema`` (rises only if something is taken away or changes its meaning), ``directory``, ``exit_status`` and
        ``runs``: of each ``run``, ``status``, ``headline``, ``num_open``, ``last_step``, ``wall_time``, ``state``
        (whether it goes on: see ``State``), ``state_text`` (in a few words), ``alerts`` (the fields of ``Alert``, the
        oldest first), ``num_dropped``, ``damage`` (the fields of ``Damage``), ``left_out`` (those of ``LeftOut``),
        ``scalars``, ``loss_tag``, and ``optimizers`` with ``name`` and ``versions``: of each ``version``, ``layers``,
        ``first_step``, ``last_step``, ``num_samples`` (steps that were observed), ``quantities``, ``sequences`` and
        ``latest``, which is ``step``, ``last_step`` and ``values`` by quantity, one per layer: the largest in these
        steps; -1 is "no gradient" or "not observed".
    """
    content = {
        "schema": SCHEMA_VERSION,
        "directory": str(directory),
        "exit_status": exit_status(runs),
        "runs": [_run(logs, run) for run in runs],
    }
    return dict(plain(content))


def _run(logs: Logs, run: Run) -> dict[str, object]:
    whole = logs.open(run)
    document = {name: value for name, value in whole.document.items() if name not in ("stamp", "view")}
    document["optimizers"] = [_optimizer(whole, optimizer) for optimizer in whole.document["optimizers"]]
    return {
        **document,
        "last_step": run.last_step,
        "wall_time": run.wall_time,
        "state": run.state,
        "state_text": run.state_text,
    }


_OF_THE_TAB = ("rows", "norms", "num_vectors")
"""What only a picture needs."""


def _optimizer(run: OpenRun, optimizer: answers.OptimizerContents) -> dict[str, object]:
    name = optimizer["name"]
    versions = []
    for version in optimizer["versions"]:
        told = {field: value for field, value in version.items() if field not in _OF_THE_TAB}
        versions.append({**told, "latest": _latest(run, name, version)})
    return {**optimizer, "versions": versions}


def _latest(run: OpenRun, optimizer: str, version: answers.VersionContents) -> dict[str, Column]:
    series = run.quantities(optimizer, version["version"])
    names = [name for name in {**BY_NAME, **run.catalogue.own_quantities} if name in series]
    return {name: column(run.store, series[name], version["last_step"]) for name in names}
