"""Clipping where it is needed: each policy against no clipping and the best fixed norm of a sweep, and what each costs.

Language models learn the characters of Python's own manual at learning rates at which they fall apart unclipped: an
LSTM with plain SGD at 20, the recipe of PyTorch's word-language-model example, and a transformer with normalisation
after each block (Vaswani et al. 2017) under SGD with momentum at 0.5, the smallest of 0.1, 0.3, 0.5 and 1 at which a
seed diverges; and, for the limits of what can be cured without a number, at 1. Each seed gives all methods the same
weights and the same batches. The best fixed norm is the best of the sweep on these very seeds: it has been told what an
adaptive policy has to find out.

Use: `python -m benchmarks.clipping [--steps 400] [--seeds 3] [--workers 2] [--quick] [--json FILE]` for the losses,
`python -m benchmarks.clipping --cost` for the milliseconds. The registry's `autoclip` and `zclip` join the latter where
they are installed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gradwatch.core.clip import (
    AGC,
    AdaGC,
    Clipper,
    ClipPolicy,
    MaxNorm,
    MaxValue,
    Percentile,
    ZScore,
    make_policy,
)
from lightning_gradwatch.core.measure import norms
from lightning_gradwatch.core.shards import Shards

NUM_CHARACTERS = 128
SPIKE_NATS = 0.5
SPIKE_WINDOW = 50
SWEEP = (0.1, 0.25, 0.5, 1.0)
NO_CLIPPING = "no clipping"
METHODS: dict[str, ClipPolicy | None] = {
    NO_CLIPPING: None,
    **{f"fixed norm {max_norm}": MaxNorm(max_norm) for max_norm in SWEEP},
    "percentile": Percentile(),
    "zscore": ZScore(),
    "agc": AGC(exclude="head"),
    "adagc": AdaGC(),
    "value": MaxValue(),
}
DEFAULT = next(name for name, policy in METHODS.items() if policy == make_policy(True))


# --- tasks -----------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A character-level language model of two LSTM layers."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_CHARACTERS, 64)
        self.lstm = nn.LSTM(64, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, NUM_CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of each next character."""
        logits: Tensor = self.head(self.lstm(self.embedding(text))[0])
        return logits


class Block(nn.Module):
    """Attention and a feed-forward network, each normalised after it has been added."""

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """One refinement of the sequence."""
        queries, keys, values = self.project(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = self.first_norm(x + self.merge(heads.transpose(1, 2).flatten(2)))
        output: Tensor = self.second_norm(x + self.feed(x))
        return output


class Transformer(nn.Module):
    """A character-level language model of three blocks."""

    def __init__(self, length: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_CHARACTERS, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.head = nn.Linear(width, NUM_CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of each next character."""
        logits: Tensor = self.head(self.blocks(self.embedding(text) + self.places))
        return logits


@dataclass(frozen=True)
class Task:
    """A network, its optimizer, and the length of the texts it reads."""

    build: Callable[[], nn.Module]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    length: int


TASKS = {
    "LSTM, SGD at 20": Task(Recurrent, lambda parameters: torch.optim.SGD(parameters, 20.0), 64),
    "transformer, momentum SGD at 0.5": Task(
        lambda: Transformer(32), lambda parameters: torch.optim.SGD(parameters, 0.5, momentum=0.9), 32
    ),
    "transformer, momentum SGD at 1.0": Task(
        lambda: Transformer(32), lambda parameters: torch.optim.SGD(parameters, 1.0, momentum=0.9), 32
    ),
}
BATCH = 16
FIRST_SEED = 100  # the policies' defaults were chosen on others


def read_text() -> Tensor:
    """The topics of Python's ``help``, one character each, shape ``(characters,)``."""
    manual = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor(list(manual.encode("ascii", "ignore")))


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training run: its losses, and the share of steps that were clipped."""

    losses: list[float]
    clipped_share: float

    @property
    def final(self) -> float:
        """Mean loss of the last tenth of the steps; NaN if the run has diverged, that is, guesses worse than chance."""
        mean = statistics.fmean(self.losses[-max(1, len(self.losses) // 10) :])
        return mean if mean < math.log(NUM_CHARACTERS) else math.nan

    @property
    def num_spikes(self) -> int:
        """How often the loss leapt half a nat above the median of the 50 steps before, or out of the numbers."""
        above = [
            not loss <= statistics.median(self.losses[i - SPIKE_WINDOW : i]) + SPIKE_NATS
            for i, loss in enumerate(self.losses)
            if i >= SPIKE_WINDOW
        ]
        return sum(now and not before for before, now in zip([False, *above], above, strict=False))


def train(task_name: str, method: str, seed: int, num_steps: int) -> Run:
    """Train once; the seed decides the first weights and the order of the texts, whatever the method."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task, policy = TASKS[task_name], METHODS[method]
    net = task.build()
    optimizer = task.optimizer(net.parameters())
    excluded = policy.exclude if policy is not None else ()
    chosen = [p for name, p in net.named_parameters() if name.split(".")[0] not in excluded]
    clipper = None if policy is None else Clipper(policy, chosen, Shards(chosen))
    text, random, losses, num_clipped = read_text(), torch.Generator().manual_seed(1000 + seed), [], 0
    for _ in range(num_steps):
        starts = torch.randint(len(text) - task.length - 1, (BATCH, 1), generator=random)
        batch = text[starts + torch.arange(task.length + 1)]
        loss = F.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        if clipper is not None:
            clipping = clipper.clip_(torch.stack(norms([p.grad for p in chosen if p.grad is not None])))
            num_clipped += bool((clipping.coefficients < 1).any())
        optimizer.step()
    lost = num_steps - len(losses)
    return Run(losses + [math.nan] * lost, num_clipped / len(losses))


def train_all(seeds: int, num_steps: int, workers: int) -> dict[str, dict[str, list[Run]]]:
    """All tasks, methods and seeds, in processes of one thread each."""
    jobs = [
        (task, method, seed, num_steps)
        for task in TASKS
        for method in METHODS
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
    ]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = iter(pool.map(train, *zip(*jobs, strict=True)))
        return {task: {method: [next(runs) for _ in range(seeds)] for method in METHODS} for task in TASKS}


# --- tables ----------------------------------------------------------------------------------------------------------


def mean_and_sd(values: Sequence[float]) -> str:
    """Both to three places; how many are not finite instead, if any is not."""
    lost = sum(not math.isfinite(value) for value in values)
    if lost:
        return f"{lost} of {len(values)} diverged"
    return f"{statistics.fmean(values):.3f} +- {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def best_fixed(runs: dict[str, list[Run]]) -> str:
    """The fixed norm with the lowest mean loss among those that no seed diverges with."""

    def mean_loss(method: str) -> float:
        mean = statistics.fmean(run.final for run in runs[method])
        return mean if math.isfinite(mean) else math.inf

    return min((f"fixed norm {max_norm}" for max_norm in SWEEP), key=mean_loss)


def table(task: str, runs: dict[str, list[Run]]) -> str:
    """One task: a row per method, each against the best fixed norm on the same seeds."""
    best = best_fixed(runs)
    lines = [f"{task}", f"{'':22}{'final loss':>20}{'against the best fixed':>26}{'spikes':>9}{'clipped':>10}"]
    for method, own in runs.items():
        gaps = [mine.final - other.final for mine, other in zip(own, runs[best], strict=True)]
        gap = "(best fixed)" if method == best else mean_and_sd(gaps)
        spikes = statistics.fmean(run.num_spikes for run in own)
        share = statistics.fmean(run.clipped_share for run in own)
        name = f"{method} (default)" if method == DEFAULT else method
        final = mean_and_sd([run.final for run in own])
        lines.append(f"{name:22}{final:>20}{gap:>26}{spikes:>9.1f}{share:>10.0%}")
    return "\n".join(lines)


# --- cost ------------------------------------------------------------------------------------------------------------


def gpt_shapes(width: int = 768, depth: int = 12, vocabulary: int = 20_000) -> list[tuple[int, ...]]:
    """The parameters of a GPT-2 of 100 million numbers: 146 tensors."""
    block: list[tuple[int, ...]] = [(3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(4 * width, width), (4 * width,), (width, 4 * width), (width,), *[(width,)] * 4]
    return [(vocabulary, width), *block * depth, (width,)]


def rivals(parameters: list[nn.Parameter]) -> dict[str, Callable[[], object]]:
    """The registry's packages, at their defaults but for the total norm where they have a choice."""
    found: dict[str, Callable[[], object]] = {}
    if find_spec("autoclip") is not None:
        clipper = import_module("autoclip.torch").QuantileClip(parameters, global_threshold=True)
        found["autoclip (registry)"] = clipper.step
    if find_spec("zclip") is not None:
        model = nn.ParameterList(parameters)
        zclip = import_module("zclip").ZClip()
        found["zclip (registry)"] = lambda: zclip.step(model)
    for name in sorted({"autoclip", "zclip"} - {name.split()[0] for name in found}):
        print(f"{name} is not installed: pip install {name}", file=sys.stderr)
    return found


def contestants(parameters: list[nn.Parameter]) -> dict[str, Callable[[], object]]:
    """What is timed: torch's own clipping first, then norms and each policy together."""

    def ours(policy: ClipPolicy) -> Callable[[], object]:
        clipper = Clipper(policy, parameters, Shards(parameters))
        return lambda: clipper.clip_(torch.stack(norms([p.grad for p in parameters if p.grad is not None])))

    policies = {"norm": MaxNorm(), **{name: policy for name, policy in METHODS.items() if " " not in name and policy}}
    return {
        "clip_grad_norm_": lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True),
        **{name: ours(policy) for name, policy in policies.items() if policy is not None},
        **rivals(parameters),
    }


def time_all(shapes: Sequence[tuple[int, ...]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contestant on one thread, one call of each in turn, every time on the same gradients."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(0.02 * torch.randn(shape, generator=random)) for shape in shapes]
    fresh = [0.001 * torch.randn(shape, generator=random) for shape in shapes]
    for parameter, gradient in zip(parameters, fresh, strict=True):
        parameter.grad = gradient.clone()
    gradients = [p.grad for p in parameters if p.grad is not None]
    methods = contestants(parameters)
    milliseconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(rounds + 2):  # the first two warm up
        for name, call in methods.items():
            torch._foreach_copy_(gradients, fresh)
            start = time.perf_counter()
            call()
            if round_ > 1:
                milliseconds[name].append(1000 * (time.perf_counter() - start))
    return milliseconds


def cost_table(title: str, milliseconds: dict[str, list[float]]) -> str:
    """Medians, and their ratios to the first."""
    base = statistics.median(next(iter(milliseconds.values())))
    lines = [f"{title}", f"{'':22}{'median ms':>12}{'ratio':>8}"]
    for name, times in milliseconds.items():
        median = statistics.median(times)
        lines.append(f"{name:22}{median:>12.3f}{median / base:>8.2f}")
    return "\n".join(lines)


# --- command ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Read the arguments, run, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clipping", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="steps of each training run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--quick", action="store_true", help="60 steps and one seed, to see that it works")
    parser.add_argument("--cost", action="store_true", help="time one call instead")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each contestant")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for every run in full")
    arguments = parser.parse_args()
    started = time.perf_counter()
    if arguments.cost:
        shapes = gpt_shapes(256, 2) if arguments.quick else gpt_shapes()
        sizes = {
            f"{sum(map(math.prod, shapes)) / 1e6:.0f} million numbers in {len(shapes)} tensors, one thread": shapes
        }
        sizes["what remains for 146 tensors of 10 numbers"] = [(10,)] * 146
        timed = {title: time_all(shapes, arguments.rounds) for title, shapes in sizes.items()}
        print("\n\n".join(cost_table(title, milliseconds) for title, milliseconds in timed.items()))
        record: Any = timed
    else:
        steps, seeds = (60, 1) if arguments.quick else (arguments.steps, arguments.seeds)
        runs = train_all(seeds, steps, arguments.workers)
        print(f"{steps} steps, {seeds} seeds: mean +- standard deviation over the seeds\n")
        print("\n\n".join(table(task, methods) for task, methods in runs.items()))
        record = {t: {m: [asdict(run) for run in own] for m, own in methods.items()} for t, methods in runs.items()}
    print(f"\ntook {time.perf_counter() - started:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
