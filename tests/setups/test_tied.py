"""Layers that share weights: each is judged by its own output, and each parameter is counted once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from tests.tasks import (
    Classifier,
    deep_net,
    digits,
    fit,
    norms_by_step,
    quiet_trainer,
    read_events,
    scalars,
    session_of,
)

DEPTH = 12


def tie(parts: Sequence[nn.Module], *names: str) -> None:
    """Let all parts have the parameters of the first; those of the given names alone, if there are any."""
    for part in parts[1:]:
        for first, module in zip(parts[0].modules(), part.modules(), strict=True):
            for name, parameter in first._parameters.items():
                if not names or name in names:
                    module._parameters[name] = parameter


def tied_net(*names: str, activation: type[nn.Module] = nn.Sigmoid) -> nn.Sequential:
    """Layers named 0, 2, ..., 22 that share these parameters, and a head, 24."""
    net = deep_net(activation, DEPTH + 1)
    tie([net[2 * i] for i in range(DEPTH)], *names)
    return net


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.linear(x).relu() / 4
        return output


class Block(nn.Module):
    """A pre-norm block of attention, as in encoders that run one block many times."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        given = self.norm1(x)
        x = x + self.attention(given, given, given, need_weights=False)[0]
        output: Tensor = x + self.narrow(self.wide(self.norm2(x)).relu())
        return output


def residuals(*names: str) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [Residual() for _ in range(DEPTH)]
    tie(blocks, *names)
    return nn.Sequential(*blocks, nn.Linear(64, 10))


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [Block() for _ in range(6)]
    tie(blocks)
    return nn.Sequential(nn.Unflatten(1, (8, 8)), *blocks, nn.Flatten(), nn.Linear(64, 10))


SHARED = [("weight",), ()]
"""The weight alone, each layer having its own bias; or everything."""


@pytest.mark.parametrize("names", SHARED)
@pytest.mark.filterwarnings("ignore:.*vanish with depth")
def test_a_gradient_that_is_lost_in_tied_layers_is_noticed(names: tuple[str, ...]) -> None:
    watch = GradWatch()
    fit(watch, Classifier(tied_net(*names)), max_steps=20)
    assert [(a.kind, a.cause, a.layer) for a in watch.alerts] == [("vanishing", "saturating_activation", "net.0")]
    assert list(watch.profile) == [f"net.{2 * i}" for i in range(DEPTH + 1)]


@pytest.mark.parametrize("make", [lambda: residuals("weight"), residuals, encoder], ids=["weight", "all", "encoder"])
def test_tied_layers_that_pass_the_gradient_on_are_left_alone(make: Any) -> None:
    watch = GradWatch()
    trainer = fit(watch, Classifier(make(), lr=0.02), max_steps=120)
    assert watch.alerts == []
    assert not session_of(watch).is_off
    assert trainer.callback_metrics["loss"] < 1.5
    assert len(watch.profile) > DEPTH


@pytest.mark.filterwarnings("ignore:.*vanish with depth")
def test_figures_of_parameters_are_there_once_and_those_of_outputs_for_each(tmp_path: Path) -> None:
    totals: list[float] = []

    class Truthful(Classifier):  # type: ignore[misc, valid-type]
        def on_after_backward(self) -> None:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            totals.append(torch.nn.utils.get_total_norm(gradients).item())

    watch = GradWatch(sample_every_n_steps=1, histogram_every=1, auto_clip=1e-6)
    fit(watch, Truthful(tied_net()), directory=tmp_path, max_steps=15, log_every_n_steps=1)
    events = read_events(tmp_path)
    assert list(scalars(events, "gradwatch/total_norm").values()) == pytest.approx(totals, rel=1e-5)
    content = events.SummaryMetadata("gradwatch/layers/grad_norm_steps").plugin_data.content
    layers = json.loads(content)["layers"]
    assert layers == list(watch.profile)

    def latest(quantity: str) -> dict[str, float]:
        array = make_ndarray(events.Tensors(f"gradwatch/layers/{quantity}")[-1].tensor_proto)
        return dict(zip(layers, array.tolist(), strict=True))

    outputs = latest("output_grad_norm")
    assert all(outputs[name] > 0 for name in layers)
    norms = dict(zip(layers, norms_by_step(events)[14], strict=True))
    assert {name for name in layers if norms[name] >= 0} == {"net.0", f"net.{2 * DEPTH}"}
    of_parameters = ("weight_norm", "zero_fraction", "clipped_fraction", "nonfinite_fraction")
    for quantity in (*of_parameters, "update_ratio"):
        found = latest(quantity)
        assert {name for name in layers if found[name] >= 0} == {"net.0", f"net.{2 * DEPTH}"}, quantity
        assert all(found[name] in (-1.0, 0.0) or name in ("net.0", "net.24") for name in layers)
    assert "grad_norm/net.2" not in events.Tags()["scalars"]


def test_layers_without_parameters_of_their_own_are_neither_dead_nor_detached() -> None:
    class Silent(nn.Module):
        """Its tied layers run, and nobody uses what they make."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
            self.others = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)])
            tie([self.first, *self.others])

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            for other in self.others:
                _ = other(x)
            output: Tensor = self.head(x + 0.0 * self.others[0](x))
            return output

    watch = GradWatch(sample_every_n_steps=1)
    fit(watch, Classifier(Silent()), max_steps=40)
    assert watch.alerts == []


@pytest.mark.filterwarnings("ignore:.*vanish with depth")
@pytest.mark.parametrize("is_older", [True, False])
def test_a_run_goes_on_from_one_in_which_tied_layers_were_no_layers(tmp_path: Path, is_older: bool) -> None:
    """As they were in earlier versions, which kept the two layers that own something; or the other way round."""
    pair, checkpoint = ("net.0", "net.24"), tmp_path / "last.ckpt"
    first, second = (GradWatch(include=pair), GradWatch()) if is_older else (GradWatch(), GradWatch(include=pair))
    fit(first, Classifier(tied_net()), max_steps=8).save_checkpoint(checkpoint)
    trainer = quiet_trainer(second, max_steps=24)
    trainer.fit(Classifier(tied_net()), digits(), ckpt_path=checkpoint)
    assert (trainer.global_step, session_of(second).is_off) == (24, False)
    assert len(second.profile) == (DEPTH + 1 if is_older else 2)
    assert [alert.kind for alert in second.alerts] == (["vanishing"] if is_older else [])
