"""Unusual backward passes: activation checkpointing, double backward, gradients asked for inside the step, logging."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from lightning_gradwatch import GradWatch, GradWatchWarning
from tests.setups.by_hand import LossOf, Step, train_by_hand
from tests.tasks import Classifier, deep_net, digits, fit, make_classifier_class, read_events, scalars

STEPS = 25


def tanh_net() -> nn.Sequential:
    return deep_net(nn.Tanh, depth=8)


def model_with(loss: LossOf, net: nn.Module, **options: Any) -> Any:
    class Model(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return loss(self.net, batch)

    return Model(net, **options)


def check(events: Any, watch: GradWatch, steps: list[Step]) -> None:
    """Compare every published norm, and the profile of the last step, with those of the loop by hand."""
    assert list(scalars(events, "gradwatch/total_norm").values()) == pytest.approx([s.total for s in steps], rel=1e-5)
    for layer in steps[0].layers:
        expected = pytest.approx([s.layers[layer] for s in steps], rel=1e-5)
        assert list(scalars(events, f"grad_norm/{layer}").values()) == expected
    assert list(watch.profile) == list(steps[-1].outputs)
    assert list(watch.profile.values()) == pytest.approx(list(steps[-1].outputs.values()), rel=1e-5)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Checkpointed(nn.Module):
    """Drops its activations in the forward pass and computes them again in the backward pass."""

    def __init__(self, segments: int, use_reentrant: bool) -> None:
        super().__init__()
        self.net, self.segments, self.use_reentrant = tanh_net(), segments, use_reentrant

    def forward(self, x: Tensor) -> Any:
        x.requires_grad_()  # the reentrant kind asks for it
        if self.segments == 1:
            return checkpoint(self.net, x, use_reentrant=self.use_reentrant)
        return checkpoint_sequential(self.net, self.segments, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_number(tmp_path: Path, segments: int, use_reentrant: bool) -> None:
    watch, model = GradWatch(sample_every_n_steps=1), Classifier(Checkpointed(segments, use_reentrant))
    fit(watch, model, directory=tmp_path, max_steps=STEPS, log_every_n_steps=1)
    net = tanh_net()
    check(read_events(tmp_path), watch, train_by_hand(net, STEPS, prefix="net.net."))
    assert same_weights(net, model.net.net)
    bare = Classifier(Checkpointed(segments, use_reentrant))
    fit(None, bare, max_steps=STEPS)
    assert same_weights(bare, model)


class Selective(nn.Module):
    """Keeps the results of some operators, which it finds again by their place among all of that kind."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.head = nn.Linear(64, 128), nn.Linear(128, 10)
        self.layers = nn.ModuleList([nn.Linear(128, 128) for _ in range(6)])
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        contexts = functools.partial(create_selective_checkpoint_contexts, self.policy)
        wide = self.up(x[:8])[:, None] * torch.linspace(0.5, 1.5, 64)[None, :, None]
        out = checkpoint(self.centred, wide, use_reentrant=False, context_fn=contexts)
        return self.head(out.square().mean(1)).repeat(8, 1)

    def centred(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = x - x.mean(1, keepdim=True)
        return x

    def policy(self, context: Any, operator: Any, *args: Any, **options: Any) -> CheckpointPolicy:
        is_kept = self.kept is None or operator is self.kept
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("kept", [None, torch.ops.aten.mean.dim, torch.ops.aten.addmm.default], ids=str)
def test_selective_activation_checkpointing_trains_as_without_us(kept: Any) -> None:
    watched, bare = Classifier(Selective(kept), lr=0.01), Classifier(Selective(kept), lr=0.01)
    watch = GradWatch(sample_every_n_steps=1)
    fit(watch, watched, max_steps=8)
    fit(None, bare, max_steps=8)
    assert same_weights(bare, watched)
    assert list(watch.profile) == ["net.up", *(f"net.layers.{i}" for i in range(6)), "net.head"]


class Dense(torch.autograd.Function):
    """Makes a sparse gradient dense again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.to_dense()


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 64))

    def forward(self) -> Tensor:
        made: Tensor = Dense.apply(self.weight)
        return made


class Sealed(OrderedDict[int, Any]):
    """Hooks of a layer that takes none."""

    def __setitem__(self, key: int, hook: Any) -> None:
        raise RuntimeError("no hooks, please")


class Odd(nn.Module):
    """A layer that reads, makes or takes something odd, before three that do not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.odd = Table() if kind == "sparse" else nn.Linear(64, 64)
        self.net = deep_net(nn.Tanh, depth=3)
        if kind == "sealed":
            self.odd._forward_hooks = Sealed()

    def forward(self, x: Tensor) -> Any:
        if self.kind == "sparse":
            x = x + nn.functional.embedding(x.abs().long().clamp(max=3)[:, 0], self.odd(), sparse=True)
        elif self.kind == "nested":
            rows = torch.nested.nested_tensor([row.expand(i % 3 + 1, -1) for i, row in enumerate(x)])
            x = torch.stack([part.mean(0) for part in self.odd(rows).unbind()])
        else:
            x = self.odd(x)
        return self.net(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("kind", ["sparse", "nested", "sealed"])
def test_a_layer_whose_outputs_cannot_be_looked_at_costs_no_other(kind: str) -> None:
    watched, bare = Classifier(Odd(kind)), Classifier(Odd(kind))
    watch = GradWatch(sample_every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(watch, watched, max_steps=8)
    fit(None, bare, max_steps=8)
    assert same_weights(bare, watched)
    assert list(watch.profile) == ["net.net.0", "net.net.2", "net.net.4"]
    lines = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert all("leaves out the outputs of layer net.odd from now on" in line for line in lines)
    assert len(lines) == (kind != "nested")


def with_gradients_at_once(model: Any) -> None:
    """Take the gradients of several losses in one backward pass, as multi-task learning does."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(model.losses, parameters, torch.eye(2), is_grads_batched=True)
    for parameter, gradients in zip(parameters, found, strict=True):
        parameter.grad = gradients.sum(0)


def test_gradients_of_many_losses_at_once_cost_no_later_figure() -> None:
    class Tasks(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.net(batch[0])
            self.losses = torch.stack([nn.functional.cross_entropy(logits, batch[1]), logits.square().mean()])
            return self.losses.sum()

        def backward(self, loss: Tensor) -> None:
            if self.global_step < 4:
                with_gradients_at_once(self)
            else:
                loss.backward()

    watch = GradWatch(sample_every_n_steps=1)
    fit(watch, Tasks(tanh_net()), max_steps=8)
    assert len(watch.profile) == 8


def with_penalty(net: nn.Module, batch: Any) -> Tensor:
    """A gradient penalty: the loss holds a gradient, and its backward pass is a second one."""
    pixels = batch[0].clone().requires_grad_()
    logits = net(pixels)
    (slope,) = torch.autograd.grad(logits.sum(), pixels, create_graph=True)
    return nn.functional.cross_entropy(logits, batch[1]) + (slope.norm(dim=1) - 1).square().mean()


def with_adversary(net: nn.Module, batch: Any) -> Tensor:
    """Training on adversarial examples, which a first backward pass has found."""
    pixels = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(net(pixels), batch[1]), pixels)
    return nn.functional.cross_entropy(net(batch[0] + 0.1 * slope.sign()), batch[1])


def with_balance(net: nn.Module, batch: Any) -> Tensor:
    """Two losses, balanced by their gradients at one layer, as a VQGAN does it."""
    logits = net(batch[0])
    weight = next(module.weight for name, module in net.named_modules() if name == "8")
    losses = nn.functional.cross_entropy(logits, batch[1]), logits.square().mean()
    slopes = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in losses]
    return losses[0] + (slopes[0] / (slopes[1] + 1e-4)).clamp(max=10.0).detach() * losses[1]


UNUSUAL = pytest.mark.parametrize("loss", [with_penalty, with_adversary, with_balance], ids=lambda f: f.__name__)


@UNUSUAL
def test_gradients_asked_for_inside_the_step_are_none_of_the_loss(tmp_path: Path, loss: LossOf) -> None:
    watch, model = GradWatch(sample_every_n_steps=1), model_with(loss, tanh_net())
    fit(watch, model, directory=tmp_path, max_steps=STEPS, log_every_n_steps=1)
    net = tanh_net()
    check(read_events(tmp_path), watch, train_by_hand(net, STEPS, loss))
    assert same_weights(net, model.net)
    bare = model_with(loss, tanh_net())
    fit(None, bare, max_steps=STEPS)
    assert same_weights(bare, model)


@UNUSUAL
def test_the_same_holds_for_every_micro_batch_of_a_step(loss: LossOf) -> None:
    """The gradient at the outputs adds up in squares over the micro-batches, each divided by their number."""
    watch = GradWatch()
    fit(watch, model_with(loss, tanh_net()), max_steps=1, accumulate_grad_batches=2)
    micro_batches = train_by_hand(tanh_net(), 2, loss, lr=0.0)
    expected = [
        sum((step.outputs[layer] / 2) ** 2 for step in micro_batches) ** 0.5 for layer in micro_batches[0].outputs
    ]
    assert list(watch.profile.values()) == pytest.approx(expected, rel=1e-5)


@UNUSUAL
def test_the_same_holds_under_manual_optimization(loss: LossOf) -> None:
    class Manual(Classifier):  # type: ignore[misc, valid-type]
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss(self.net, batch))
            optimizer.step()

    watch = GradWatch(sample_every_n_steps=1)
    fit(watch, Manual(tanh_net()), max_steps=STEPS)
    expected = train_by_hand(tanh_net(), STEPS, loss)[-1].outputs
    assert list(watch.profile.values()) == pytest.approx(list(expected.values()), rel=1e-5)


def test_a_backward_pass_that_nobody_announces_counts_too() -> None:
    """``loss.backward()`` instead of ``self.manual_backward(loss)``: Lightning calls no hook, so all counts."""

    class Direct(Classifier):  # type: ignore[misc, valid-type]
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            with_penalty(self.net, batch).backward()
            optimizer.step()

    watch = GradWatch(sample_every_n_steps=1)
    fit(watch, Direct(tanh_net()), max_steps=STEPS)
    expected = train_by_hand(tanh_net(), STEPS, with_penalty)[-1].outputs
    assert list(watch.profile.values()) == pytest.approx(list(expected.values()), rel=1e-5)


def test_a_sick_network_alerts_under_checkpointing_and_a_penalised_healthy_one_stays_silent() -> None:
    sick, watch = Checkpointed(1, use_reentrant=False), GradWatch()
    sick.net = deep_net(nn.Sigmoid)
    with pytest.warns(GradWatchWarning, match="Gradients vanish with depth"):
        fit(watch, Classifier(sick), max_steps=15)
    assert [alert.kind for alert in watch.alerts] == ["vanishing"]
    healthy = GradWatch()
    fit(healthy, model_with(with_penalty, deep_net(nn.ReLU, depth=8, he_init=True), lr=0.01), max_steps=60)
    assert healthy.alerts == []


@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_logging_in_the_step_and_in_hooks_is_left_alone(tmp_path: Path, namespace: str) -> None:
    """And the norms agree with Lightning's own recipe, logged at the same steps."""
    pl: Any = importlib.import_module(namespace)

    class Logging(make_classifier_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = super().training_step(batch, batch_idx)
            self.log_dict({"in_step": loss, "twice": 2 * loss}, on_step=True, on_epoch=True)
            return loss

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.log("at_start", float(batch_idx))

        def on_before_backward(self, loss: Tensor) -> None:
            self.log("before_backward", loss)

        def on_after_backward(self) -> None:
            self.log("after_backward", self.net[0].weight.grad.norm())

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.log_dict(grad_norm(self, norm_type=2))

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.log("at_end", outputs["loss"])

    def train(watch: GradWatch | None) -> tuple[Any, Any]:
        directory, model = tmp_path / str(watch is None), Logging(tanh_net())
        logger = pl.loggers.TensorBoardLogger(directory, name="", version="")
        trainer = pl.Trainer(
            callbacks=[watch] if watch else [], logger=logger, accelerator="cpu", max_steps=60, log_every_n_steps=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, digits())
        return read_events(directory), model

    (watched, model), (bare, other) = train(GradWatch()), train(None)
    assert same_weights(model, other)
    logged = bare.Tags()["scalars"]
    assert {"in_step_step", "in_step_epoch", "at_start", "before_backward", "after_backward", "at_end"} <= set(logged)
    assert {tag: scalars(watched, tag) for tag in logged} == {tag: scalars(bare, tag) for tag in logged}
    assert scalars(watched, "gradwatch/total_norm") == pytest.approx(scalars(watched, "grad_2.0_norm_total"), rel=1e-5)
