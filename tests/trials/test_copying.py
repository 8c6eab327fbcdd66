"""Copies of models in training: what shares nothing, what is left out, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.trials.copying import copy_of, unwrapped
from tests.tasks import Classifier, deep_net, digits, quiet_trainer, small_net

X, Y = next(iter(digits()))


def tensors_of(model: nn.Module) -> set[int]:
    return {t.data_ptr() for t in (*model.parameters(), *model.buffers())}


class Keeper(nn.Module):
    """Keeps what ``deepcopy`` fails at."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.lock, self.torch, self.kept = threading.Lock(), torch, {"features": [torch.zeros(1)]}
        self.generator = torch.Generator().manual_seed(3)
        self.sum = lambda x: self.net(x).sum()

    def forward(self, x: Tensor) -> Tensor:
        self.kept["features"] = [self.net[0](x)]
        return self.net(x)


def test_a_copy_computes_the_same_and_shares_no_tensor() -> None:
    model = nn.Sequential(small_net(), nn.BatchNorm1d(10))
    model[0][2].weight = model[0][0].weight  # type: ignore[index, union-attr]
    (copied,) = copy_of(model)
    assert torch.equal(copied(X), model(X))
    assert not tensors_of(copied) & tensors_of(model)
    assert copied[0][2].weight is copied[0][0].weight


def test_what_deepcopy_fails_at_is_copied_or_shared() -> None:
    model = Keeper()
    model(X)
    (copied,) = copy_of(model)
    assert copied.lock is model.lock
    assert copied.torch is torch
    assert torch.equal(copied.kept["features"][0], model.kept["features"][0])
    torch.rand(1, generator=copied.generator)
    assert model.generator.get_state().tolist() == torch.Generator().manual_seed(3).get_state().tolist()


def test_functions_that_close_over_the_model_close_over_the_copy() -> None:
    model = Keeper()
    seen: list[nn.Module] = []
    model.register_forward_hook(lambda *_: seen.append(model))
    copied, loss = copy_of(model, lambda x: model.net(x).sum())
    with torch.no_grad():
        copied.net[0].weight.zero_()
    assert copied.sum(X) == copied.net(X).sum() != model.sum(X)
    assert loss(X) == copied.sum(X)
    copied(X)
    assert seen == [copied]


def test_a_bound_method_as_loss_function_is_that_of_the_copy() -> None:
    model = Keeper()
    copied, loss, part = copy_of(model, model.forward, partial(model.forward))
    assert loss.__self__ is copied
    assert part.func.__self__ is copied


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [orthogonal, nn.utils.weight_norm, nn.utils.spectral_norm])
def test_parametrized_weights_are_copied(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(norm(nn.Linear(64, 64)), nn.Linear(64, 10))
    model(X).sum().backward()
    (copied,) = copy_of(model.eval())
    assert torch.equal(copied(X), model(X))


def test_compiled_modules_are_copied_without_the_compiler() -> None:
    model = small_net()
    (copied,) = copy_of(unwrapped(torch.compile(model, backend="eager")))  # type: ignore[arg-type]
    assert type(copied) is nn.Sequential
    outer = nn.Sequential(torch.compile(model, backend="eager"))  # type: ignore[call-overload]
    (copied,) = copy_of(outer)
    assert type(copied[0]) is nn.Sequential
    assert torch.equal(copied(X), model(X))
    model.compile(backend="eager")
    assert torch.equal(copy_of(model)[0](X), small_net()(X))


def test_the_wrapper_of_ddp_is_left_out(tmp_path: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        inner = small_net()
        assert unwrapped(nn.parallel.DistributedDataParallel(inner)) is inner
    finally:
        dist.destroy_process_group()


def test_synchronised_batch_norms_stop_talking() -> None:
    model = nn.Sequential(nn.Linear(64, 10), nn.SyncBatchNorm(10))
    (copied,) = copy_of(model)
    assert torch.equal(copied(X), nn.Sequential(model[0], nn.BatchNorm1d(10))(X))
    assert type(model[1]) is nn.SyncBatchNorm
    assert not isinstance(copied[1], nn.SyncBatchNorm)


def test_hooks_of_our_own_do_nothing_in_a_copy_and_those_of_the_user_do() -> None:
    model, seen = small_net(), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    probe: Probe = make_probe(model)
    probe.attach(thorough=True, causes=True)
    (copied,) = copy_of(model)
    copied(X)
    assert seen == [1]
    assert not probe.order.ran
    assert not probe.order.names
    assert [dict(module._forward_hooks) for module in copied.modules() if module._forward_hooks] == [
        dict(model[0]._forward_hooks.copy())
    ]
    probe.detach()


class Curious(Classifier):  # type: ignore[misc, valid-type]
    """Asks its Trainer for much, and tells it much."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.trainer.max_steps == 10
        assert self.global_step == self.trainer.global_step
        assert isinstance(self.trainer.optimizers, list)
        assert self.trainer.callback_metrics is not None
        self.log("other", 1.0)
        self.print("a word")
        self.logger.experiment.add_scalar("x", 1.0) if self.logger else None
        self.trainer.should_stop = batch_idx < 0
        self.trainer.save_checkpoint("nowhere")
        return super().training_step(batch, batch_idx)


class Copies(pl.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            (copied,) = copy_of(pl_module)
            copied.training_step(batch, 0).backward()
            self.metrics = dict(trainer.callback_metrics)
            assert pl_module.trainer is trainer
            assert copied.trainer is not trainer
            assert all(p.grad is not None for p in copied.parameters())


class Mute(Curious):
    """Without what would act on the real Trainer, so that it can train."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step = Curious if "log" in vars(self) else Classifier
        return step.training_step(self, batch, batch_idx)


def test_a_copied_lightning_module_asks_its_trainer_and_changes_nothing_in_it() -> None:
    copies = Copies()
    trainer = quiet_trainer(GradWatch(), copies)
    trainer.fit(Mute(small_net()), digits())
    assert "loss" in copies.metrics
    assert "other" not in copies.metrics
    assert trainer.global_step == 10
    assert not trainer.should_stop


def test_what_cannot_be_copied_is_named() -> None:
    model = deep_net(depth=3)
    model.stream = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"Sequential cannot be copied: .*generator"):
        copy_of(model)
