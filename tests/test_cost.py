"""What a step may cost: counts of operators and of Python calls, which no other load on the machine can change."""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from benchmarks import operators
from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.clip import NAMES, make_policies
from lightning_gradwatch.core.detector import Detector
from lightning_gradwatch.core.groups import Groups
from lightning_gradwatch.core.norms import norms
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.reader import Reader
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.shards import local
from lightning_gradwatch.core.watcher import Watcher
from tests.setups.processes import run_ranks, tell
from tests.tasks import (
    Classifier,
    Clock,
    deep_net,
    digits,
    fit,
    quiet_trainer,
    read_events,
    scalars,
    session_of,
    watchers_of,
)

DEPTHS = [10, 20, 40]
PACKAGE = "lightning_gradwatch"


class Operators(operators.Operators):
    """Counts the torch operators that run, but for views, by their short names."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in ("detach", "select", "slice", "view", "alias", "unbind", "as_strided", "expand"):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


class Calls:
    """Counts calls of Python functions from our own files."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __enter__(self) -> Calls:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and PACKAGE in frame.f_code.co_filename:
            self.seen[frame.f_code.co_name] += 1


STEP = {"ordinary": 13, "published": 13, "sampled": 13, "thorough": 14}
"""Which step of a training is looked at: with a sample at each step, the fifteenth is thorough."""


def step_of(kind: str, depth: int, policy: Any = None) -> tuple[nn.Module, Watcher]:
    """A network of ``depth`` linear layers, trained up to a step of the kind."""
    net = deep_net(nn.Sigmoid, depth)
    every = 1 if kind in ("sampled", "thorough") else 10**6
    settings = Settings(Schedule(0, every), histogram_every=0, policies=make_policies(policy))
    watcher = Watcher(net, torch.optim.SGD(net.parameters(), 0.1), settings)
    for _ in range(STEP[kind]):
        take_step(net, watcher)
    return net, watcher


def take_step(net: nn.Module, watcher: Watcher | None, publish: bool = False) -> None:
    net.zero_grad()
    if watcher is not None:
        watcher.arm()
    loss = net(torch.ones(4, 64)).square().mean()
    loss.backward()
    if watcher is not None:
        watcher.observe(loss=loss.detach(), publish=publish)


def num_operators(kind: str, depth: int, policy: Any = None) -> int:
    """Operators of a step beyond those of its forward and backward pass."""
    net, watcher = step_of(kind, depth, policy)
    with Operators() as bare:
        take_step(net, None)
    with Operators() as watched:
        take_step(net, watcher, publish=kind == "published")
    return watched.seen.total() - bare.seen.total()


def num_calls(kind: str, depth: int) -> int:
    """Python calls of ours in a step."""
    net, watcher = step_of(kind, depth)
    with Calls() as calls:
        take_step(net, watcher, publish=kind == "published")
    return calls.seen.total()


OPERATORS = {"ordinary": (10, 0), "published": (42, 0), "sampled": (34, 1), "thorough": (160, 3)}
CALLS = {"ordinary": (24, 0), "published": (150, 2), "sampled": (182, 16), "thorough": (310, 31)}
"""At most so many in a step, and so many more for each layer."""


def excess(counted: int, bound: tuple[int, int], depth: int) -> int:
    return counted - bound[0] - bound[1] * depth


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", STEP)
def test_the_operators_of_a_step_are_bounded(kind: str, depth: int) -> None:
    assert excess(num_operators(kind, depth), OPERATORS[kind], depth) <= 0


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", STEP)
def test_the_python_calls_of_a_step_are_bounded(kind: str, depth: int) -> None:
    assert excess(num_calls(kind, depth), CALLS[kind], depth) <= 0


def one_by_one(self: Groups, tensors: Any, *further: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.stack([*(norms([t])[0] for t in tensors), *further], out=out)


WASTE: list[tuple[Any, str, Any]] = [
    (Groups, "norms", lambda old: one_by_one),
    (Detector, "update", lambda old: lambda self, *a: ([self.scores for _ in range(50)], old(self, *a))[1]),
    (Probe, "_see_gradient", lambda old: lambda self, *a: (old(self, *a), [local(a[-1]).norm() for _ in range(9)])[0]),
]


@pytest.mark.parametrize(
    ("waste", "kind"),
    [(0, "ordinary"), (0, "published"), (1, "published"), (1, "sampled"), (2, "sampled"), (2, "thorough")],
)
def test_the_bounds_see_waste(monkeypatch: pytest.MonkeyPatch, waste: int, kind: str) -> None:
    place, name, make = WASTE[waste]
    monkeypatch.setattr(place, name, make(getattr(place, name)))
    operators = excess(num_operators(kind, 20), OPERATORS[kind], 20)
    calls = excess(num_calls(kind, 20), CALLS[kind], 20)
    assert max(operators, calls) > 0


def test_an_ordinary_step_of_a_trainer_runs_three_operators_of_ours(tmp_path: Path) -> None:
    seen: list[int] = []

    class Counted(GradWatch):
        """Counts what runs in each of its hooks."""

        def on_train_batch_start(self, *args: Any, **options: Any) -> None:
            with Operators() as count:
                super().on_train_batch_start(*args, **options)
            seen.append(count.seen.total())

        def on_before_optimizer_step(self, *args: Any, **options: Any) -> None:
            with Operators() as count:
                super().on_before_optimizer_step(*args, **options)
            seen[-1] += count.seen.total()

    fit(Counted(dense_steps=1, sample_every_n_steps=10**6), max_steps=20, log_every_n_steps=100, directory=tmp_path)
    # the ends of the batch, the norms, and the row they are written to; ten rows later these go home
    assert [count for step, count in enumerate(seen) if step not in (0, 1, 10)] == [3] * 17


@pytest.mark.parametrize(("clip", "most"), [(None, 70), (1.0, 87)])
def test_an_ordinary_step_of_a_trainer_makes_few_python_calls_of_ours(clip: float | None, most: int) -> None:
    seen: list[int] = []

    class Counter(pl.Callback):
        """Counts from one batch to the next, with Lightning's own calls of our hooks."""

        def __init__(self) -> None:
            self.calls: Calls | None = None

        def on_train_batch_end(self, *args: Any, **options: Any) -> None:
            if self.calls is not None:
                self.calls.__exit__()
                seen.append(self.calls.seen.total())
            self.calls = Calls()
            self.calls.__enter__()

        def on_train_end(self, *args: Any, **options: Any) -> None:
            assert self.calls is not None
            self.calls.__exit__()

    watch = GradWatch(dense_steps=1, sample_every_n_steps=10**6, auto_clip=clip)
    trainer = quiet_trainer(watch, Counter(), max_steps=24, log_every_n_steps=100)
    trainer.fit(Classifier(deep_net(nn.ReLU, 20, he_init=True)), digits())
    assert min(seen) <= most
    assert sorted(seen)[len(seen) // 2] <= most


@pytest.mark.parametrize("kind", ["ordinary", pytest.param("sampled", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_steps(kind: str) -> None:
    net, watcher = step_of(kind, 10)
    held = []
    for i in range(300):
        take_step(net, watcher, publish=i % 50 == 49)
        if i % 100 == 99:
            gc.collect()
            held.append(sum(o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) is Tensor))
    assert held[0] == held[1] == held[2]


class Many(nn.Module):
    """A thousand layers with two small parameters each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(1000)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers]).square().mean()


@pytest.mark.parametrize("policy", [None, 1e-3, *(name for name in NAMES if name != "norm")])
def test_two_thousand_small_tensors_are_watched_and_clipped_in_few_kernels(policy: Any) -> None:
    net = Many()
    settings = Settings(Schedule(0, 10**6), policies=make_policies(policy))
    watcher = Watcher(net, torch.optim.SGD(net.parameters(), 0.1), settings)
    totals, counted = [], 0
    for _ in range(6):
        net.zero_grad()
        net(torch.ones(2, 3)).backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        totals.append(torch.nn.utils.get_total_norm(gradients).item())
        with Operators() as operators:
            watcher.observe()
        counted = operators.seen.total()
        clipped = torch.nn.utils.get_total_norm(gradients).item()
        assert clipped <= (1e-3 if policy == 1e-3 else totals[-1]) * 1.001
    assert counted < {None: 8, "agc": 30_000, "value": 10_000}.get(policy, 100)
    (publication,) = watcher.flush().publications
    assert publication.window.max[0].item() == pytest.approx(max(totals), rel=1e-5)
    assert publication.window.last[0].item() == pytest.approx(totals[-1], rel=1e-5)


# --- what it says about its own cost, and the budget


class Timed(pl.Callback):
    """Lets 10 s pass in every training step, and a given time in each sample of GradWatch."""

    def __init__(self, watch: GradWatch, sample_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.watch, self.clock = watch, Clock()
        take = Reader.sample

        def slow(reader: Reader, *args: Any) -> Any:
            self.clock.now += sample_s
            return take(reader, *args)

        monkeypatch.setattr(Reader, "sample", slow)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        session_of(self.watch).guard.cost.clock = self.clock

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self.clock.now += 10.0


def test_the_run_is_told_what_watching_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = GradWatch(dense_steps=0, sample_every_n_steps=1)
    trainer = quiet_trainer(
        watch, Timed(watch, 0.5, monkeypatch), directory=tmp_path, max_steps=40, log_every_n_steps=5
    )
    trainer.fit(Classifier(deep_net(nn.ReLU, 4, he_init=True)), digits())
    shown = scalars(read_events(tmp_path), "gradwatch/overhead_percent")
    assert list(shown) == [4, 9, 14, 19, 24, 29, 34, 39]
    assert list(shown.values()) == pytest.approx([5.0] * 8, rel=0.05)  # hooks in the backward pass take real time


def test_a_real_clock_shows_a_cost_above_nothing(tmp_path: Path) -> None:
    fit(GradWatch(), max_steps=30, log_every_n_steps=10, directory=tmp_path)
    shown = scalars(read_events(tmp_path), "gradwatch/overhead_percent")
    assert all(0 < percent < math.inf for percent in shown.values())


def sampled_steps(watch: GradWatch, timed: Timed, max_steps: int, **options: Any) -> list[int]:
    """Train, and return the steps that took a sample."""
    steps: list[int] = []
    take = Reader.sample

    def noted(reader: Reader, *args: Any) -> Any:
        steps.append(reader._sampling.num_steps)
        return take(reader, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "sample", noted)
        trainer = quiet_trainer(watch, timed, max_steps=max_steps, **options)
        trainer.fit(Classifier(deep_net(nn.ReLU, 4, he_init=True)), digits())
    return steps


def test_a_budget_thins_out_the_samples_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch = GradWatch(dense_steps=5, max_overhead=0.01)
    with caplog.at_level(logging.INFO):
        steps = sampled_steps(watch, Timed(watch, 5.0, monkeypatch), max_steps=450)
    assert steps[:5] == list(range(5))  # the dense start stays
    assert len([s for s in steps if 5 <= s < 50]) >= 4
    rare = [s for s in steps if s >= 50]  # 5 s in 10 * 8 steps of 10 s each are less than 1 %, in 10 * 4 they are more
    assert 4 <= len(rare) <= 6
    assert caplog.text.count("To hold max_overhead=0.01, GradWatch takes a sample about every 80 steps") == 1
    assert "has switched itself off" not in caplog.text


def test_without_a_budget_nothing_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = GradWatch(dense_steps=5)
    steps = sampled_steps(watch, Timed(watch, 5.0, monkeypatch), max_steps=200)
    assert len(steps) == pytest.approx(5 + 195 / 10, abs=1)


def test_a_real_model_too_small_for_its_budget_is_sampled_less(caplog: pytest.LogCaptureFixture) -> None:
    watch = GradWatch(max_overhead=0.0001)
    with caplog.at_level(logging.INFO):
        fit(watch, max_steps=120)
    assert "To hold max_overhead=0.0001, GradWatch takes a sample about every 640 steps" in caplog.text


def test_a_resumed_run_goes_on_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = GradWatch(dense_steps=5, max_overhead=0.01)
    sampled_steps(watch, Timed(watch, 5.0, monkeypatch), max_steps=60)
    resumed = GradWatch(dense_steps=5, max_overhead=0.01)
    resumed.load_state_dict(watch.state_dict())
    assert [state["thinning"] for state in resumed.state_dict()["watchers"].values()] == [8]


NUM_RANKS, FAILS_AT = 2, 70
SCRIPT = "import sys; from tests import test_cost; test_cost.train_ranks()"


def train_ranks() -> None:
    """On rank zero samples are dear; on rank one they cost nothing, and in a second run the watch fails there."""
    told = []
    for fails in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            watch = GradWatch(dense_steps=5, max_overhead=0.01)
            rank = int(os.environ["RANK"])
            timed = Timed(watch, 0.0 if rank else 5.0, patch)
            observe = Watcher.observe

            def broken(watcher: Watcher, *args: Any, _observe: Any = observe, _rank: int = rank, **options: Any) -> Any:
                if watcher.sampling.num_steps == FAILS_AT and _rank == 1:
                    raise RuntimeError("on purpose")
                return _observe(watcher, *args, **options)

            if fails:
                patch.setattr(Watcher, "observe", broken)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                options = {"strategy": "ddp", "devices": NUM_RANKS, "use_distributed_sampler": False}
                steps = sampled_steps(watch, timed, max_steps=200, **options)
            (watcher,) = watchers_of(watch)
            told.append(
                {"steps": steps, "thinning": watcher.sampling.thinning, "num_steps": watcher.sampling.num_steps}
            )
    tell(told)


@pytest.mark.slow
def test_all_ranks_do_as_rank_zero_decides_and_none_waits_for_one_that_failed(tmp_path: Path) -> None:
    first, second = run_ranks(SCRIPT, tmp_path, NUM_RANKS)
    assert first[0] == second[0]
    assert (first[0]["thinning"], first[0]["num_steps"]) == (8, 200)
    assert first[1] == first[0]
    assert second[1]["num_steps"] == FAILS_AT
