"""``torch.compile`` of the whole LightningModule, of its network, of a part and of a function, also in place.

The graphs are counted: those of a watched run must be those of a bare one.
"""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from lightning_gradwatch import GradWatch, GradWatchWarning
from tests.setups.by_hand import train_by_hand
from tests.tasks import Classifier, deep_net, digits, fit, quiet_trainer, read_events, scalars, watchers_of

pytestmark = pytest.mark.slow

STEPS = 60
WAYS = ["the LightningModule", "its forward in place", "its network", "its network in place", "a part", "a function"]
BLIND = WAYS[:4]
"""The ways that leave no layer outside the graph."""


class Outer(nn.Module):
    """A module of one's own: ``nn.Sequential`` compiled in place compiles nothing."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class Forward(Classifier):  # type: ignore[misc, valid-type]
    """Goes through its own ``forward``, which is what ``LightningModule.compile`` compiles."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Functional(Classifier):  # type: ignore[misc, valid-type]
    """Compiles a function that runs the network, not the network."""

    def __init__(self, net: nn.Module, **options: Any) -> None:
        super().__init__(net)
        self.function = torch.compile(lambda pixels: self.net(pixels), **options)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.function(batch[0]), batch[1])


def compiled(way: str, net: nn.Sequential, backend: Any = "eager") -> Any:
    torch._dynamo.reset()
    whole = Outer(net)
    if way == "a function":
        return Functional(whole, backend=backend)
    if way == "its forward in place":
        forward = Forward(whole)
        forward.compile(backend=backend)
        return forward
    if way == "its network in place":
        whole.compile(backend=backend)
    if way == "a part":
        part: Any = torch.compile(net[:8], backend=backend)
        whole.layers = nn.Sequential(part, *list(net)[8:])
    model = Classifier(torch.compile(whole, backend=backend) if way == "its network" else whole)
    if way == "the LightningModule":
        model.log = lambda *args, **kwargs: None  # Lightning's own logging breaks inside a compiled step
        return torch.compile(model, backend=backend)
    return model


def relu_net() -> nn.Sequential:
    return deep_net(nn.ReLU, depth=6, he_init=True)


@pytest.mark.parametrize(
    ("way", "backend"), [*((way, "eager") for way in WAYS), ("its network", "aot_eager"), ("a function", "aot_eager")]
)
def test_names_and_norms_are_those_of_the_uncompiled_network(tmp_path: Path, way: str, backend: str) -> None:
    watch = GradWatch()
    fit(watch, compiled(way, relu_net(), backend), directory=tmp_path, max_steps=STEPS, log_every_n_steps=10)
    steps, events = train_by_hand(Outer(relu_net()), STEPS), read_events(tmp_path)
    windows = [[step.total for step in steps[i : i + 10]] for i in range(0, STEPS, 10)]
    for tag, choose in (("total_norm", itemgetter(-1)), ("total_norm_min", min), ("total_norm_max", max)):
        expected = {9 + 10 * i: choose(window) for i, window in enumerate(windows)}
        assert scalars(events, f"gradwatch/{tag}") == pytest.approx(expected, rel=1e-5)
    names = list(steps[0].layers)
    if way == "a part":  # a slice of a Sequential counts from 0 anew
        names = [f"net.layers.{name}" for name in ("0.0", "0.2", "0.4", "0.6", "1", "3")]
    assert list(watch.profile) == names
    assert {f"grad_norm/{name}" for name in names} == {t for t in events.Tags()["scalars"] if t.startswith("grad_norm")}
    for name, layer in zip(names, steps[0].layers, strict=True):
        expected = {step: steps[step].layers[layer] for step in range(9, STEPS, 10)}
        assert scalars(events, f"grad_norm/{name}") == pytest.approx(expected, rel=1e-5)
    assert watch.alerts == []


def work_of_the_compiler(way: str, *callbacks: Any) -> tuple[list[int], int, dict[str, int], dict[str, int]]:
    """The steps at which a graph was compiled, frames tried, breaks and other counters of a run of 70 steps."""
    compiled_at: list[int] = []
    trainer = quiet_trainer(*callbacks, max_steps=70, log_every_n_steps=7)

    def backend(graph: Any, inputs: Any) -> Any:
        compiled_at.append(trainer.global_step)
        return graph.forward

    model = compiled(way, relu_net(), backend)
    counters.clear()
    trainer.fit(model, digits())
    return compiled_at, counters["frames"]["total"], dict(counters["graph_break"]), dict(counters["stats"])


@pytest.mark.parametrize("way", [way for way in WAYS if way != "a function"])
def test_watching_compiles_nothing_anew_and_breaks_no_graph(way: str) -> None:
    watch = GradWatch()
    watched, bare = work_of_the_compiler(way, watch), work_of_the_compiler(way)
    assert watched == bare
    assert bare[0] == [0]
    assert bare[2] == {}
    (watcher,) = watchers_of(watch)
    assert 20 < watcher.sampling.num_samples < 70  # both kinds of steps were there


def test_a_compiled_function_is_compiled_once_more_when_the_dense_steps_end() -> None:
    """The compiler guards on hooks, so it makes one graph for steps with and one for steps without; none after that."""
    watched, bare = work_of_the_compiler("a function", GradWatch()), work_of_the_compiler("a function")
    assert (watched[0], bare[0]) == ([0, 20], [0])
    assert watched[2] == bare[2] == {}


def test_the_count_sees_a_callback_that_makes_the_compiler_work() -> None:
    import lightning.pytorch as pl

    class Counting(pl.Callback):
        calls = 0

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                pl_module.net._orig_mod.layers[2].register_forward_hook(self.count)

        def count(self, *args: Any) -> None:
            self.calls += 1

    assert work_of_the_compiler("its network", Counting()) != work_of_the_compiler("its network")


@pytest.mark.parametrize("way", WAYS)
def test_a_sick_compiled_network_alerts_and_says_what_it_was_judged_by(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch, model = GradWatch(), compiled(way, deep_net())
    with pytest.warns(GradWatchWarning, match="Gradients vanish with depth"), caplog.at_level("INFO"):
        fit(watch, model, max_steps=15)
    (alert,) = watch.alerts
    assert (alert.kind, alert.cause) == ("vanishing", "saturating_activation")
    assert alert.layer == ("net.layers.1" if way == "a part" else "net.layers.0")  # the first that can be seen
    assert alert.threshold == (2.0 if way == "a part" else 2.5)
    assert ("judges the gradients of the weights in this model" in caplog.text) == (way in BLIND)


def test_a_sick_part_inside_a_graph_is_found_behind_healthy_layers_outside() -> None:
    """Four layers can be seen, and lose nothing; most cannot, so the weights must stand in."""
    body = deep_net(nn.Sigmoid, depth=15)
    body[-1] = nn.Linear(64, 64)
    head = deep_net(nn.ReLU, depth=4, he_init=True)
    torch._dynamo.reset()
    watch = GradWatch()
    compiled_body: Any = torch.compile(body, backend="eager")
    with pytest.warns(GradWatchWarning, match=r"such as net\.0\.0"):
        fit(watch, Classifier(nn.Sequential(compiled_body, head)), max_steps=15)
    assert [(alert.kind, alert.threshold) for alert in watch.alerts] == [("vanishing", 2.5)]
    assert len(watch.profile) == 19


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_functions_stay_whole(fullgraph: bool) -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    def count(watch: GradWatch | None) -> set[int]:
        graphs.clear()
        torch._dynamo.reset()
        fit(watch, Functional(Outer(relu_net()), backend=backend, fullgraph=fullgraph), max_steps=30)
        return set(graphs)

    assert count(GradWatch()) == count(None)
