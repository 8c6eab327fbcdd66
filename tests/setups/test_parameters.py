"""Parameters: the list follows the optimizer, and each kind of parameter is measured rightly or left out.

The oracle is ``torch.autograd.grad`` of the same loss with respect to the parameters that the optimizer holds.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.utils.prune
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn

from lightning_gradwatch import GradientAlertError, GradWatch, GradWatchWarning
from tests.tasks import (
    Classifier,
    Poison,
    digits,
    fit,
    norms_by_step,
    quiet_trainer,
    read_events,
    scalars,
    session_of,
    small_net,
    tensors,
    watchers_of,
)

BATCHES = 5
"""Per epoch."""


def dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


class Truthful(Classifier):  # type: ignore[misc, valid-type]
    """Notes at every step the gradient norm of each parameter that the optimizer holds and that requires one."""

    def __init__(self, net: nn.Module, **options: Any) -> None:
        super().__init__(net, **options)
        self.truth: list[dict[str, float]] = []

    def held(self) -> dict[str, Tensor]:
        held = {id(p) for optimizer in self.trainer.optimizers for g in optimizer.param_groups for p in g["params"]}
        return {name: p for name, p in self.named_parameters() if id(p) in held and p.requires_grad}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        held = self.held()
        loss = nn.functional.cross_entropy(self.net(batch[0]).float(), batch[1])
        gradients = torch.autograd.grad(loss, list(held.values()), allow_unused=True)
        pairs = zip(held, gradients, strict=True)
        self.truth.append({n: dense(g).abs().double().norm().item() for n, g in pairs if g is not None})
        output: Tensor = super().training_step(batch, batch_idx)
        return output

    @property
    def totals(self) -> list[float]:
        return [math.hypot(*norms.values()) for norms in self.truth]

    def row(self, layer: str) -> dict[int, float]:
        """Norms of a layer by step, where it had any gradient."""
        own = [[v for n, v in norms.items() if n.rsplit(".", 1)[0] == layer] for norms in self.truth]
        return {step: math.hypot(*norms) for step, norms in enumerate(own) if norms}


def check(directory: Path, model: Truthful, *layers: str, rel: float = 1e-5) -> None:
    """Every step of every layer, and nothing besides."""
    events = read_events(directory)
    assert list(scalars(events, "gradwatch/total_norm").values()) == pytest.approx(model.totals, rel=rel)
    rows = {tag.removeprefix("grad_norm/") for tag in events.Tags()["scalars"] if tag.startswith("grad_norm/")}
    assert rows == set(layers)
    for layer in layers:
        found, expected = scalars(events, f"grad_norm/{layer}"), model.row(layer)
        assert list(found) == list(expected)
        assert list(found.values()) == pytest.approx(list(expected.values()), rel=rel)


class Transfer(Truthful):
    """A backbone with a normalisation layer, and a head."""

    def __init__(self, holds: str = "what is trained") -> None:
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        super().__init__(nn.Sequential(backbone, nn.Linear(32, 10)))
        self.holds = holds

    @property
    def backbone(self) -> nn.Module:
        return self.net[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad or self.holds == "all"], 0.05)


def finetune(directory: Path, *callbacks: Any, watch: GradWatch, **options: Any) -> Transfer:
    """Three epochs of five steps; the backbone is added to the optimizer for the second."""
    pl.seed_everything(1, verbose=False)
    model, unfreeze = Transfer(), BackboneFinetuning(unfreeze_backbone_at_epoch=1, train_bn=False)
    trainer = quiet_trainer(
        unfreeze, *callbacks, watch, directory=directory, max_epochs=3, max_steps=-1, limit_train_batches=BATCHES,
        **options,
    )  # fmt: skip
    trainer.fit(model, digits())
    return model


def test_a_backbone_that_is_unfrozen_joins_the_list(tmp_path: Path) -> None:
    watch = GradWatch()
    model = finetune(tmp_path, watch=watch, log_every_n_steps=1)
    assert not session_of(watch).is_off
    assert watch.alerts == []
    assert {len(norms) for norms in model.truth[:BATCHES]} < {len(norms) for norms in model.truth}
    assert list(model.row("net.0.0")) == list(range(BATCHES, 3 * BATCHES))
    check(tmp_path, model, "net.0.0", "net.0.1", "net.0.3", "net.1")


def test_a_window_goes_on_when_layers_join(tmp_path: Path) -> None:
    model = finetune(tmp_path, watch=GradWatch(), log_every_n_steps=4)
    events = read_events(tmp_path)
    windows = {step: model.totals[max(step - 3, 0) : step + 1] for step in (3, 7, 11)}
    windows[14] = model.totals[12:]
    for tag, choose in (("min", min), ("median", median), ("max", max)):
        found = scalars(events, f"gradwatch/total_norm_{tag}")
        assert list(found) == list(windows)
        assert list(found.values()) == pytest.approx([choose(w) for w in windows.values()], rel=1e-5)
    tag = "gradwatch/layers-2/grad_norm_steps"
    names = json.loads(events.SummaryMetadata(tag).plugin_data.content)["layers"]
    found_norms = norms_by_step(events, tag)
    for layer, norms in zip(names, zip(*found_norms.values(), strict=True), strict=True):
        expected = model.row(layer)
        assert norms == pytest.approx([expected[step] for step in found_norms], rel=2e-3)


def test_a_bad_step_just_before_layers_join_is_not_forgotten(tmp_path: Path) -> None:
    class PoisonHead(Poison):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step in self.steps:
                pl_module.net[1].weight.grad.view(-1)[0] = math.nan

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            for p in pl_module.parameters():
                p.data.nan_to_num_(0.0)

    watch = GradWatch(dense_steps=1, sample_every_n_steps=100)
    with pytest.warns(GradWatchWarning, match="since step 3, in net.1"):
        finetune(tmp_path, PoisonHead(3), watch=watch)
    assert [(a.kind, a.step, a.layer) for a in watch.alerts] == [("nonfinite", 3, "net.1")]


def test_layers_that_are_frozen_in_the_optimizer_are_neither_dead_nor_detached(tmp_path: Path) -> None:
    """Frozen for twenty steps, then trained for twenty, then frozen again; all in the optimizer throughout."""

    class Schedule(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.backbone.requires_grad_(20 <= trainer.global_step < 40)

    model, watch = Transfer("all"), GradWatch(sample_every_n_steps=1)
    quiet_trainer(Schedule(), watch, directory=tmp_path, max_steps=60, log_every_n_steps=1).fit(model, digits())
    assert watch.alerts == []
    assert list(model.row("net.0.0")) == list(range(20, 40))
    check(tmp_path, model, "net.0.0", "net.0.1", "net.0.3", "net.1")


class Built(Truthful):
    """Makes its layers in ``configure_model``; gives the second to the optimizer later."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def configure_model(self) -> None:
        self.net = small_net()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.net[0].parameters(), *self.net[4].parameters()], 0.1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 6:
            self.trainer.optimizers[0].add_param_group({"params": list(self.net[2].parameters())})


def test_layers_of_configure_model_are_measured_as_soon_as_the_optimizer_has_them(tmp_path: Path) -> None:
    model, watch = Built(), GradWatch()
    fit(watch, model, directory=tmp_path, max_steps=40, log_every_n_steps=1)
    assert list(model.row("net.2")) == list(range(6, 40))
    check(tmp_path, model, "net.0", "net.2", "net.4")
    assert list(watch.profile) == ["net.0", "net.2", "net.4"]
    assert watch.alerts == []


class Build(Classifier):  # type: ignore[misc, valid-type]
    """Makes its layers late."""

    def __init__(self, where: str) -> None:
        super().__init__(nn.Identity())
        self.where = where

    def configure_model(self) -> None:
        if self.where == "configure_model":
            self.net = small_net()

    def setup(self, stage: str) -> None:
        if self.where == "setup":
            self.net = small_net()


@pytest.mark.parametrize("where", ["configure_model", "setup"])
def test_layers_that_are_made_late_can_be_selected(where: str) -> None:
    watch = GradWatch(include="net.[02]")
    fit(watch, Build(where), max_steps=3)
    (watcher,) = watchers_of(watch)
    assert watcher.instruments is not None
    assert [layer.name for layer in watcher.instruments.layout.layers] == ["net.0", "net.2"]
    with pytest.raises(ValueError, match="`include` must be"):
        fit(GradWatch(include="nothing"), Build(where))


@pytest.mark.parametrize("what", ["replaced", "added"])
def test_a_layer_that_is_made_while_training_is_followed_to_its_outputs(tmp_path: Path, what: str) -> None:
    class Make(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 5 and what == "replaced":
                pl_module.net[4] = nn.Linear(64, 10)
                trainer.optimizers[0].param_groups[0]["params"] = list(pl_module.parameters())
            elif trainer.global_step == 5:
                pl_module.net.append(nn.Linear(10, 10))
                trainer.optimizers[0].add_param_group({"params": list(pl_module.net[5].parameters())})

    model, watch = Truthful(small_net()), GradWatch()
    trainer = quiet_trainer(Make(), watch, directory=tmp_path, max_steps=12, log_every_n_steps=1)
    trainer.fit(model, digits())
    layers = ["net.0", "net.2", "net.4", *(["net.5"] if what == "added" else [])]
    check(tmp_path, model, *layers)
    (watcher,) = watchers_of(watch)
    assert watcher.latest is not None
    assert (watcher.latest.output_grad_norm > 0).all()
    assert list(watch.profile) == layers
    assert not any(module._forward_hooks for module in model.modules())


def cast(dtype: torch.dtype) -> Any:
    return lambda net: net[2].to(dtype)


def shrink(net: Any) -> None:
    """A layer of the same parameters with half as many units, and the one behind it."""
    net[2].weight.data, net[2].bias.data = net[2].weight.data[:32].clone(), net[2].bias.data[:32].clone()
    net[4].weight.data = net[4].weight.data[:, :32].clone()


def prune(net: nn.Sequential) -> None:
    nn.utils.prune.l1_unstructured(net[2], "weight", 0.5)


def drop(net: nn.Sequential) -> None:
    net[2] = nn.Identity()


def adapt(net: nn.Sequential) -> None:
    """As adapters of low rank are merged and taken off: the layer becomes a part of another one."""
    net[2] = nn.Sequential(net[2], nn.Identity())


IN_PLACE: dict[str, Any] = {
    "double": cast(torch.float64),
    "bfloat16": cast(torch.bfloat16),
    "all double": lambda net: net.double(),
    "shape": shrink,
    "frozen": lambda net: net[2].requires_grad_(False),
    "pruned": prune,
    "weight norm": lambda net: nn.utils.parametrizations.weight_norm(net[2]),
    "dropped": drop,
    "wrapped": adapt,
    "channels last": lambda net: net[2].weight.data.t_().contiguous().t_(),
}


class CastOrMoved(Truthful):
    """Changes its network in the middle of training; the parameters stay the same objects."""

    def __init__(self, change: Any, at_step: int) -> None:
        super().__init__(small_net(), lr=0.01)
        self.change, self.at_step = change, at_step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == self.at_step:
            self.change(self.net)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        output: Tensor = super().training_step((batch[0].to(self.net[0].weight.dtype), batch[1]), batch_idx)
        return output


class Casting(nn.Sequential):
    """Brings what it computes to the dtype of each layer."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        for module in self:
            weight = next(iter(module.parameters()), x)
            x = module(x.to(weight.dtype))
        return x


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("at_step", [7, 9])
@pytest.mark.parametrize("options", [{"dense_steps": 8, "sample_every_n_steps": 5}, {"auto_clip": 100.0}])
def test_parameters_that_change_in_their_place_are_measured_as_they_are_now(
    tmp_path: Path, change: str, at_step: int, options: dict[str, Any]
) -> None:
    watch, model = GradWatch(histogram_every=1, **options), CastOrMoved(IN_PLACE[change], at_step)
    model.net = Casting(*model.net)
    trainer = fit(watch, model, directory=tmp_path, max_steps=30, log_every_n_steps=4)
    assert (trainer.global_step, session_of(watch).is_off) == (30, False)
    assert session_of(watch).watches.probe is not None
    assert session_of(watch).watches.probe.failure is None
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    rel = 2e-2 if change == "bfloat16" else 1e-4
    assert list(found.values()) == pytest.approx([model.totals[step] for step in found], rel=rel)
    (watcher,) = watchers_of(watch)
    assert watcher.instruments is not None
    dtypes = {str(p.dtype).removeprefix("torch.") for p in watcher.instruments.layout.parameters}
    assert watcher.instruments.dtypes == dtypes


class Every(nn.Module):
    """Frozen, tied, unused, 0-d, empty and integer parameters, keyword calls, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(64, 8).requires_grad_(False)
        self.twice = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.twice.weight
        self.unused = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(()))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.table = nn.Parameter(torch.arange(8), requires_grad=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(input=self.twice(self.frozen(x)))[:, self.table]
        output: Tensor = self.head(self.tied(x) * self.scale + self.empty.sum())
        return output


CHANGE_AT = 7


class Changing(Truthful):
    """Its parameters change in mid-training: ``change`` gets the network and the optimizer's parameter groups."""

    def __init__(self, change: Callable[[nn.Sequential, list[Any]], None]) -> None:
        torch.manual_seed(0)
        layers = [part for _ in range(4) for part in (nn.Linear(64, 64), nn.Tanh(), Scale())]
        super().__init__(nn.Sequential(*layers, nn.Linear(64, 10)))
        self.change = change

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == CHANGE_AT:
            self.change(self.net, self.trainer.optimizers[0].param_groups)

    def configure_optimizers(self) -> Any:
        first, *rest = [list(m.parameters()) for m in self.net if [*m.parameters()]]
        return torch.optim.SGD([{"params": first}, {"params": [p for own in rest for p in own]}], 0.05)


class Scale(nn.Module):
    """A single number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def replace(place: int) -> Callable[[nn.Sequential, list[Any]], None]:
    """A fresh layer for an old one, in the network and in the optimizer."""

    def change(net: nn.Sequential, groups: list[Any]) -> None:
        old, new = net[place], type(net[place])(*((64, 64 if place < 12 else 10) if place % 3 == 0 else ()))
        fresh = {id(a): b for a, b in zip(old.parameters(), new.parameters(), strict=True)}
        net[place] = new
        for group in groups:
            group["params"] = [fresh.get(id(p), p) for p in group["params"]]

    return change


def move(net: nn.Sequential, groups: list[Any]) -> None:
    groups[1]["params"].insert(3, groups[0]["params"].pop())


def split(net: nn.Sequential, groups: list[Any]) -> None:
    groups.append({**groups[1], "params": groups[1]["params"][4:]})
    groups[1]["params"] = groups[1]["params"][:4]


def freeze(net: nn.Sequential, groups: list[Any]) -> None:
    net[6].requires_grad_(False)


CHANGES = {
    "the first": replace(0),
    "one in the middle": replace(6),
    "the last": replace(12),
    "a number by its equal": replace(5),
    "moved to another group": move,
    "a group is split": split,
    "frozen": freeze,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_the_optimizer_holds_is_measured_from_the_very_step_at_which_it_has_changed(
    tmp_path: Path, change: Any
) -> None:
    model, watch = Changing(change), GradWatch(sample_every_n_steps=3, layer_cards=None)
    fit(watch, model, directory=tmp_path, max_steps=15, log_every_n_steps=1)
    assert not session_of(watch).is_off
    check(tmp_path, model, *(f"net.{i}" for i in (0, 2, 3, 5, 6, 8, 9, 11, 12)))


@pytest.mark.parametrize("place", [0, 5, 6])
def test_a_layer_that_has_replaced_another_has_no_past(tmp_path: Path, place: int) -> None:
    """Its norms are its own from its first step on; the others keep theirs."""
    model = Changing(replace(place))
    fit(GradWatch(), model, directory=tmp_path, max_steps=15, log_every_n_steps=15)
    events = read_events(tmp_path)
    names = json.loads(events.SummaryMetadata("gradwatch/layers/grad_norm_steps").plugin_data.content)["layers"]
    found = norms_by_step(events)
    for name, norms in zip(names, zip(*found.values(), strict=True), strict=True):
        expected = model.row(name)
        assert norms == pytest.approx([expected[step] for step in found], rel=2e-3)


class LeftOver(pl.Callback):
    """The total norm after GradWatch has clipped."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_has_changed_is_clipped_at_once(change: Any) -> None:
    after = LeftOver()
    quiet_trainer(GradWatch(auto_clip=1e-3, dense_steps=1), after, max_steps=15).fit(Changing(change), digits())
    assert after.norms == pytest.approx([1e-3] * 15, rel=1e-3)


class PoisonNew(pl.Callback):
    """Makes the gradient of the layer not finite that has just come."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == CHANGE_AT:
            pl_module.net[6].weight.grad[0, 0] = math.nan


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_what_has_changed_is_skipped_and_raised_on_at_once(on_nonfinite: Any) -> None:
    model, watch = Changing(replace(6)), GradWatch(on_nonfinite=on_nonfinite, dense_steps=1)
    trainer = quiet_trainer(PoisonNew(), watch, max_steps=15)
    is_fatal = on_nonfinite == "raise"
    with (
        pytest.warns(GradWatchWarning, match=r"in net\.6"),
        pytest.raises(GradientAlertError) if is_fatal else nullcontext(),
    ):
        trainer.fit(model, digits())
    assert trainer.global_step == (CHANGE_AT if is_fatal else 15)
    assert all(p.isfinite().all() for p in model.parameters())


def test_unusual_parameters_are_right_or_left_out(tmp_path: Path) -> None:
    model, watch = Truthful(Every()), GradWatch()
    fit(watch, model, directory=tmp_path, max_steps=40, log_every_n_steps=1)
    check(tmp_path, model, "net", "net.head", "net.twice")
    metadata = read_events(tmp_path).SummaryMetadata("gradwatch/layers/grad_norm_steps")
    place = json.loads(metadata.plugin_data.content)["layers"].index("net.tied")
    norms = norms_by_step(read_events(tmp_path))
    assert all(norm[place] == -1 for norm in norms.values())  # its weight belongs to net.twice
    assert watch.alerts == []


class Strange(nn.Module):
    """Every kind of gradient in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 8, sparse=True)
        self.complex_weight = nn.Parameter(torch.ones(8, dtype=torch.complex64))
        self.wide = nn.Linear(8, 8, dtype=torch.float64)
        self.narrow = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.empty = nn.Parameter(torch.empty(0))
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, :4].abs() * 8).long().clamp(max=16)
        h = self.embedding(tokens).mean(1)
        h = (h * self.complex_weight).real + self.empty.sum()
        h = self.narrow(self.wide(h.double()).bfloat16()).float()
        output: Tensor = self.head(h * self.scalar)
        return output


@pytest.mark.filterwarnings("ignore:.*Casting complex values.*")
@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_strange_gradients_never_raise_and_are_right(tmp_path: Path, bad: float | None) -> None:
    totals: list[float] = []

    class Meddle(pl.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if bad is not None:
                pl_module.net.narrow.weight.grad.view(-1)[3] = bad
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            totals.append(math.hypot(*(dense(g).abs().double().norm().item() for g in gradients)))

    model, watch = Truthful(Strange(), lr=0.0), GradWatch(histogram_every=1)
    trainer = quiet_trainer(watch, Meddle(), directory=tmp_path, max_steps=4, log_every_n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        trainer.fit(model, digits())
    assert not session_of(watch).is_off
    found = list(scalars(read_events(tmp_path), "gradwatch/total_norm").values())
    assert found == pytest.approx(totals, rel=1e-5, nan_ok=True)
    assert [a.kind for a in watch.alerts] == ([] if bad is None else ["nonfinite"])
    if bad is None:
        check(tmp_path, model, "net", "net.embedding", "net.wide", "net.narrow", "net.head", rel=1e-3)


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8, sparse=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.embedding((x[:, :6].abs() * 8).long().clamp(max=49)).sum(1))
        return output


class TwoOptimizers(Truthful):
    """SparseAdam for the embedding and Adam for the rest, as torch wants it."""

    def __init__(self) -> None:
        super().__init__(Bags())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SparseAdam(list(self.net.embedding.parameters()), 1e-2),
            torch.optim.Adam(self.net.head.parameters(), 1e-2),
        ]


def test_sparse_gradients_are_measured_as_if_they_were_dense(tmp_path: Path) -> None:
    zeros: list[float] = []

    class Zeros(pl.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            gradient = pl_module.net.embedding.weight.grad
            assert gradient.is_sparse
            assert not gradient.is_coalesced()
            zeros.append((gradient.to_dense() == 0).double().mean().item())

    model, watch = TwoOptimizers(), GradWatch(sample_every_n_steps=1)
    quiet_trainer(watch, Zeros(), directory=tmp_path, max_steps=60, log_every_n_steps=1).fit(model, digits())
    events = read_events(tmp_path)
    for name, layer in (("SparseAdam", "net.embedding"), ("Adam", "net.head")):
        expected = list(model.row(layer).values())
        for tag in (f"gradwatch/{name}/total_norm", f"grad_norm/{name}/{layer}"):
            assert list(scalars(events, tag).values()) == pytest.approx(expected, rel=1e-5)
    shares = tensors(events, "gradwatch/SparseAdam/layers/zero_fraction")
    assert len(shares) > 5
    assert [share for share, *_ in shares.values()] == pytest.approx([zeros[step // 2] for step in shares], abs=1e-5)
    assert watch.alerts == []


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.filterwarnings("ignore:.*Casting complex values.*")
def test_complex_weights_are_measured_by_their_modulus(tmp_path: Path, optimizer: Any) -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 16, dtype=torch.complex64)
            self.second = nn.Linear(16, 10, dtype=torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.second(torch.tanh(self.first(x.to(torch.complex64))))
            return output.abs()

    torch.manual_seed(0)
    model, watch = Truthful(Waves(), lr=1e-2, optimizer=optimizer), GradWatch(histogram_every=1)
    fit(watch, model, directory=tmp_path, max_steps=30, log_every_n_steps=1)
    check(tmp_path, model, "net.first", "net.second")
    assert watch.alerts == []
