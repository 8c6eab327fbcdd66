"""Gradient accumulation: one sample per optimizer step, of the complete gradient, with the loss as the user knows it.

The oracle is a loop by hand that sums gradients taken by ``torch.autograd.grad``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from tests.tasks import Classifier, digits, quiet_trainer, read_events, scalars, small_net, watchers_of

NUM_BATCHES = 7
LR = 0.1


@dataclass
class Step:
    """What one optimizer step should look like: its gradient norm, and the loss of its last micro-batch."""

    norm: float
    loss: float


def by_hand(windows: list[tuple[int, int]], without: tuple[int, ...] = ()) -> list[Step]:
    """Steps of SGD, epochs in a row.

    Args:
        windows: For each optimizer step how many micro-batches it takes, and by what each loss is divided.
        without: Batches that are left out.
    """
    net, batches = small_net(), list(enumerate(digits()))[:NUM_BATCHES] * len(windows)
    steps = []
    for size, divisor in windows:
        sums = [torch.zeros_like(p) for p in net.parameters()]
        for _ in range(size):
            i, (inputs, targets) = batches.pop(0)
            if i in without:
                continue
            loss = nn.functional.cross_entropy(net(inputs), targets)
            for total, gradient in zip(sums, torch.autograd.grad(loss, list(net.parameters())), strict=True):
                total += gradient / divisor
        with torch.no_grad():
            for p, gradient in zip(net.parameters(), sums, strict=True):
                p.sub_(LR * gradient)
        steps.append(Step(torch.cat([g.flatten().double() for g in sums]).norm().item(), loss.item()))
    return steps


def run(directory: Path, *callbacks: Any, watch: GradWatch, model: Any = None, **options: Any) -> list[float]:
    """Train for some epochs of seven batches; the published norms, after a look at their steps."""
    trainer = quiet_trainer(
        *callbacks, watch, directory=directory, max_steps=-1, limit_train_batches=NUM_BATCHES, log_every_n_steps=1,
        **options,
    )  # fmt: skip
    trainer.fit(model or Classifier(small_net(), lr=LR), digits())
    found = scalars(read_events(directory), "gradwatch/total_norm")
    assert list(found) == list(range(trainer.global_step))
    assert watch.alerts == []
    return list(found.values())


def seen_losses(watch: GradWatch) -> list[float]:
    (watcher,) = watchers_of(watch)
    return watcher._digest.judge.history.evidence.losses


EVERY_THREE = [(3, 3), (3, 3), (1, 3)]
"""Lightning divides the loss of the leftover window, too, by the full number."""


def test_each_step_is_one_sample_of_the_complete_gradient_with_a_leftover_window(tmp_path: Path) -> None:
    watch, expected = GradWatch(), by_hand(EVERY_THREE * 2)
    norms = run(tmp_path, watch=watch, max_epochs=2, accumulate_grad_batches=3)
    assert norms == pytest.approx([step.norm for step in expected], rel=1e-5)
    assert seen_losses(watch) == pytest.approx([step.loss for step in expected], rel=1e-5)
    (watcher,) = watchers_of(watch)
    assert watcher.sampling.num_steps == len(expected)


def test_a_scheduler_may_change_the_number_of_batches(tmp_path: Path) -> None:
    watch, expected = GradWatch(), by_hand([*[(1, 1)] * 7, *[(2, 2)] * 3, (1, 2), (4, 4), (3, 4)])
    scheduler = GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
    norms = run(tmp_path, scheduler, watch=watch, max_epochs=3)
    assert norms == pytest.approx([step.norm for step in expected], rel=1e-5)
    assert seen_losses(watch) == pytest.approx([step.loss for step in expected], rel=1e-5)


def test_a_window_longer_than_the_epoch_is_one_step(tmp_path: Path) -> None:
    watch, expected = GradWatch(), by_hand([(7, 64)] * 4)
    norms = run(tmp_path, watch=watch, max_epochs=4, accumulate_grad_batches=64)
    assert norms == pytest.approx([step.norm for step in expected], rel=1e-5)
    assert seen_losses(watch) == pytest.approx([step.loss for step in expected], rel=1e-5)


def test_accumulation_by_hand_is_one_sample_per_step(tmp_path: Path) -> None:
    class Manual(Classifier):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(small_net(), lr=LR)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss / 3)
            if batch_idx % 3 == 2 or self.trainer.is_last_batch:
                optimizer.step()
                optimizer.zero_grad()

    watch, expected = GradWatch(), by_hand(EVERY_THREE * 2)
    trainer = quiet_trainer(
        watch, directory=tmp_path, max_steps=-1, max_epochs=2, limit_train_batches=NUM_BATCHES, log_every_n_steps=1
    )
    trainer.fit(Manual(), digits())
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    assert list(found) == [2, 5, 6, 9, 12, 13]  # without automatic optimization Lightning counts every batch
    assert list(found.values()) == pytest.approx([step.norm for step in expected], rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_window_is_complete_without_the_batches_that_had_no_loss(tmp_path: Path) -> None:
    class Skipping(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            return None if batch_idx in (1, 5) else super().training_step(batch, batch_idx)

    watch, expected = GradWatch(), by_hand(EVERY_THREE, without=(1, 5))
    model = Skipping(small_net(), lr=LR)
    norms = run(tmp_path, watch=watch, model=model, max_epochs=1, accumulate_grad_batches=3)
    assert norms == pytest.approx([step.norm for step in expected], rel=1e-5)
    assert seen_losses(watch) == pytest.approx([expected[i].loss for i in (0, 2)], rel=1e-5)  # none in the last batch


def test_backward_observes_each_micro_batch(tmp_path: Path) -> None:
    oracle: list[float] = []

    class EachBackward(pl.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            oracle.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item())

    watch = GradWatch(sample_at="backward")
    trainer = quiet_trainer(
        watch, EachBackward(), directory=tmp_path, max_steps=4, log_every_n_steps=2, accumulate_grad_batches=3
    )
    trainer.fit(Classifier(small_net()), digits())
    events = read_events(tmp_path)
    assert list(scalars(events, "gradwatch/total_norm")) == [1, 3]
    for name, choose in (("total_norm_min", min), ("total_norm_max", max)):
        expected = [choose(oracle[:6]), choose(oracle[6:])]
        assert list(scalars(events, f"gradwatch/{name}").values()) == pytest.approx(expected, rel=1e-6)


class Encoded(nn.Module):
    """Torch runs its middle layer as one kernel in eval mode, with other rounding, unless there is a hook in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.head = nn.Linear(64, 32 * 12), nn.Linear(32, 10)
        self.middle = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(12)
        made: Tensor = self.head(self.middle(self.up(x).view(-1, 12, 32), src_mask=mask).mean(1))
        return made


class Validated(Classifier):  # type: ignore[misc, valid-type]
    """Keeps what it found in validation, and how many hooks there were."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, lr=LR)
        self.found: list[float] = []
        self.num_hooks = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.found.append(self.net(batch[0]).double().abs().sum().item())
        self.num_hooks += sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.modules())


def test_a_validation_within_a_step_finds_what_it_finds_without_us_and_costs_no_figure() -> None:
    models, profiles = [], []
    for watch, every in ((GradWatch(), 1), (None, 1), (GradWatch(), 10**6)):
        model = Validated(Encoded())
        trainer = quiet_trainer(
            *([watch] if watch else []), max_steps=3, accumulate_grad_batches=3, num_sanity_val_steps=0,
            limit_val_batches=2, val_check_interval=every, check_val_every_n_epoch=None,
        )  # fmt: skip
        trainer.fit(model, digits(), digits())
        models.append(model)
        profiles.append(watch.profile if watch else {})
    assert len(models[0].found) == 2 * 9
    assert models[0].found == models[1].found
    assert models[0].num_hooks == 0
    assert profiles[0] == profiles[2]
    assert len(profiles[0]) == 5
