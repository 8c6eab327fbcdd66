"""Precision: all numbers are those of the unscaled gradient, and a step that the loss scaler skips is counted, no more.

The oracle reads the gradients right after the backward pass, where they still carry the scale, and divides in float64.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from tests.tasks import (
    Classifier,
    Poison,
    digits,
    fit,
    norms_by_step,
    quiet_trainer,
    read_events,
    scalars,
    small_net,
    tensors,
    watchers_of,
)

LAYERS = ("net.0", "net.2", "net.4")


def fp16(init_scale: float = 1024.0, **scaler: Any) -> MixedPrecision:
    """Mixed precision with a real loss scaler on the CPU, where Lightning alone would fall back to bfloat16."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale, **scaler))


def options_of(precision: str) -> dict[str, Any]:
    return {"plugins": [fp16()]} if precision == "16-mixed" else {"precision": precision}


class Oracle(pl.Callback):
    """Norms of the gradients divided by the scale, in float64, of the weights and of the layers' outputs."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.losses: list[float] = []
        self.weights: list[list[float]] = []
        self.outputs: list[list[float]] = []
        self.decades: list[float] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.layers = [pl_module.get_submodule(name) for name in LAYERS]
        for layer in self.layers:
            layer.register_forward_hook(self.follow_output)

    def follow_output(self, layer: nn.Module, given: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: self.arrived.update({layer: gradient.double().norm().item()}))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scales.append(1.0 if scaler is None else scaler.get_scale())
        self.losses.append(loss.item() / self.scales[-1])
        self.arrived: dict[nn.Module, float] = {}

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        scale = self.scales[-1]
        self.outputs.append([self.arrived[layer] / scale for layer in self.layers])
        gradients = [
            torch.cat([(p.grad.double() / scale).flatten() for p in layer.parameters() if p.grad is not None])
            for layer in self.layers
        ]
        self.weights.append([gradient.norm().item() for gradient in gradients])
        last = gradients[-1].abs()
        self.decades.append(last[last > 0].log10().mean().item())

    @property
    def totals(self) -> list[float]:
        return [math.hypot(*norms) for norms in self.weights]

    @property
    def is_skipped(self) -> list[bool]:
        return [not math.isfinite(total) for total in self.totals]


def run(directory: Path, *callbacks: Any, model: Any = None, watch: GradWatch | None = None, **options: Any) -> Oracle:
    """Train with an oracle beside GradWatch; ``callbacks`` meddle before both of them."""
    pl.seed_everything(1, verbose=False)
    oracle = Oracle()
    watch = GradWatch() if watch is None else watch
    trainer = quiet_trainer(*callbacks, watch, oracle, directory=directory, **{"log_every_n_steps": 1, **options})
    trainer.fit(Classifier(small_net()) if model is None else model, digits())
    return oracle


@pytest.mark.parametrize("precision", ["32", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"])
def test_every_precision_is_measured_unscaled(tmp_path: Path, precision: str) -> None:
    watch = GradWatch(histogram_every=1)
    oracle = run(tmp_path, watch=watch, max_steps=6, **options_of(precision))
    plain = run(tmp_path / "32", max_steps=1)
    assert set(oracle.scales) == {1024.0 if precision == "16-mixed" else 1.0}
    assert oracle.totals[0] == pytest.approx(plain.totals[0], rel=0.05)  # the oracle itself is sane
    assert watch.alerts == []
    check_events(tmp_path, oracle)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_fused_optimizer_leaves_the_scale_in_the_gradient_and_not_in_the_numbers(
    tmp_path: Path, optimizer: Any
) -> None:
    still_scaled: list[bool] = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item()
            still_scaled.append(norm > 100)

    model = Classifier(small_net(), lr=1e-3, optimizer=optimizer, fused=True)
    watch = GradWatch(histogram_every=1)
    oracle = run(tmp_path, Look(), model=model, watch=watch, plugins=[fp16()], max_steps=6)
    assert still_scaled == [True] * 6
    check_events(tmp_path, oracle)


def check_events(directory: Path, oracle: Oracle) -> None:
    """Totals, layers, outputs and histograms in the event file are those of the oracle."""
    events = read_events(directory)
    assert list(scalars(events, "gradwatch/total_norm").values()) == pytest.approx(oracle.totals, rel=1e-4)
    outputs = tensors(events, "gradwatch/layers/output_grad_norm")
    assert [*outputs.values()] == [pytest.approx(row, rel=1e-4) for row in oracle.outputs]
    assert [*norms_by_step(events).values()] == [pytest.approx(row, rel=2e-3) for row in oracle.weights]
    histograms = [event.histogram_value for event in events.Histograms("grad_log10/net.4")]
    decades = [oracle.decades[step] for step in (0, 4)]
    assert [h.sum / h.num for h in histograms] == pytest.approx(decades, abs=0.1)  # four errors of 1,024 elements


def test_gradwatch_sees_the_unscaled_loss(tmp_path: Path) -> None:
    watch = GradWatch()
    oracle = run(tmp_path, watch=watch, plugins=[fp16(growth_interval=3)], max_steps=12)
    assert len(set(oracle.scales)) > 1
    (watcher,) = watchers_of(watch)
    assert watcher._digest.judge.history.evidence.losses == pytest.approx(oracle.losses, rel=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_step_skipped_by_the_scaler_enters_no_statistics(tmp_path: Path, fused: bool, value: float) -> None:
    frozen: list[bool] = []

    class Look(pl.Callback):
        """Sees that the scaler really skips: the weights stay as they are."""

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.before = pl_module.net[0].weight.detach().clone()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            frozen.append(torch.equal(self.before, pl_module.net[0].weight))

    model = Classifier(small_net(), lr=1e-3, optimizer=torch.optim.Adam, fused=fused)
    watch, skipped = GradWatch(), [3, 7, 8, 14]
    poison = Poison(*skipped, value=value)
    oracle = run(
        tmp_path, poison, Look(), model=model, watch=watch, plugins=[fp16()], max_steps=20, log_every_n_steps=5
    )
    assert [i for i, is_frozen in enumerate(frozen) if is_frozen] == skipped
    assert watch.alerts == []
    events = read_events(tmp_path)
    assert list(scalars(events, "gradwatch/skipped_steps").items()) == [(4, 1), (9, 3), (14, 4), (19, 4)]
    assert set(scalars(events, "gradwatch/nonfinite_steps").values()) == {0}
    assert set(scalars(events, "gradwatch/alerts").values()) == {0}
    windows = [[t for t in oracle.totals[i : i + 5] if math.isfinite(t)] for i in (0, 5, 10, 15)]
    for tag, choose in (("min", min), ("max", max), ("median", lambda w: torch.tensor(w).quantile(0.5).item())):
        expected = [choose(window) for window in windows]
        assert list(scalars(events, f"gradwatch/total_norm_{tag}").values()) == pytest.approx(expected, rel=1e-4)


def test_the_scaler_may_look_for_its_level_for_as_long_as_it_takes(tmp_path: Path) -> None:
    watch = GradWatch()
    oracle = run(tmp_path, watch=watch, plugins=[fp16(2.0**30)], max_steps=60)
    num_skipped = sum(oracle.is_skipped)
    assert num_skipped > 10
    assert all(oracle.is_skipped[:num_skipped])
    assert watch.alerts == []
    events = read_events(tmp_path)
    assert scalars(events, "gradwatch/skipped_steps")[59] == num_skipped
    assert scalars(events, "gradwatch/nonfinite_steps")[59] == 0
    assert list(norms_by_step(events)) == list(range(num_skipped, 60))  # what the scaler skips is no gradient
    for name in ("output_grad_norm", "weight_norm"):
        found = torch.tensor([*tensors(events, f"gradwatch/layers/{name}").values()])
        assert found.isfinite().all()
    assert all(math.isfinite(e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag))


def test_a_skipped_step_that_is_sampled_says_nothing_of_its_gradients(tmp_path: Path) -> None:
    """The scale doubles after every step that works, so that it is soon too large again."""
    watch, scaler = GradWatch(sample_every_n_steps=1), fp16(2.0**12, growth_interval=1, backoff_factor=0.125)
    oracle = run(tmp_path, watch=watch, plugins=[scaler], max_steps=60, log_every_n_steps=3)
    events = read_events(tmp_path)
    taken = [step for step in range(60) if not oracle.is_skipped[step]]
    assert 10 < len(taken) < 50
    outputs, norms = tensors(events, "gradwatch/layers/output_grad_norm"), norms_by_step(events)
    assert outputs == {step: pytest.approx(oracle.outputs[step], rel=1e-4) for step in taken}
    assert norms == {step: pytest.approx(oracle.weights[step], rel=2e-3) for step in taken}
    assert scalars(events, "gradwatch/skipped_steps")[59] == sum(oracle.is_skipped)
    assert watch.alerts == []


def test_scaling_that_never_works_out_is_an_alert() -> None:
    lost, bad = GradWatch(), GradWatch()
    fit_with(lost, Poison(*range(60)))

    class NaNLoss(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * math.nan

    fit_with(bad, model=NaNLoss(small_net()))
    assert [(a.kind, a.step, a.value) for a in lost.alerts] == [("nonfinite", 0, 20)]
    assert [(a.kind, a.step, a.value) for a in bad.alerts] == [("nonfinite", 0, 3)]


def test_three_skips_in_a_row_after_a_step_that_worked_are_an_alert(tmp_path: Path) -> None:
    watch = GradWatch()
    fit_with(watch, Poison(11, 20, 21, 22), directory=tmp_path)
    assert [(a.kind, a.step, a.layer) for a in watch.alerts] == [("nonfinite", 20, "net.2")]
    (opened, ended) = (json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines())
    assert (opened["event"], ended["event"], ended["until_step"]) == ("opened", "ended", 22)


def fit_with(watch: GradWatch, *callbacks: Any, model: Any = None, **options: Any) -> None:
    model = Classifier(small_net(), lr=1e-3) if model is None else model
    quiet_trainer(*callbacks, watch, plugins=[fp16()], max_steps=50, **options).fit(model, digits())


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_window_that_ends_without_a_loss_is_not_taken_for_unscaled(tmp_path: Path) -> None:
    """Lightning takes no step then, and leaves the scale in the gradient."""

    class Skipping(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            return None if batch_idx == 3 else super().training_step(batch, batch_idx)

    watch = GradWatch()
    options = {"accumulate_grad_batches": 2, "plugins": [fp16()], "limit_train_batches": 8, "max_epochs": 1}
    oracle = run(tmp_path, model=Skipping(small_net()), watch=watch, max_steps=-1, **options)
    complete = [oracle.totals[i] for i in (1, 4, 6)]
    assert list(scalars(read_events(tmp_path), "gradwatch/total_norm").values()) == pytest.approx(complete, rel=1e-4)
    assert fit(None, max_steps=1).global_step == 1


def test_an_update_that_the_scaler_skipped_is_no_update(tmp_path: Path) -> None:
    callbacks = (Poison(0), GradWatch())
    trainer = quiet_trainer(*callbacks, directory=tmp_path, plugins=[fp16()], max_steps=12, log_every_n_steps=1)
    trainer.fit(Classifier(small_net()), digits())
    ratios = scalars(read_events(tmp_path), "gradwatch/update_ratio")
    assert ratios
    assert min(ratios.values()) > 0


@pytest.mark.parametrize("num_skipped", [0, 8])
def test_the_moments_of_a_constant_gradient_show_a_full_signal_whatever_was_skipped(
    tmp_path: Path, num_skipped: int
) -> None:
    class Constant(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.stack([p.sum() for p in self.parameters()]).sum()

    trainer = quiet_trainer(
        Poison(*range(num_skipped)),
        GradWatch(),
        directory=tmp_path,
        plugins=[fp16()],
        max_steps=21,
        log_every_n_steps=1,
    )
    trainer.fit(Constant(small_net(), lr=1e-4, optimizer=torch.optim.Adam), digits())
    signals = scalars(read_events(tmp_path), "gradwatch/gradient_signal")
    assert signals[20] == pytest.approx(1.0, rel=1e-2)
