"""Remedies are tried in loops of the user's own, with Fabric and without, as in a Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, fabric, watch
from lightning_gradwatch.loop import WatchedLoop
from lightning_gradwatch.outputs import alerts_file
from tests.tasks import Classifier, deep_net, digits, fit

CROSS_ENTROPY = nn.CrossEntropyLoss()


def batches(steps: int = 12) -> Iterator[tuple[Tensor, Tensor]]:
    return islice(cycle(digits(32)), steps)


def sick() -> nn.Sequential:
    torch.manual_seed(0)
    return deep_net(nn.Sigmoid)


def plain(
    net: nn.Module, steps: int = 12, is_told: bool = True, log_dir: Path | None = None, **given: Any
) -> WatchedLoop:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(net, optimizer, log_dir, **given)
    for batch in batches(steps):
        if is_told:
            watched.before_forward(batch)
        loss = CROSS_ENTROPY(net(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        watched.step(loss)
        optimizer.step()
    watched.close()
    return watched


def in_fabric(net: nn.Module, precision: Any = "32-true", **given: Any) -> fabric.GradWatch:
    of = Fabric(accelerator="cpu", devices=1, precision=precision)
    model, optimizer = of.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    watched = fabric.GradWatch(of, model, optimizer, **given)
    for batch in batches():
        watched.before_forward(batch)
        optimizer.zero_grad()
        of.backward(CROSS_ENTROPY(model(batch[0]), batch[1]))
        optimizer.step()
    watched.close()
    return watched


def helpful(alerts: list[Any]) -> dict[str, float]:
    trials = alerts[0].prescription["trials"]
    return {trial["key"]: trial["loss_after"] for trial in trials if trial["effect"] == "helps"}


def test_loop_fabric_and_trainer_find_the_same_remedies() -> None:
    in_trainer = GradWatch(prescribe=True)
    fit(in_trainer, Classifier(sick(), lr=0.1), digits(32), max_steps=12)
    given: dict[str, Any] = {"prescribe": True, "loss_fn": CROSS_ENTROPY}
    expected = helpful(in_trainer.alerts)
    assert expected
    assert helpful(plain(sick(), **given).alerts) == pytest.approx(expected, rel=1e-4)
    assert helpful(in_fabric(sick(), **given).alerts) == pytest.approx(expected, rel=1e-4)


def test_training_is_left_as_it_was_and_the_file_tells(tmp_path: Path) -> None:
    bare, watched = sick(), sick()
    plain(bare)
    plain(watched, log_dir=tmp_path, prescribe=True, loss_fn=CROSS_ENTROPY)
    for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    assert any(line["event"] == "prescribed" for line in alerts_file.read(tmp_path))


def test_a_loss_function_may_take_model_and_batch() -> None:
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return CROSS_ENTROPY(model(batch["inputs"]), batch["targets"])

    net = sick()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with watch(net, optimizer, prescribe=True, loss_fn=loss_fn) as watched:
        for inputs, targets in batches():
            batch = {"inputs": inputs, "targets": targets}
            watched.before_forward(batch)
            loss = loss_fn(net, batch)
            optimizer.zero_grad()
            loss.backward()
            watched.step(loss)
            optimizer.step()
    assert helpful(watched.alerts)


def test_trials_have_the_precision_of_the_loop() -> None:
    seen: list[torch.dtype] = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return CROSS_ENTROPY(outputs, targets)

    in_fabric(sick(), "bf16-mixed", prescribe=True, loss_fn=loss_fn)
    assert seen[0] is torch.bfloat16
    seen.clear()
    net = sick()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with watch(net, optimizer, prescribe=True, loss_fn=loss_fn) as watched:
        for inputs, targets in batches():
            watched.before_forward((inputs, targets))
            with torch.autocast("cpu", torch.bfloat16):
                loss = CROSS_ENTROPY(net(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            watched.step(loss)
            optimizer.step()
    assert watched.alerts
    assert seen[0] is torch.bfloat16


def test_it_says_so_where_the_batch_is_not_known() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain(sick(), is_told=False, prescribe=True, loss_fn=CROSS_ENTROPY)
    assert any("does not know the batch" in str(each.message) for each in caught)


@pytest.mark.parametrize("loss_fn", [None, "cross entropy"])
def test_a_loss_function_is_needed(loss_fn: Any) -> None:
    net = sick()
    with pytest.raises(ValueError, match="`loss_fn` must be a function"):
        watch(net, torch.optim.SGD(net.parameters(), lr=0.1), prescribe=True, loss_fn=loss_fn)
