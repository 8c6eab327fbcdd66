"""What is done about an alert where ranks hold parts of the gradients: each must do it at the same step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_gradwatch import GradientAlertError, GradWatch

STOPPED_BY = 40


def act(train_sick: Callable[..., pl.Trainer], directory: Path) -> dict[str, Any]:
    """Train a network that alerts, with each of the actions: steps or kinds of alerts, checkpoints, steps of calls."""
    called: list[int] = []
    told: dict[str, Any] = {}
    for action in ("stop", "checkpoint", "raise", lambda alert: called.append(alert.step)):
        name = action if isinstance(action, str) else "call"
        watch, here = GradWatch(on_alert={"vanishing": action}), directory / name
        try:
            trainer = train_sick(watch, directory=here, max_steps=STOPPED_BY, default_root_dir=here)
            outcome: object = trainer.global_step
        except GradientAlertError as failure:
            outcome = [alert.kind for alert in failure.alerts]
        torch.distributed.barrier()
        told[name] = [outcome, sorted(path.name for path in here.rglob("gradwatch-*.ckpt")), list(called)]
    return told


def assert_acted_alike(ranks: list[dict[str, Any]]) -> None:
    """All ranks have done the same, at the same step."""
    assert ranks == [ranks[0]] * len(ranks)
    outcomes = ranks[0]
    stopped_at = outcomes["stop"][0]
    assert outcomes["stop"] == [stopped_at, [], []]
    assert 1 < stopped_at < STOPPED_BY
    assert outcomes["raise"] == [["vanishing"], [], []]
    steps, (saved,), _ = outcomes["checkpoint"]
    assert steps == STOPPED_BY
    assert saved.startswith("gradwatch-vanishing-step=")
    steps, _, calls = outcomes["call"]
    assert (steps, len(calls)) == (STOPPED_BY, 1)
