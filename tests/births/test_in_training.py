"""A run says where its NaN was born, while its weights are still whole."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.births.cases import BATCH, SIZE
from lightning_gradwatch import GradientAlertError, GradWatch, watch
from lightning_gradwatch.outputs import alerts_file
from tests.tasks import Classifier, quiet_trainer

BAD = 30
"""The step whose batch spoils the forward pass: between two samples of the watch, long after its dense start."""


class Rooted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x.abs().sum(1, keepdim=True)) + x


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Rooted(), nn.Linear(SIZE, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def batches(steps: int = 40) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    made = [(torch.randn(BATCH, SIZE, generator=random) + 3, torch.arange(BATCH) % 3) for _ in range(steps)]
    if steps > BAD:
        made[BAD][0][2] = 0.0
    return made


def loader() -> DataLoader[Any]:
    inputs, targets = zip(*batches(), strict=True)
    return DataLoader(TensorDataset(torch.cat(inputs), torch.cat(targets)), batch_size=BATCH)


def fitted(tmp_path: Path, watcher: GradWatch | None, model: Any = None) -> pl.LightningModule:
    pl.seed_everything(1, verbose=False)
    model = model or Classifier(net(), lr=0.01)
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="")
    callbacks = [] if watcher is None else [watcher]
    quiet_trainer(*callbacks, logger=logger, max_steps=40).fit(model, loader())
    return model  # type: ignore[no-any-return]


def check(alert: Any) -> None:
    assert alert.kind == "nonfinite"
    assert alert.birth["stage"] == "forward"
    assert alert.birth["module"].endswith("0")
    assert alert.birth["file"] == "test_in_training.py"
    assert "torch.log" in alert.birth["code"]
    assert alert.birth["samples"] == [2]
    assert "the logarithm of 0 in 1 of 8 elements" in alert.evidence
    assert alert.evidence[1:] in alert.message
    assert alert.remedies[0] == "a logarithm that never sees 0: torch.log(x.clamp(min=1e-6)), or a fused loss on logits"
    assert "one run" not in alert.message


def test_skipped_steps_are_traced_at_once_wherever_they_come(tmp_path: Path) -> None:
    watcher = GradWatch(on_nonfinite="skip")
    fitted(tmp_path, watcher)
    (alert,) = watcher.alerts
    assert alert.step == BAD
    check(alert)
    lines = alerts_file.read(tmp_path)
    assert [line["event"] for line in lines][:2] == ["opened", "traced"]
    assert lines[1]["birth"] == alert.birth  # type: ignore[typeddict-item]


def test_a_step_that_is_taken_nevertheless_is_traced_before(tmp_path: Path) -> None:
    watcher = GradWatch(on_nonfinite="trace")
    model = fitted(tmp_path, watcher)
    (alert,) = watcher.alerts
    assert alert.step == BAD
    check(alert)
    assert not all(bool(value.isfinite().all()) for value in model.state_dict().values())


def test_a_run_of_which_the_loss_is_not_known_says_at_once_that_it_cannot_be_traced() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match=r"pass `loss_fn=`, and call `before_forward\(batch\)`"):
        watch(model, optimizer, on_nonfinite="trace").close()


def test_a_loss_scalers_run_is_traced_where_the_fault_stays() -> None:
    """Its alert comes after several steps in a row; the batch that is at hand then is replayed."""
    model = net()
    optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    made = batches()
    for inputs, _ in made[20:]:
        inputs[2] = 0.0
    with watch(model, optimizer, on_nonfinite="trace", loss_fn=loss_fn, scaler=scaler) as watched:
        for batch in made:
            watched.before_forward(batch)
            loss = loss_fn(model(batch[0]), batch[1])
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            watched.step(loss)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    check(watched.alerts[0])


def test_the_training_is_that_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = fitted(tmp_path / "traced", GradWatch(on_nonfinite="skip"))
    monkeypatch.setattr("lightning_gradwatch.responses.tracer_for", lambda *_: None)
    bare = fitted(tmp_path / "bare", GradWatch(on_nonfinite="skip"))
    for one, other in zip(traced.parameters(), bare.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_error_that_ends_a_run_tells_it(tmp_path: Path) -> None:
    with pytest.raises(GradientAlertError, match=r"Born in `net\.0`, in the forward pass") as raised:
        fitted(tmp_path, GradWatch(on_nonfinite="raise"))
    check(raised.value.alerts[0])


def test_a_failure_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncopied(Classifier):  # type: ignore[misc, valid-type]
        def __deepcopy__(self, _: Any) -> Any:
            raise TypeError("no copies")

    watcher = GradWatch(on_nonfinite="skip")
    fitted(tmp_path, watcher, Uncopied(net(), lr=0.01))
    (alert,) = watcher.alerts
    assert alert.birth is None
    assert alert.step == BAD


@pytest.mark.parametrize("every", [1, 2])
def test_a_plain_loop_with_a_loss_function_is_traced_also_under_accumulation(every: int) -> None:
    model = net()
    before = deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_fn = nn.CrossEntropyLoss()
    with watch(model, optimizer, on_nonfinite="skip", loss_fn=loss_fn) as watched:
        for place, batch in enumerate(batches(), start=1):
            watched.before_forward(batch)
            loss = loss_fn(model(batch[0]), batch[1]) / every
            loss.backward()
            if place % every == 0:
                watched.step(loss)
                optimizer.step()
                optimizer.zero_grad()
    check(watched.alerts[0])
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert not torch.equal(model.state_dict()["1.weight"], before["1.weight"])
