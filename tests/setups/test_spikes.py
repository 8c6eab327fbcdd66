"""``on_spike="skip"`` in every training setup: a bad batch leaves weights and optimizer state as they are."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.shards import local
from lightning_gradwatch.core.spikes import LEAST
from tests.setups.processes import run_ranks, tell
from tests.setups.sharded_training import Regression
from tests.tasks import Classifier, digits, quiet_trainer, read_events, scalars, small_net

BAD = LEAST + 6
STEPS = BAD + 4


class Spiked(Classifier):  # type: ignore[misc, valid-type]
    """Weighs one batch by a thousand, and remembers weights and optimizer state before each step."""

    def __init__(self, bad: int = BAD, optimizer: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__(small_net(), optimizer=optimizer, **{"lr": 0.01, **options})
        self.bad = bad
        self.before: list[Any] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.before.append(self.snapshot())
        weight = 1000.0 if len(self.before) - 1 == self.bad else 1.0
        return weight * super().training_step(batch, batch_idx)

    def snapshot(self) -> list[Tensor]:
        states = self.optimizers().state.values()  # type: ignore[union-attr]
        tensors = [v for state in states for v in state.values() if isinstance(v, Tensor)]
        return [t.detach().clone() for t in [*self.parameters(), *tensors]]


def still_steps(model: Any) -> list[int]:
    """The batches that have moved nothing."""
    pairs = zip(model.before, [*model.before[1:], model.snapshot()], strict=True)
    is_still = [len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in pairs]
    return [step for step, still in enumerate(is_still) if still]


ADAM: dict[str, Any] = {"optimizer": torch.optim.Adam, "weight_decay": 0.1}


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, ADAM, {**ADAM, "fused": True}, {"fused": True, "momentum": 0.9}],
    ids=["sgd", "momentum", "adam", "fused adam", "fused sgd"],
)
@pytest.mark.parametrize("auto_clip", [None, True])
def test_a_spike_moves_nothing_and_is_counted(tmp_path: Path, options: dict[str, Any], auto_clip: Any) -> None:
    model, watch = Spiked(**options), GradWatch(on_spike="skip", auto_clip=auto_clip)
    trainer = quiet_trainer(watch, directory=tmp_path, max_steps=STEPS, log_every_n_steps=1)
    trainer.fit(model, digits())
    assert still_steps(model) == [BAD]
    skipped = scalars(read_events(tmp_path), "gradwatch/spikes_skipped")
    assert (skipped[BAD - 1], skipped[STEPS - 1]) == (0, 1)
    assert scalars(read_events(tmp_path), "gradwatch/total_norm_max")[BAD] > 100  # what was skipped is shown
    assert not hasattr(trainer.optimizers[0], "found_inf")


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_loss_scaler_the_scale_stays(fused: bool) -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
    model = Spiked(**ADAM, fused=fused)
    quiet_trainer(GradWatch(on_spike="skip"), max_steps=STEPS, plugins=[precision]).fit(model, digits())
    assert still_steps(model) == [BAD]
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == 64.0


def test_kept_spikes_move_the_weights() -> None:
    model = Spiked()
    quiet_trainer(GradWatch(), max_steps=STEPS).fit(model, digits())
    assert still_steps(model) == []


def test_under_accumulation_a_bad_micro_batch_holds_up_its_step() -> None:
    model = Spiked(bad=2 * BAD)  # the first of the two, so that its loss is not the last one seen
    quiet_trainer(GradWatch(on_spike="skip"), max_steps=STEPS, accumulate_grad_batches=2, max_epochs=-1).fit(
        model, digits()
    )
    moved = [step for step in range(1, len(model.before), 2) if step not in still_steps(model)]
    assert moved == [step for step in range(1, 2 * STEPS, 2) if step != 2 * BAD + 1]


class Two(Classifier):  # type: ignore[misc, valid-type]
    """Two networks, each with an optimizer of its own; one batch is bad for the second alone."""

    def __init__(self) -> None:
        super().__init__(small_net())
        self.automatic_optimization = False
        self.other = small_net()
        self.moved: list[list[bool]] = []

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.01) for net in (self.net, self.other)]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        moved = []
        for net, optimizer, bad in zip((self.net, self.other), self.optimizers(), (None, BAD), strict=True):
            before = [p.detach().clone() for p in net.parameters()]
            loss = nn.functional.cross_entropy(net(batch[0]), batch[1]) * (1000.0 if len(self.moved) == bad else 1.0)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            moved.append(not all(map(torch.equal, before, net.parameters())))
        self.moved.append(moved)


def test_each_optimizer_has_spikes_of_its_own() -> None:
    model = Two()
    quiet_trainer(GradWatch(on_spike="skip"), max_steps=2 * STEPS, max_epochs=-1).fit(model, digits())
    assert model.moved == [[True, step != BAD] for step in range(STEPS)]


def test_a_resumed_run_knows_what_is_usual(tmp_path: Path) -> None:
    path = tmp_path / "before.ckpt"
    trainer = quiet_trainer(GradWatch(on_spike="skip"), max_steps=BAD)
    trainer.fit(Spiked(bad=-1), digits())
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    model = Spiked(bad=0)
    quiet_trainer(GradWatch(on_spike="skip"), max_steps=BAD + 3).fit(model, digits(), ckpt_path=path)
    assert still_steps(model) == [0]


class Poisoned(pl.Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == BAD - 2:
            next(pl_module.parameters()).grad[:] = math.nan


@pytest.mark.parametrize("fused", [False, True])
def test_it_goes_together_with_skipping_what_is_not_finite(fused: bool) -> None:
    model = Spiked(**ADAM, fused=fused)
    watch = GradWatch(on_spike="skip", on_nonfinite="skip")
    quiet_trainer(Poisoned(), watch, max_steps=STEPS).fit(model, digits())
    assert still_steps(model) == [BAD - 2, BAD]


# --- several ranks


LOUD, LONELY = BAD - 4, BAD
"""At the one step a rank has a loss that leaps and no gradient that does, at the other its gradient leaps."""


class Ranked(Regression):
    """Tells which steps have moved this rank's weights."""

    def __init__(self) -> None:
        super().__init__("fsdp")
        self.moved: list[int] = []

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            super().configure_model()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        is_loud = batch_idx == LOUD and self.global_rank == 0
        is_lonely = batch_idx == LONELY and self.global_rank == 1
        return loss * (1e4 if is_lonely else 1.0) + (1e6 if is_loud else 0.0)

    def weights(self) -> list[Tensor]:
        return [local(p.detach()).clone() for p in self.parameters()]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.before = self.weights()

    def on_train_batch_end(self, *_: Any) -> None:
        if not all(map(torch.equal, self.before, self.weights())):
            self.moved.append(self.global_step - 1)


def train_ranks() -> None:
    found = {}
    for kind in ("ddp", "fsdp"):
        sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
        model: Any = Ranked()
        trainer = quiet_trainer(
            GradWatch(on_spike="skip"), strategy="ddp" if kind == "ddp" else sharded, devices=2, max_steps=STEPS,
            max_epochs=-1, use_distributed_sampler=False,
        )  # fmt: skip
        own = torch.randn(4 * STEPS, 4, 8, generator=torch.Generator().manual_seed(int(os.environ["RANK"])))
        rows: Any = own
        trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=4))
        found[kind] = model.moved
    tell(found)


@pytest.mark.slow
def test_all_ranks_leave_out_the_same_steps(tmp_path: Path) -> None:
    """Else their weights would be of different steps. Not for a loss that only one of them knows."""
    script = "import sys; from tests.setups import test_spikes; test_spikes.train_ranks()"
    expected = [step for step in range(STEPS) if step != LONELY]
    assert run_ranks(script, tmp_path) == [{"ddp": expected, "fsdp": expected}] * 2
