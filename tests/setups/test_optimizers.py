"""Optimizers: each has its own parameters, counter, tags and window, and sees no gradient but that of its own step.

The oracle of a step is ``torch.autograd.grad`` of its own loss with respect to its own parameters and outputs: it can
hold neither what another backward pass left behind nor what an earlier step did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins.precision import MixedPrecision
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn

from lightning_gradwatch import GradientAlertError, GradWatch, GradWatchWarning
from tests.tasks import (
    Classifier,
    digits,
    fit,
    quiet_trainer,
    read_events,
    recorded,
    scalars,
    small_net,
    tensors,
    watchers_of,
)

cross_entropy = nn.functional.cross_entropy


def norm_of(gradients: Iterable[Any]) -> float:
    return torch.cat([gradient.double().flatten() for gradient in gradients]).norm().item()


@dataclass
class Truth:
    """Every step of one optimizer: where it stands on the x-axis, and what its gradient is."""

    steps: list[int] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    layers: list[list[float]] = field(default_factory=list)
    outputs: list[list[float]] = field(default_factory=list)


class Player(nn.Sequential):
    """Three linear layers."""

    def __init__(self, *sizes: int) -> None:
        first, second, third = (nn.Linear(a, b) for a, b in pairwise(sizes))
        super().__init__(first, nn.Tanh(), second, nn.Tanh(), third)
        self.linears = [first, second, third]


class Gan(pl.LightningModule):
    """Two players; ``play`` says in what order they make their moves."""

    def __init__(self, play: Callable[[Gan, Tensor, int], None], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.g, self.d = Player(4, 16, 16, 64), Player(64, 16, 16, 1)
        self.twins = [
            Player(4, 16, 16, 64),
            Player(64, 16, 16, 1),
        ]  # in a list, so that Lightning knows nothing of them
        self.truths = {"SGD": Truth(), "Adam": Truth()}
        self.play, self.options = play, options

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.play(self, batch[0], batch_idx)

    def fakes(self, real: Tensor) -> Tensor:
        return made_by(self.g, real)

    def fool(self, fakes: Tensor, real: Tensor) -> Tensor:
        """The generator's loss."""
        self.find_truth("SGD", real)
        return loss_of("SGD", self.d, fakes, real)

    def tell(self, fakes: Tensor, real: Tensor) -> Tensor:
        """The discriminator's loss."""
        self.find_truth("Adam", real)
        return loss_of("Adam", self.d, fakes, real)

    def find_truth(self, name: str, real: Tensor) -> None:
        """The gradients of a loss, on twins of the players as they are now."""
        for twin, player in zip(self.twins, (self.g, self.d), strict=True):
            twin.load_state_dict(player.state_dict())
        g, d = self.twins
        player, truth = (g, self.truths["SGD"]) if name == "SGD" else (d, self.truths["Adam"])
        outputs: dict[nn.Module, list[Tensor]] = {linear: [] for linear in player.linears}
        handles = [linear.register_forward_hook(lambda m, _, out: outputs[m].append(out)) for linear in outputs]
        loss = loss_of(name, d, made_by(g, real), real)
        for handle in handles:
            handle.remove()
        truth.steps.append(self.trainer.fit_loop.epoch_loop._batches_that_stepped)
        truth.totals.append(norm_of(gradients_of(loss, player.parameters())))
        truth.layers.append([norm_of(gradients_of(loss, linear.parameters())) for linear in outputs])
        truth.outputs.append([norm_of(gradients_of(loss, calls)) for calls in outputs.values()])

    def move(self, name: str, loss: Tensor) -> None:
        """One player's step; what the other's loss has left behind is cleared no earlier than now."""
        optimizer = self.optimizers()[("SGD", "Adam").index(name)]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.g.parameters(), 1e-2, **self.options),
            torch.optim.Adam(self.d.parameters(), 1e-3, **self.options),
        )


def made_by(generator: nn.Module, real: Tensor) -> Tensor:
    fakes: Tensor = generator(torch.linspace(-1, 1, len(real) * 4).view(-1, 4))
    return fakes


def loss_of(name: str, discriminator: nn.Module, fakes: Tensor, real: Tensor) -> Tensor:
    if name == "SGD":
        return nn.functional.softplus(-discriminator(fakes)).mean()
    return (nn.functional.softplus(discriminator(fakes.detach())) + nn.functional.softplus(-discriminator(real))).mean()


def gradients_of(loss: Tensor, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(tensors), retain_graph=True)


def in_order(gan: Gan, real: Tensor, batch_idx: int) -> None:
    gan.move("SGD", gan.fool(gan.fakes(real), real))
    gan.move("Adam", gan.tell(gan.fakes(real), real))


def discriminator_first(gan: Gan, real: Tensor, batch_idx: int) -> None:
    fakes = gan.fakes(real)
    gan.move("Adam", gan.tell(fakes, real))
    gan.move("SGD", gan.fool(fakes, real))


def both_losses_first(gan: Gan, real: Tensor, batch_idx: int) -> None:
    """No forward pass lies between the two backward passes."""
    fakes = gan.fakes(real)
    to_fool, to_tell = gan.fool(fakes, real), gan.tell(fakes, real)
    gan.move("SGD", to_fool)
    gan.move("Adam", to_tell)


def toggled(gan: Gan, real: Tensor, batch_idx: int) -> None:
    optimizer_g, optimizer_d = gan.optimizers()  # type: ignore[attr-defined, misc]
    gan.toggle_optimizer(optimizer_g)
    gan.move("SGD", gan.fool(gan.fakes(real), real))
    gan.untoggle_optimizer(optimizer_g)
    gan.toggle_optimizer(optimizer_d)
    gan.move("Adam", gan.tell(gan.fakes(real), real))
    gan.untoggle_optimizer(optimizer_d)


def at_their_own_pace(gan: Gan, real: Tensor, batch_idx: int) -> None:
    """The discriminator moves twice in each batch, the generator in every third."""
    gan.move("Adam", gan.tell(gan.fakes(real), real))
    gan.move("Adam", gan.tell(gan.fakes(real), real))
    if batch_idx % 3 == 2:
        gan.move("SGD", gan.fool(gan.fakes(real), real))


def in_turns(gan: Gan, real: Tensor, batch_idx: int) -> None:
    fakes = gan.fakes(real)
    gan.move(*(("SGD", gan.fool(fakes, real)) if batch_idx % 2 else ("Adam", gan.tell(fakes, real))))


PLAYS = [in_order, discriminator_first, both_losses_first, toggled, at_their_own_pace, in_turns]


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: play.__name__)
def test_each_player_of_a_gan_is_measured_by_its_own_loss_alone(tmp_path: Path, play: Any) -> None:
    gan, watch = Gan(play), GradWatch(histogram_every=0, sample_every_n_steps=1)
    fit(watch, gan, directory=tmp_path, max_epochs=1, max_steps=-1, limit_train_batches=12, log_every_n_steps=1)
    assert watch.alerts == []
    events = read_events(tmp_path)
    for (name, truth), player in zip(gan.truths.items(), ("g", "d"), strict=True):
        (watcher,) = (one for one in watchers_of(watch) if one.name == name)
        assert watcher.sampling.num_steps == len(truth.totals)
        steps = list(dict.fromkeys(truth.steps))
        first = [truth.steps.index(step) for step in steps]  # the first of several in a batch is the one that is due
        totals = events.Scalars(f"gradwatch/{name}/total_norm")[: len(steps)]
        assert [event.step for event in totals] == steps
        assert [event.value for event in totals] == pytest.approx([truth.totals[i] for i in first], rel=1e-5)
        found = tensors(events, f"gradwatch/{name}/layers/output_grad_norm")
        places = {step: [i for i, at in enumerate(truth.steps) if at == step] for step in steps}
        assert list(found) == steps
        for step, row in found.items():
            assert any(row == pytest.approx(truth.outputs[place], rel=1e-4) for place in places[step])
        norms = recorded(events, f"gradwatch/{name}/layers/grad_norm_steps")
        assert norms.last.tolist() == steps
        by_step = [np.array([truth.layers[place] for place in places[step]]) for step in steps]
        np.testing.assert_allclose(norms.low, [of_step.min(0) for of_step in by_step], rtol=1.3e-2)
        np.testing.assert_allclose(norms.high, [of_step.max(0) for of_step in by_step], rtol=1.3e-2)
        rows = {tag for tag in events.Tags()["scalars"] if tag.startswith(f"grad_norm/{name}/")}
        assert rows == {f"grad_norm/{name}/{player}.{i}" for i in (0, 2, 4)}


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: play.__name__)
def test_each_player_of_a_gan_has_its_own_window(tmp_path: Path, play: Any) -> None:
    gan, every = Gan(play), 4
    fit(
        GradWatch(),
        gan,
        directory=tmp_path,
        max_epochs=1,
        max_steps=-1,
        limit_train_batches=12,
        log_every_n_steps=every,
    )
    events = read_events(tmp_path)
    for name, truth in gan.truths.items():
        windows = windows_of(truth, every)
        for tag, choose in (("min", min), ("median", median), ("max", max)):
            found = scalars(events, f"gradwatch/{name}/total_norm_{tag}")
            assert list(found) == list(windows)
            expected = [choose(window) for window in windows.values()]
            assert list(found.values()) == pytest.approx(expected, rel=1e-5)


def windows_of(truth: Truth, every: int) -> dict[int, list[float]]:
    """What each point shows: all steps since the last; a point at the first step after each due one, and at the end."""
    windows: dict[int, list[float]] = {}
    window: list[float] = []
    num_points = 0
    for step, total in zip(truth.steps, truth.totals, strict=True):
        window.append(total)
        if (step + 1) // every > num_points:
            num_points, windows[step], window = (step + 1) // every, window, []
    if window:
        windows[truth.steps[-1]] = window
    return windows


@pytest.mark.parametrize("fused", [False, True])
def test_each_player_is_unscaled(tmp_path: Path, fused: bool) -> None:
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5))
    gan = Gan(toggled, fused=fused)
    fit(GradWatch(), gan, directory=tmp_path, plugins=[scaler], max_steps=24, log_every_n_steps=1)
    for name, truth in gan.truths.items():
        found = scalars(read_events(tmp_path), f"gradwatch/{name}/total_norm")
        assert list(found.values()) == pytest.approx(truth.totals, rel=0.02)


class Three(pl.LightningModule):
    """Three networks with optimizers of one kind, and one backward pass for all."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.nets = nn.ModuleList(nn.Linear(64, 10) for _ in range(3))
        self.truths = [Truth(), Truth(), Truth()]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        for i, (net, truth) in enumerate(zip(self.nets, self.truths, strict=True)):
            errors = (net.bias + inputs @ net.weight.T).softmax(1) - nn.functional.one_hot(targets, 10)
            errors = errors.detach() * 10**i / len(inputs)  # the gradient of the cross entropy, by pencil
            truth.totals.append(norm_of([errors.T @ inputs, errors.sum(0)]))
            truth.outputs.append([norm_of([errors])])
        losses = [cross_entropy(net(inputs), targets) * 10**i for i, net in enumerate(self.nets)]
        self.manual_backward(torch.stack(losses).sum())
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), 1e-3) for net in self.nets]


def test_optimizers_of_whose_layers_none_is_wanted_are_watched_as_a_whole(tmp_path: Path) -> None:
    model = Three()
    fit(GradWatch(include="nets.1", histogram_every=1), model, directory=tmp_path, max_steps=5, log_every_n_steps=1)
    events = read_events(tmp_path)
    for name, truth in zip(("SGD", "SGD-1", "SGD-2"), model.truths, strict=True):
        assert list(scalars(events, f"gradwatch/{name}/total_norm").values()) == pytest.approx(truth.totals, rel=1e-4)
        tags = [tag for tag in events.Tags()["tensors"] if tag.startswith(f"gradwatch/{name}/layers/")]
        assert bool(tags) == (name == "SGD-1")


def test_three_optimizers_of_a_kind_are_numbered_and_may_share_a_backward_pass(tmp_path: Path) -> None:
    model = Three()
    fit(GradWatch(), model, directory=tmp_path, max_steps=45, log_every_n_steps=1)
    events = read_events(tmp_path)
    for i, (name, truth) in enumerate(zip(("SGD", "SGD-1", "SGD-2"), model.truths, strict=True)):
        assert list(scalars(events, f"gradwatch/{name}/total_norm").values()) == pytest.approx(truth.totals, rel=1e-4)
        assert f"grad_norm/{name}/nets.{i}" in events.Tags()["scalars"]
        outputs = [make_ndarray(e.tensor_proto) for e in events.Tensors(f"gradwatch/{name}/layers/output_grad_norm")]
        assert outputs == [pytest.approx(expected, rel=1e-4) for expected in truth.outputs]


def test_a_replaced_optimizer_is_followed(tmp_path: Path) -> None:
    class Replace(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 10 and not isinstance(trainer.optimizers[0], torch.optim.Adam):
                trainer.strategy.optimizers = [torch.optim.Adam(pl_module.parameters(), 1e-3)]

    watch = GradWatch()
    trainer = quiet_trainer(watch, Replace(), directory=tmp_path, max_steps=30, log_every_n_steps=10)
    trainer.fit(Classifier(small_net()), digits())
    assert list(scalars(read_events(tmp_path), "gradwatch/total_norm")) == [9, 19, 29]
    (watcher,) = watchers_of(watch)
    assert watcher.sampling.num_steps == 30


class ManualLBFGS(Classifier):  # type: ignore[misc, valid-type]
    def __init__(self) -> None:
        super().__init__(small_net(), optimizer=torch.optim.LBFGS, max_iter=4)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()

        def closure() -> Tensor:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)


@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "manual"])
def test_lbfgs_is_observed_once_per_step_at_its_first_evaluation(tmp_path: Path, by_hand: bool) -> None:
    net, expected = small_net(), []
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)
    for inputs, targets in list(digits())[:5]:
        evaluations: list[float] = []

        def closure(inputs: Tensor = inputs, targets: Tensor = targets, norms: list[float] = evaluations) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(net(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            norms.append(norm_of(p.grad for p in net.parameters()))
            return loss

        optimizer.step(closure)
        assert len(evaluations) > 1
        expected.append(evaluations[0])
    model = ManualLBFGS() if by_hand else Classifier(small_net(), optimizer=torch.optim.LBFGS, max_iter=4)
    fit(GradWatch(), model, directory=tmp_path, max_steps=5, log_every_n_steps=1)
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    assert list(found) == [0, 1, 2, 3, 4]
    assert list(found.values()) == pytest.approx(expected, rel=1e-4)


class SAM(torch.optim.SGD):
    """Evaluates its closure twice: at the weights, and uphill from there (Foret et al. 2021)."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        pushes = [(p, 0.05 * p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        with torch.no_grad():
            for p, push in pushes:
                p.add_(push)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for p, push in pushes:
                p.sub_(push)
        super().step()
        return loss


class ManualSAM(ManualLBFGS):
    """The same, with a closure of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.make_optimizer = lambda: SAM(self.parameters(), lr=0.1)


def sam_by_hand(num_steps: int, limit: float = math.inf) -> tuple[Any, list[float]]:
    """The weights after some steps of SAM in plain torch, and the norm of each first evaluation, before clipping."""
    net, norms = small_net(), []
    optimizer = SAM(net.parameters(), lr=0.1)
    for inputs, targets in list(digits())[:num_steps]:
        evaluations: list[float] = []

        def closure(inputs: Tensor = inputs, targets: Tensor = targets, seen: list[float] = evaluations) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(net(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            seen.append(norm_of(p.grad for p in net.parameters()))
            torch.nn.utils.clip_grad_norm_(net.parameters(), limit)
            return loss

        optimizer.step(closure)
        norms.append(evaluations[0])
    return list(net.parameters()), norms


@pytest.mark.parametrize("limit", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "manual"])
def test_an_optimizer_that_evaluates_twice_is_one_step_of_which_each_evaluation_is_clipped(
    tmp_path: Path, by_hand: bool, limit: float | None
) -> None:
    weights, norms = sam_by_hand(12, math.inf if limit is None else limit)
    model = ManualSAM() if by_hand else Classifier(small_net(), optimizer=SAM)
    watch = GradWatch(auto_clip=limit)
    fit(watch, model, directory=tmp_path, max_steps=12, log_every_n_steps=1)
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    assert list(found) == list(range(12))
    assert list(found.values()) == pytest.approx(norms, rel=1e-4)
    (watcher,) = watchers_of(watch)
    assert watcher.sampling.num_steps == 12
    assert all(
        torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(model.parameters(), weights, strict=True)
    )


@pytest.mark.parametrize("policy", ["band", "percentile", "zscore", "adagc"])
def test_what_a_policy_remembers_counts_steps_and_not_evaluations(tmp_path: Path, policy: Any) -> None:
    watch = GradWatch(auto_clip=policy)
    fit(watch, Classifier(small_net(), optimizer=SAM), directory=tmp_path, max_steps=9)
    (watcher,) = watchers_of(watch)
    assert watcher.instruments is not None
    (clipper,) = watcher.instruments.clippers._clippers
    assert clipper.memory["count"].item() == 9


def test_an_evaluation_that_is_not_finite_is_kept_from_the_weights_whichever_it_is(tmp_path: Path) -> None:
    class Late(pl.Callback):
        """NaN in the second evaluation of one step."""

        num_passes = 0

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            self.num_passes += 1
            if self.num_passes == 10:
                pl_module.net[2].weight.grad[0, 0] = math.nan

    model = Classifier(small_net(), optimizer=SAM)
    fit(GradWatch(on_nonfinite="skip"), model, max_steps=12, callbacks=[Late()])
    assert all(p.isfinite().all() for p in model.parameters())
    model = Classifier(small_net(), optimizer=SAM)
    with pytest.raises(GradientAlertError):
        fit(GradWatch(on_nonfinite="raise"), model, max_steps=12, callbacks=[Late()])


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_step_without_a_loss_is_no_observation(tmp_path: Path) -> None:
    class Skipping(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    net, expected = small_net(), []
    for inputs, targets in list(digits())[:20:2]:
        gradients = torch.autograd.grad(cross_entropy(net(inputs), targets), list(net.parameters()))
        expected.append(norm_of(gradients))
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients, strict=True):
                p.sub_(0.1 * g)
    watch, options = GradWatch(), {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 20}
    fit(watch, Skipping(small_net()), directory=tmp_path, log_every_n_steps=1, **options)
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    assert list(found) == list(range(0, 20, 2))
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)
    (watcher,) = watchers_of(watch)
    assert watcher.sampling.num_steps == 10
    assert watch.alerts == []


class Zeroing(Classifier):  # type: ignore[misc, valid-type]
    """Sets gradients to zeros instead of None, and uses its first layers only for a while."""

    def __init__(self, compiled: bool, frozen: bool) -> None:
        super().__init__(small_net())
        self.early = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.frozen = frozen
        if compiled:
            for layer in [*self.early, self.net]:
                layer.compile(backend="eager")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = batch[0]
        if self.frozen and batch_idx == 1:
            self.early.requires_grad_(False)
        if self.frozen or batch_idx == 0:
            for layer in self.early:
                inputs = inputs + layer(inputs)
        return cross_entropy(self.net(inputs), batch[1])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("frozen", [False, True], ids=["unused", "frozen"])
def test_a_layer_whose_gradient_is_set_to_zeros_is_not_dead(tmp_path: Path, compiled: bool, frozen: bool) -> None:
    torch._dynamo.reset()
    model, watch = Zeroing(compiled, frozen), GradWatch(sample_every_n_steps=1)
    options = {"max_epochs": 1, "max_steps": -1, "log_every_n_steps": 1}
    fit(watch, model, directory=tmp_path, **options)
    assert all(p.grad is not None and not p.grad.any() for p in model.early.parameters())
    assert watch.alerts == []
    events = read_events(tmp_path)
    for name in ("dead_layers", "detached_layers"):
        assert set(scalars(events, f"gradwatch/{name}").values()) == {0}
    norms = list(scalars(events, "grad_norm/early.1").values())
    assert norms[0] > 0
    assert set(norms[1:]) == {0}


class Within(pl.LightningModule):
    """Steps each parameter within the backward pass, as soon as its gradient is there, and takes the gradient away."""

    def __init__(self, how: str = "with an optimizer") -> None:
        super().__init__()
        self.automatic_optimization = how == "automatic"
        self.net, self.how = small_net(), how

    def on_fit_start(self) -> None:
        for p in self.net.parameters():
            p.register_post_accumulate_grad_hook(self.step)

    def step(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad
        parameter.grad = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        if self.how == "with steps":
            self.optimizers().step()  # type: ignore[union-attr]
        return None

    def configure_optimizers(self) -> Any:
        return None if self.how == "without optimizers" else torch.optim.SGD(self.parameters(), 0.1)


def weights_by_hand(num_batches: int) -> list[Tensor]:
    """The weights after SGD without any callback."""
    net, batches = small_net(), list(digits())
    for i in range(num_batches):
        inputs, targets = batches[i % len(batches)]
        gradients = torch.autograd.grad(cross_entropy(net(inputs), targets), list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients, strict=True):
                p.sub_(0.1 * g)
    return list(net.parameters())


@pytest.mark.filterwarnings("ignore:.*returned `None`.*this fit will run with no optimizer.*")
@pytest.mark.parametrize("how", ["with an optimizer", "with steps", "without optimizers", "automatic"])
def test_steps_within_the_backward_pass_are_owned_up_to_once_and_never_misjudged(tmp_path: Path, how: str) -> None:
    model, watch = Within(how), GradWatch()
    with pytest.warns(GradWatchWarning) as caught:
        fit(watch, model, directory=tmp_path, max_epochs=2, max_steps=-1, log_every_n_steps=1)
    (warning,) = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert warning.startswith("No gradient has reached GradWatch in 20 batches")
    assert "steps within the backward pass" in warning
    assert watch.alerts == []
    assert [watcher.sampling.num_steps for watcher in watchers_of(watch)] == [0]
    assert not [tag for tag in read_events(tmp_path).Tags()["scalars"] if "total_norm" in tag]
    assert not any(module._forward_hooks for module in model.modules())
    for p, q in zip(model.net.parameters(), weights_by_hand(56), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_optimizers_of_lightning_that_step_within_the_backward_pass_are_counted_once(tmp_path: Path) -> None:
    class PerParameter(Within):
        def step(self, parameter: Tensor) -> None:
            place = next(i for i, p in enumerate(self.net.parameters()) if p is parameter)
            optimizer = self.optimizers()[place]  # type: ignore[index]
            optimizer.step()
            optimizer.zero_grad()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD([p], 0.1) for p in self.parameters()]

    model, watch = PerParameter(), GradWatch()
    fit(watch, model, directory=tmp_path, max_epochs=1, max_steps=-1, log_every_n_steps=1)
    assert watch.alerts == []
    assert [watcher.sampling.num_steps for watcher in watchers_of(watch)] == [28] * 6
    net, (inputs, targets) = small_net(), next(iter(digits()))
    gradients = torch.autograd.grad(cross_entropy(net(inputs), targets), list(net.parameters()))
    names = ["SGD", *(f"SGD-{i}" for i in range(1, 6))]
    found = [scalars(read_events(tmp_path), f"gradwatch/{name}/total_norm")[0] for name in names]
    assert found == pytest.approx([g.norm().item() for g in gradients], rel=1e-5)


class Raw(Classifier):  # type: ignore[misc, valid-type]
    """Steps torch's own optimizer, of which Lightning does not hear."""

    def __init__(self, how: str, **options: Any) -> None:
        super().__init__(small_net(), **options)
        self.automatic_optimization = False
        self.how = how
        self.is_hooked: list[bool] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.is_hooked.append(any(module._forward_hooks for module in self.modules()))
        loss = cross_entropy(self.net(batch[0]), batch[1])
        raw = self.optimizers(use_pl_optimizer=False)
        raw.zero_grad()
        self.manual_backward(loss)
        if self.how == "cured":
            self.optimizers().step()
        elif self.how == "unwrapped":
            self.optimizers().optimizer.step()
        else:
            raw.step()


@pytest.mark.parametrize("how", ["unwrapped", "use_pl_optimizer=False"])
@pytest.mark.parametrize("options", [{}, {"optimizer": torch.optim.Adam, "fused": True, "lr": 1e-3}], ids=["", "fused"])
def test_steps_behind_lightnings_back_are_owned_up_to_once(how: str, options: dict[str, Any]) -> None:
    watch, model = GradWatch(), Raw(how, **options)
    with pytest.warns(GradWatchWarning, match="No gradient has reached GradWatch in 20 batches.* by `step\\(\\)`") as w:
        fit(watch, model, max_epochs=2, max_steps=-1)
    assert len([warning for warning in w if warning.category is GradWatchWarning]) == 1
    assert watch.alerts == []
    assert model.is_hooked == [True] * 20 + [False] * 36  # what sees nothing costs nothing


@pytest.mark.parametrize("cure", ["self.optimizers()", "sample_at"])
def test_both_cures_that_the_warning_names_work(tmp_path: Path, caplog: pytest.LogCaptureFixture, cure: str) -> None:
    by_hand = cure == "self.optimizers()"
    watch = GradWatch() if by_hand else GradWatch(sample_at="backward")
    model = Raw("cured" if by_hand else "unwrapped")
    expected: list[float] = []
    net, batches = small_net(), list(digits())
    for inputs, targets in batches:
        gradients = torch.autograd.grad(cross_entropy(net(inputs), targets), list(net.parameters()))
        expected.append(norm_of(gradients))
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients, strict=True):
                p.sub_(0.1 * g)
    fit(watch, model, directory=tmp_path, max_epochs=1, max_steps=-1, log_every_n_steps=1)
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    assert list(found.values()) == pytest.approx(expected, rel=1e-4)
    assert "No gradient" not in caplog.text
    assert len(watch.profile) == 3
    assert model.is_hooked[:20] == [True] * 20
    assert sum(model.is_hooked[20:]) < 3


@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize("rhythm", ["automatic", "manual", "late"])
def test_slow_optimizers_are_waited_for_without_a_word(caplog: pytest.LogCaptureFixture, rhythm: str) -> None:
    class Slow(Classifier):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(small_net())
            self.automatic_optimization = rhythm == "automatic"
            self.num_batches = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.num_batches += 1
            loss = cross_entropy(self.net(batch[0]), batch[1])
            if self.automatic_optimization:
                return loss
            if rhythm == "late" and self.num_batches < 50:
                return None
            self.manual_backward(loss)
            if self.num_batches % 64 == 0:
                self.optimizers().step()
                self.optimizers().zero_grad()
            return None

    options = {"accumulate_grad_batches": 64} if rhythm == "automatic" else {}
    watch = GradWatch()
    fit(watch, Slow(), digits(batch_size=16), max_epochs=1, max_steps=-1, **options)
    (watcher,) = watchers_of(watch)
    assert watcher.sampling.num_steps == (2 if rhythm == "automatic" else 1)
    assert "No gradient" not in caplog.text


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_gradient_that_comes_after_the_warning_is_watched_all_the_same() -> None:
    class Late(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            return None if self.trainer.current_epoch == 0 else loss

    watch = GradWatch()
    with pytest.warns(GradWatchWarning, match="No gradient .* `training_step` returned None") as caught:
        fit(watch, Late(small_net()), max_epochs=3, max_steps=-1)
    assert len([w for w in caught if w.category is GradWatchWarning]) == 1
    (watcher,) = watchers_of(watch)
    assert watcher.sampling.num_steps == 56
    assert len(watch.profile) == 3
    assert all(math.isfinite(norm) for norm in watch.profile.values())


class ClippedByHand(Classifier):  # type: ignore[misc, valid-type]
    """Manual optimization; ``clip`` is what it does before the step."""

    def __init__(self, clip: Callable[[Any, Any], None]) -> None:
        super().__init__(small_net())
        self.automatic_optimization, self.clip = False, clip

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(cross_entropy(self.net(batch[0]), batch[1]))
        self.clip(self, optimizer)
        optimizer.step()


def by_lightning(module: Any, optimizer: Any) -> None:
    module.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")


def by_torch(module: Any, optimizer: Any) -> None:
    torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)


def clipped_in_a_loop(num_steps: int) -> tuple[list[Tensor], list[float]]:
    """Weights after some steps clipped at 0.1 by torch, and the norms before clipping."""
    net, norms = small_net(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for inputs, targets in list(digits())[:num_steps]:
        optimizer.zero_grad()
        cross_entropy(net(inputs), targets).backward()  # type: ignore[no-untyped-call]
        norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1).item())
        optimizer.step()
    return list(net.parameters()), norms


@pytest.mark.parametrize("scaled", [False, True], ids=["unscaled", "scaled"])
def test_what_the_model_clips_by_hand_is_observed_before(tmp_path: Path, scaled: bool) -> None:
    def by_scaled_norm(module: Any, optimizer: Any) -> None:
        module.clip_gradients(optimizer, gradient_clip_val=64 * 0.1, gradient_clip_algorithm="norm")

    weights, norms = clipped_in_a_loop(8)
    model = ClippedByHand(by_scaled_norm if scaled else by_lightning)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if scaled else []
    watch = GradWatch()
    trainer = fit(watch, model, directory=tmp_path, max_steps=8, log_every_n_steps=1, plugins=plugins)
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")
    tolerance = 2e-2 if scaled else 1e-5  # half precision
    assert list(found.values()) == pytest.approx(norms, rel=tolerance)
    assert all(torch.allclose(a, b, atol=tolerance) for a, b in zip(model.parameters(), weights, strict=True))
    assert "clip_gradients" not in vars(trainer.precision_plugin)


def test_what_was_clipped_by_hand_for_no_step_hides_no_later_gradient(tmp_path: Path) -> None:
    class Gathering(ClippedByHand):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            if batch_idx % 2 == 0:
                optimizer.zero_grad()
            self.manual_backward(cross_entropy(self.net(batch[0]), batch[1]))
            if batch_idx % 2 == 0:
                self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            else:
                norms.append(norm_of(p.grad for p in self.parameters()))
                optimizer.step()

    norms: list[float] = []
    fit(GradWatch(), Gathering(by_lightning), directory=tmp_path, max_steps=6, log_every_n_steps=1)
    found = scalars(read_events(tmp_path), "gradwatch/total_norm")  # one per batch, as the logger's axis has it
    assert [found[step] for step in range(1, 12, 2)] == pytest.approx(norms, rel=1e-5)


def test_what_is_changed_behind_our_back_is_said_once(tmp_path: Path) -> None:
    class InHook(Classifier):  # type: ignore[misc, valid-type]
        def on_after_backward(self) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    for model in (ClippedByHand(by_torch), InHook(small_net())):
        with pytest.warns(
            GradWatchWarning, match="changes between the backward pass and the optimizer's step"
        ) as caught:
            fit(GradWatch(), model, max_steps=12)
        assert [w.category for w in caught].count(GradWatchWarning) == 1


class Clipping(pl.Callback):
    """Clips in a hook of a callback."""

    def clip(self, trainer: Any, pl_module: Any, optimizer: Any = None) -> None:
        torch.nn.utils.clip_grad_norm_(pl_module.parameters(), 1e-3)


class BeforeStep(Clipping):
    on_before_optimizer_step = Clipping.clip


class AfterBackward(Clipping):
    on_after_backward = Clipping.clip


@pytest.mark.parametrize(
    ("ahead", "behind"),
    [
        ([BeforeStep()], []),
        ([], [AfterBackward()]),
        ([LambdaCallback(on_before_optimizer_step=Clipping().clip)], []),
        ([], [LambdaCallback(on_after_backward=Clipping().clip)]),
    ],
)
def test_what_another_callback_changes_before_we_look_is_said_once(ahead: list[Any], behind: list[Any]) -> None:
    trainer = quiet_trainer(*ahead, GradWatch(), *behind, max_steps=12)
    with pytest.warns(
        GradWatchWarning, match="changes between the backward pass and the optimizer's step .*another callback"
    ) as caught:
        trainer.fit(Classifier(small_net()), digits())
    assert [w.category for w in caught].count(GradWatchWarning) == 1


@pytest.mark.parametrize("callback", [BeforeStep(), Clipping()])
def test_nothing_is_said_of_a_callback_that_comes_after_us(callback: Any) -> None:
    quiet_trainer(GradWatch(), callback, max_steps=12).fit(Classifier(small_net()), digits())


def test_nothing_is_said_where_the_gradient_stays_as_it_is() -> None:
    class Looking(Classifier):  # type: ignore[misc, valid-type]
        def on_after_backward(self) -> None:
            self.norm = norm_of(p.grad for p in self.parameters())

    for model in (ClippedByHand(lambda *_: None), Looking(small_net())):
        fit(GradWatch(), model, max_steps=12)  # a warning would be an error here


def test_clipping_by_hand_and_by_us_is_said_once() -> None:
    with pytest.warns(GradWatchWarning, match="once more. To cure it: leave one of them out") as caught:
        fit(GradWatch(auto_clip=0.05), ClippedByHand(by_lightning), max_steps=6)
    assert [w.category for w in caught].count(GradWatchWarning) == 1
