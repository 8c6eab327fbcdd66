"""Models that other people write: nothing that trains without GradWatch may fail, or be counted wrongly, with it."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.guest import GradWatchGuest
from tests.tasks import (
    Classifier,
    deep_net,
    digits,
    fit,
    quiet_trainer,
    read_events,
    session_of,
    small_net,
    watchers_of,
)


@dataclass(slots=True)
class Slots:
    logits: Tensor


class SlotsOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = SlotsLinear(64, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.inner(x).logits)
        return output


class SlotsLinear(nn.Linear):
    def forward(self, input: Tensor) -> Any:  # noqa: A002 - the name of the method it overrides
        return Slots(super().forward(input))


class RecursiveOutput(nn.Linear):
    def forward(self, input: Tensor) -> Any:  # noqa: A002 - the name of the method it overrides
        parts: list[Any] = [super().forward(input)]
        parts.append(parts)
        return parts


class Unwrap(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.inner(x)[0])
        return output


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scripted = torch.jit.trace(nn.Linear(64, 8), torch.ones(1, 64))
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.middle(self.scripted(x)))
        return output


class PerSample(nn.Module):
    """Per-sample gradients with torch.func inside the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        parameters: dict[str, Tensor] = dict(self.stem.named_parameters())

        def energy(sample: Tensor) -> Tensor:
            return torch.func.functional_call(self.stem, parameters, (sample,)).square().sum()

        force = torch.func.vmap(torch.func.grad(energy))(x)
        output: Tensor = self.head(self.stem(x + 0.01 * force))
        return output


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(
    "make",
    [SlotsOutput, lambda: Unwrap(RecursiveOutput(64, 8)), Scripted, PerSample],
    ids=["slots", "recursive", "scripted", "torch.func"],
)
def test_unusual_modules_are_watched(make: Any) -> None:
    watch, model = GradWatch(), Classifier(make())
    trainer = fit(watch, model, max_steps=30)  # a warning would be an error here
    assert trainer.global_step == 30
    assert not session_of(watch).is_off
    assert session_of(watch).watches.probe is not None
    assert session_of(watch).watches.probe.failure is None
    assert not any(module._forward_hooks for module in model.modules())


class Frozen(nn.Module):
    """Nothing of it is to be trained, it says."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self._modules["inner"](x)  # type: ignore[misc]
        return output

    def parameters(self) -> Any:  # type: ignore[override]  # without `recurse`
        return iter(())


class Shadowed(Frozen):
    @property
    def inner(self) -> Any:
        return [self._modules["inner"]]

    @inner.setter
    def inner(self, module: nn.Module) -> None:
        self._modules["inner"] = module


class Mapped(Frozen):
    def __getattr__(self, name: str) -> Any:  # raises KeyError
        return self.__dict__["_modules"][name]


class Unspeakable(Frozen):
    """It can be neither printed nor compared, and has no length and no truth."""

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("on purpose")

    __repr__ = __eq__ = __bool__ = __len__ = _refuse
    __hash__ = object.__hash__


class OldSignature(Classifier):  # type: ignore[misc, valid-type]
    """``named_parameters`` as it was in the first versions of torch."""

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Any:
        yield from super().named_parameters(prefix, recurse)


class OwnParameters(Classifier):  # type: ignore[misc, valid-type]
    def parameters(self) -> Any:
        return self.net.parameters()


ODD = {
    "parameters": lambda: Classifier(nn.Sequential(nn.Linear(64, 64), Frozen(), nn.Linear(64, 10))),
    "property": lambda: Classifier(nn.Sequential(nn.Linear(64, 64), Shadowed(), nn.Linear(64, 10))),
    "getattr": lambda: Classifier(nn.Sequential(nn.Linear(64, 64), Mapped(), nn.Linear(64, 10))),
    "unspeakable": lambda: Classifier(nn.Sequential(nn.Linear(64, 64), Unspeakable(), nn.Linear(64, 10))),
    "old signature": lambda: OldSignature(small_net()),
    "own parameters": lambda: OwnParameters(small_net()),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("is_guest", [True, False])
def test_modules_that_override_what_torch_asks_them_are_watched(odd: str, is_guest: bool) -> None:
    watch = GradWatchGuest() if is_guest else GradWatch(include="net*")
    trainer = fit(watch, ODD[odd](), max_steps=12)  # a warning would be an error here
    assert trainer.global_step == 12
    assert not session_of(watch).is_off
    assert len(watch.profile) == 3 if odd not in ("parameters", "unspeakable", "property", "getattr") else 2


def test_only_a_selection_is_checked_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("lightning_gradwatch.config.check_selection", broken)
    fit(GradWatch(), max_steps=2)


class Duplicating(Classifier):  # type: ignore[misc, valid-type]
    """Copies and saves its network within a step, as teachers and exports are made."""

    def __init__(self, net: nn.Module, directory: Path) -> None:
        super().__init__(net)
        self.directory = directory
        self.copies: list[Any] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx in (0, 3):
            self.copies.append(copy.deepcopy(self.net))
        loss: Tensor = super().training_step(batch, batch_idx)
        if batch_idx in (1, 3):
            torch.save(self.net, self.directory / f"{batch_idx}.pt")
        return loss


def test_a_network_that_is_copied_or_saved_in_a_sampled_step_takes_nothing_along(tmp_path: Path) -> None:
    watch, model = GradWatch(), Duplicating(small_net(), tmp_path)
    fit(watch, model, max_steps=12)
    duplicates = [*model.copies, *(torch.load(tmp_path / f"{i}.pt", weights_only=False) for i in (1, 3))]
    for duplicate in (*duplicates, model.net):
        for module in duplicate.modules():
            assert not module._forward_hooks
            assert not module._forward_hooks_with_kwargs
            assert not vars(module._forward_hooks)
    assert b"gradwatch" not in (tmp_path / "3.pt").read_bytes()
    assert session_of(watch).watches.probe is not None
    assert session_of(watch).watches.probe.failure is None
    (watcher,) = watchers_of(watch)
    assert watcher.sampling.num_samples == 12
    assert len(watch.profile) == 3


def test_a_probe_that_fails_inside_the_users_backward_is_given_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tensor: Tensor, is_strong: bool) -> Tensor:
        raise NotImplementedError("no norm for this tensor")

    monkeypatch.setattr("lightning_gradwatch.core.probe.norm_of", broken)
    watch = GradWatch()
    with pytest.warns(GradWatchWarning) as caught:
        trainer = fit(watch, Classifier(deep_net()), max_steps=60)
    assert trainer.global_step == 60
    (blind,) = [str(w.message) for w in caught if "no norm for this tensor" in str(w.message)]
    assert "goes on with the gradients of the weights alone" in blind
    assert [a.kind for a in watch.alerts] == ["vanishing"]


def test_a_parameter_returned_as_an_output_keeps_no_hook() -> None:
    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 64) / 64)

        def forward(self) -> Tensor:
            return self.weight

    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt, self.head = Prompt(), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(x @ self.prompt())
            return output

    norms: list[float] = []

    class Oracle(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            norms.append(pl_module.net.prompt.weight.grad.norm().item())

    model, watch = Classifier(Prompted()), GradWatch(sample_every_n_steps=1)
    quiet_trainer(watch, Oracle(), max_steps=20).fit(model, digits())
    (watcher,) = watchers_of(watch)
    assert watcher.latest is not None
    assert watcher.latest.output_grad_norm[0].item() == pytest.approx(norms[-1], rel=1e-5)
    assert not model.net.prompt.weight._backward_hooks


def test_only_the_last_state_of_an_lstm_is_enough() -> None:
    class LastState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(self.rnn(x.view(-1, 8, 8))[1][0][-1])
            return output

    watch = GradWatch()
    fit(watch, Classifier(LastState()), max_steps=3)
    (watcher,) = watchers_of(watch)
    assert watcher.latest is not None
    assert (watcher.latest.output_grad_norm > 0).all()
    assert dict(watcher.latest.sequences)["net.rnn"].shape == (8,)


def test_parametrized_layers_are_measured_at_their_output() -> None:
    plain, normed = GradWatch(), GradWatch()
    fit(plain, Classifier(deep_net(nn.Tanh, 8)), max_steps=1)
    net = deep_net(nn.Tanh, 8)
    for module in net:
        if isinstance(module, nn.Linear):
            nn.utils.parametrizations.weight_norm(module)
    fit(normed, Classifier(net), max_steps=1)
    assert list(normed.profile) == list(plain.profile)
    assert list(normed.profile.values()) == pytest.approx(list(plain.profile.values()), rel=1e-3)


def test_a_layer_that_first_runs_late_gets_its_place(tmp_path: Path) -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.late, self.first = nn.Linear(64, 10), nn.Linear(64, 64), nn.Linear(64, 64)
            self.num_calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.num_calls += 1
            x = self.first(x)
            output: Tensor = self.head(self.late(x) if self.num_calls > 5 else x)
            return output

    watch = GradWatch()
    fit(watch, Classifier(Growing()), directory=tmp_path, max_steps=20, log_every_n_steps=20)
    assert list(watch.profile) == ["net.first", "net.late", "net.head"]
    events = read_events(tmp_path)
    for version, layers in (("", ["net.first", "net.head", "net.late"]), ("-2", ["net.first", "net.late", "net.head"])):
        content = events.SummaryMetadata(f"gradwatch/layers{version}/grad_norm_steps").plugin_data.content
        assert json.loads(content)["layers"] == layers


def test_very_deep_networks_are_seen_to_the_bottom() -> None:
    watch = GradWatch()
    with pytest.warns(GradWatchWarning, match="such as net.0"):
        fit(watch, Classifier(deep_net(nn.Sigmoid, 45)), max_steps=12)
    assert len(watch.profile) == 45
    assert min(watch.profile.values()) < 1e-25


class DocsLogger(Logger):
    """As small as Lightning's documentation allows: without ``experiment``."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return "docs"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics.append(dict(metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_a_logger_without_an_experiment_gets_its_numbers() -> None:
    logger = DocsLogger()
    fit(GradWatch(), logger=logger, log_every_n_steps=5)
    assert sum("gradwatch/total_norm" in m for m in logger.metrics) == 2


def test_one_broken_logger_leaves_the_other_of_its_kind_alone(tmp_path: Path) -> None:
    class Broken(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if "gradwatch/total_norm" in metrics:
                raise OSError("disk full")

    Broken.__name__ = "CSVLogger"
    good = CSVLogger(tmp_path / "good", name="", version="")
    with pytest.warns(GradWatchWarning, match="disk full"):
        fit(GradWatch(), logger=[Broken(tmp_path / "bad", name="", version=""), good], log_every_n_steps=5)
    assert "gradwatch/total_norm" in (tmp_path / "good/metrics.csv").read_text()


def test_scores_to_monitor_are_as_fresh_as_the_last_sample() -> None:
    seen: list[float] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append(float(trainer.callback_metrics["gradwatch/vanishing"]))

    quiet_trainer(GradWatch(), Look(), max_steps=15, log_every_n_steps=0).fit(
        Classifier(deep_net(nn.Tanh, 8)), digits()
    )
    assert seen[8] == 0.0
    assert seen[9] > 0.1


def test_backward_sampling_writes_histograms_too(tmp_path: Path) -> None:
    fit(GradWatch(sample_at="backward"), directory=tmp_path, log_every_n_steps=2, accumulate_grad_batches=2)
    assert "grad_log10/net.0" in read_events(tmp_path).Tags()["histograms"]


def test_a_checkpoint_of_another_version_costs_a_warning() -> None:
    watch = GradWatch()
    with pytest.warns(GradWatchWarning, match="cannot go on from this checkpoint and starts afresh"):
        watch.load_state_dict({"version": 2})
    fit(watch, max_steps=2)


def test_every_strategy_of_lightning_is_either_whole_or_refused() -> None:
    from lightning.pytorch import strategies

    accepted = set()
    for name in dir(strategies):
        strategy = getattr(strategies, name)
        if not isinstance(strategy, type) or not issubclass(strategy, strategies.Strategy):
            continue
        trainer = quiet_trainer()
        trainer.strategy.__class__ = type("Own" + name, (strategy,), {})
        with contextlib.suppress(ValueError):
            GradWatch().setup(trainer, Classifier(small_net()), "fit")
            accepted.add(name)
    assert accepted == {"SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy"}


def test_zero_loss_on_every_batch_is_not_dead() -> None:
    class Solved(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.relu(self.net(batch[0]).mean() * 1e-3 - 1.0)

    watch = GradWatch()
    fit(watch, Solved(small_net()), max_steps=60)
    assert watch.alerts == []
    assert math.isfinite(sum(watch.profile.values()))


class TwoHeads(nn.Module):
    """A forecaster or an autoencoder whose second head belongs to another likelihood than the one in use."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.dropout = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        mean, _ = self.mean(x), self.dropout(x)
        output: Tensor = mean
        return output


def test_a_head_that_the_loss_does_not_use_is_named_and_can_be_excluded() -> None:
    watch, model = GradWatch(), Classifier(TwoHeads())
    fit(watch, model, max_steps=15)
    assert model.net.dropout.weight.grad is None
    (alert,) = watch.alerts
    assert (alert.kind, alert.level, alert.layer) == ("detached", "notice", "net.dropout")
    assert "net.dropout runs but never gets a gradient" in alert.message
    assert any(remedy.startswith("let the loss use") for remedy in alert.remedies)
    quiet = GradWatch(exclude="net.dropout")
    fit(quiet, Classifier(TwoHeads()), max_steps=15)
    assert quiet.alerts == []


class ProjectedSkip(nn.Module):
    """A residual block whose skip is a layer of its own, so that it does not carry the gradient past tiny weights."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.skip = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.narrow(self.wide(x).relu()) + self.skip(x)
        return output


def projected_skips(gain: float) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*[ProjectedSkip() for _ in range(6)], nn.Linear(64, 10))
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=gain / 8)
            nn.init.zeros_(module.bias)
    return net


def test_tiny_weights_are_blamed_where_skip_connections_cannot_make_up_for_them() -> None:
    watch = GradWatch()
    with pytest.warns(GradWatchWarning, match="vanish with depth"):
        fit(watch, Classifier(projected_skips(gain=0.1), lr=0.01), max_steps=12)
    (alert,) = watch.alerts
    assert (alert.kind, alert.cause) == ("vanishing", "small_init")
    assert "0 normalisation layers and 6 skip connections" in alert.evidence
    assert not any("residual" in remedy for remedy in alert.remedies)
    cured = GradWatch()
    fit(cured, Classifier(projected_skips(gain=0.7), lr=0.01), max_steps=30)
    assert cured.alerts == []
