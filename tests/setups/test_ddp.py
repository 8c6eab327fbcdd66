"""DDP in two real processes, with the numbers of rank zero compared with those of a plain loop in a single one."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_gradwatch import GradWatch, GradWatchWarning
from tests.setups.processes import run_ranks, tell
from tests.tasks import Classifier, Sponge, deep_net, digits, quiet_trainer, read_events, scalars, session_of, small_net

pytestmark = pytest.mark.slow

SCRIPT = "import sys; from tests.setups import test_ddp; test_ddp.train_everything(sys.argv[1])"
NUM_RANKS = 2
BATCH_SIZE = 32
BAD_STEP = 13
BAD_SAMPLE = BAD_STEP * BATCH_SIZE * NUM_RANKS + 1
GATE_STEP = 30
DEATH_STEP = 43

Batch = tuple[Tensor, ...]


class Branched(nn.Module):
    """A branch for each rank, between a common layer and a common head, and a layer that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.common, self.unused, self.head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        self.branches = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])

    def forward(self, x: Tensor, rank: int) -> Tensor:
        output: Tensor = self.head(self.branches[rank](self.common(x).relu()).relu())
        return output


class BranchedClassifier(Classifier):  # type: ignore[misc, valid-type]
    """Each rank uses its own branch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0], self.global_rank), batch[1])


class Gate(nn.Module):
    """Passes its input on as it is, and lets a part of the gradient through."""

    share = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.share + x.detach() * (1 - self.share)


class Gated(Classifier):  # type: ignore[misc, valid-type]
    """The gradient begins to vanish on rank zero alone."""

    def __init__(self) -> None:
        net = deep_net(nn.ReLU, depth=9, he_init=True)
        net.insert(9, Gate())
        super().__init__(net, lr=0.01)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_step == GATE_STEP and self.global_rank == 0:
            self.net[9].share = 1e-4
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss


class Dying(Classifier):  # type: ignore[misc, valid-type]
    """All units of a layer die, on every rank."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_step == DEATH_STEP:
            with torch.no_grad():
                self.net[8].bias.fill_(-1e3)
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss


class SampledBatches(pl.Callback):
    """The batches at which GradWatch has taken a sample."""

    def __init__(self, watch: GradWatch) -> None:
        self.watch = watch
        self.profiles: list[dict[str, float]] = [{}]

    def on_train_batch_end(self, *args: Any) -> None:
        self.profiles.append(self.watch.profile)

    @property
    def numbers(self) -> list[int]:
        return [i for i, (before, now) in enumerate(itertools.pairwise(self.profiles)) if now != before]


class Chatty(pl.Callback):
    """What GradWatch must not be: one collective more in each step."""

    def on_before_optimizer_step(self, *args: Any) -> None:
        torch.distributed.all_reduce(torch.ones(()))


def cards(bad_sample: int | None = None) -> DataLoader[Batch]:
    """The digits, dealt out to the ranks one by one and never shuffled (as Lightning would); one may be a NaN."""
    inputs, targets = cast(TensorDataset, digits().dataset).tensors
    if bad_sample is not None:
        inputs[bad_sample] = math.nan
    dataset = TensorDataset(inputs, targets)
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, NUM_RANKS, int(os.environ["RANK"]), shuffle=False)
    return DataLoader(dataset, BATCH_SIZE, sampler=sampler, drop_last=True)


def train(model: Any, directory: Path, *callbacks: Any, strategy: str = "ddp", **options: Any) -> dict[str, Any]:
    """Train with GradWatch on this rank, and tell what it found."""
    watch = GradWatch(**options.pop("arguments", {}))
    data = options.pop("data", cards())
    sampled = SampledBatches(watch)
    pl.seed_everything(1, verbose=False)
    trainer = quiet_trainer(
        watch, sampled, *callbacks, directory=directory, strategy=strategy, devices=NUM_RANKS, **options
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, data)
    return {
        "alerts": [asdict(alert) for alert in watch.alerts],
        "sampled": sampled.numbers,
        "warnings": [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)],
        "is_on": not session_of(watch).is_off,
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }


def train_and_stop(directory: Path) -> dict[str, Any]:
    stop = EarlyStopping(
        monitor="gradwatch/vanishing", stopping_threshold=-0.1, divergence_threshold=0.5, mode="min", patience=99,
        check_on_train_epoch_end=True,
    )  # fmt: skip
    save = ModelCheckpoint(directory / "saved", monitor="gradwatch/vanishing", mode="max", save_on_train_epoch_end=True)
    options: dict[str, Any] = {"max_epochs": 9, "max_steps": -1, "limit_train_batches": 8, "enable_checkpointing": True}
    told = train(Classifier(deep_net()), directory, stop, save, **options)
    return {**told, "best": float(save.best_model_score or math.nan), "path": save.best_model_path}


def count_collectives(*callbacks: Any, directory: Path) -> dict[str, Any]:
    """How often the ranks talk to each other in a run, below everything that Python can see; and its weights."""
    pl.seed_everything(1, verbose=False)
    trainer = quiet_trainer(
        *callbacks, directory=directory, strategy="ddp", devices=NUM_RANKS, max_steps=12, log_every_n_steps=5
    )
    model = Classifier(deep_net(depth=8))
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        warnings.simplefilter("ignore")
        trainer.fit(model, cards())
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    counts = Counter(event.name for event in profiler.events() or () if event.name.startswith("gloo:"))
    return {"counts": dict(counts), "weights": hashlib.sha256(weights).hexdigest()}


EVERY_STEP: dict[str, Any] = {"max_steps": 30, "log_every_n_steps": 1}
LEFTOVER: dict[str, Any] = {"max_epochs": 2, "max_steps": -1, "limit_train_batches": 7, "log_every_n_steps": 1}

RUNS: dict[str, Callable[[Path], Any]] = {
    "plain": lambda d: train(Classifier(small_net()), d, **EVERY_STEP),
    "unused": lambda d: train(
        BranchedClassifier(Branched()), d, strategy="ddp_find_unused_parameters_true", **EVERY_STEP
    ),
    "accumulating": lambda d: train(Classifier(small_net()), d, accumulate_grad_batches=3, **LEFTOVER),
    "backward": lambda d: train(
        Classifier(small_net()), d, accumulate_grad_batches=3, arguments={"sample_at": "backward"}, **LEFTOVER
    ),
    "bad data": lambda d: train(Classifier(small_net()), d, Sponge(), data=cards(BAD_SAMPLE), max_steps=BAD_STEP + 23),
    "dying": lambda d: train(Dying(deep_net(nn.ReLU, depth=9, he_init=True), lr=0.01), d, max_steps=90),
    "gated": lambda d: train(Gated(), d, max_steps=90),
    "sick": lambda d: train(Classifier(deep_net()), d, max_steps=25, accumulate_grad_batches=2, log_every_n_steps=5),
    "stopping": train_and_stop,
    "without": lambda d: count_collectives(directory=d),
    "with": lambda d: count_collectives(GradWatch(), directory=d),
    "chatty": lambda d: count_collectives(Chatty(), directory=d),
}


def train_everything(directory: str) -> None:
    """What each rank does: one run after the other, as starting the processes costs more than they do."""
    torch.set_num_threads(1)
    tell({name: run(Path(directory) / name) for name, run in RUNS.items()})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[Any]:
    """What each rank has told about each run."""
    return run_ranks(SCRIPT, directory, NUM_RANKS)


def whole_batch_loss(net: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def rank_loss(net: nn.Module, batch: Batch, rank: int, *arguments: Any) -> Tensor:
    inputs, targets = (part[rank::NUM_RANKS] for part in batch)
    return nn.functional.cross_entropy(net(inputs, *arguments), targets)


def mean_loss_of_branches(net: nn.Module, batch: Batch) -> Tensor:
    return torch.stack([rank_loss(net, batch, rank, rank) for rank in range(NUM_RANKS)]).mean()


def windows(num_epochs: int, num_batches: int, size: int) -> Iterator[list[Batch]]:
    """The batches of both ranks together, those of an optimizer step at a time."""
    batches = list(digits(BATCH_SIZE * NUM_RANKS))[:num_batches]
    for _ in range(num_epochs):
        for start in range(0, len(batches), size):
            yield batches[start : start + size]


def norms(net: nn.Module) -> dict[str, float]:
    own = {name: [p.grad for p in m.parameters(recurse=False)] for name, m in net.named_modules()}
    own = {name: [g for g in gradients if g is not None] for name, gradients in own.items()}
    layers = {f"grad_norm/net.{name}": gradients for name, gradients in own.items() if gradients}
    groups = {**layers, "gradwatch/total_norm": [g for gradients in layers.values() for g in gradients]}
    return {tag: torch.nn.utils.get_total_norm(gradients).item() for tag, gradients in groups.items()}


def plain_loop(
    net: nn.Module, steps: Iterator[list[Batch]], loss_of: Any = whole_batch_loss, divisor: int = 1
) -> dict[str, list[float]]:
    """Train in a single process, without Lightning; norms by tag, before each step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found: list[dict[str, float]] = []
    for window in steps:
        optimizer.zero_grad()
        for batch in window:
            (loss_of(net, batch) / divisor).backward()
        found.append(norms(net))
        optimizer.step()
    return {tag: [step[tag] for step in found] for tag in found[0]}


def published(directory: Path, run: str) -> dict[str, dict[int, float]]:
    events = read_events(directory / run)
    tags = [t for t in events.Tags()["scalars"] if t.startswith("grad_norm/") or t == "gradwatch/total_norm"]
    return {tag: scalars(events, tag) for tag in tags}


@pytest.mark.parametrize("run", ["plain", "unused", "accumulating"])
def test_rank_zero_publishes_the_norms_of_a_single_process(directory: Path, ranks: list[Any], run: str) -> None:
    expected = {
        "plain": lambda: plain_loop(small_net(), itertools.islice(windows(2, 28, 1), 30)),
        "unused": lambda: plain_loop(Branched(), itertools.islice(windows(2, 28, 1), 30), mean_loss_of_branches),
        "accumulating": lambda: plain_loop(small_net(), windows(2, 7, 3), divisor=3),
    }[run]()
    found = published(directory, run)
    assert set(found) == set(expected)
    for tag, values in expected.items():
        assert list(found[tag]) == list(range(len(values)))
        assert list(found[tag].values()) == pytest.approx(values, rel=1e-5)


def test_backward_sampling_shows_the_ranks_own_gradient_until_the_ranks_synchronise(
    directory: Path, ranks: list[Any]
) -> None:
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    expected: list[list[float]] = []
    for window in windows(2, 7, 3):
        *unsynchronised, _ = window
        optimizer.zero_grad()
        expected.append([])
        for batch in unsynchronised:
            (rank_loss(net, batch, 0) / 3).backward()
            expected[-1].append(norms(net)["gradwatch/total_norm"])
        optimizer.zero_grad()
        for batch in window:
            (whole_batch_loss(net, batch) / 3).backward()
        expected[-1].append(norms(net)["gradwatch/total_norm"])
        optimizer.step()
    events = read_events(directory / "backward")
    for tag, choose in (("total_norm", lambda values: values[-1]), ("total_norm_min", min), ("total_norm_max", max)):
        found = list(scalars(events, f"gradwatch/{tag}").values())
        assert found == pytest.approx([choose(values) for values in expected], rel=1e-5)


@pytest.mark.parametrize("run", [name for name in RUNS if name not in ("without", "with", "chatty")])
def test_ranks_sample_the_same_steps_and_none_switches_off(ranks: list[Any], run: str) -> None:
    one, other = (told[run] for told in ranks)
    assert one["is_on"]
    assert other["is_on"]
    assert one["sampled"] == other["sampled"]
    assert len(one["sampled"]) >= 6


@pytest.mark.parametrize("run", ["plain", "unused", "accumulating", "backward"])
def test_no_rank_raises_a_false_alarm(ranks: list[Any], run: str) -> None:
    assert [told[run]["alerts"] for told in ranks] == [[], []]
    assert [told[run]["warnings"] for told in ranks] == [[], []]


def test_ranks_agree_on_an_alert_and_rank_zero_alone_speaks_and_writes(directory: Path, ranks: list[Any]) -> None:
    (ours,), (theirs,) = (told["sick"]["alerts"] for told in ranks)
    assert (ours["kind"], ours["step"]) == (theirs["kind"], theirs["step"]) == ("vanishing", 9)
    # gradients at layer outputs are those of the rank's own data, so their decades differ a little
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-2)
    assert [len(told["sick"]["warnings"]) for told in ranks] == [1, 0]
    (event,) = (json.loads(line) for line in (directory / "sick/alerts.jsonl").read_text().splitlines())
    assert (event["event"], event["value"]) == ("opened", ours["value"])
    files = sorted(path.name.split(".")[0] for path in (directory / "sick").rglob("*") if path.is_file())
    assert files == ["alerts", "events", "flight-24", "flight-9", "hparams"]


def test_late_trouble_is_said_within_fifteen_steps_as_on_a_single_device(ranks: list[Any]) -> None:
    for told in ranks:
        (alert,) = told["dying"]["alerts"]
        assert alert["kind"] == "dead"
        assert DEATH_STEP <= alert["step"] <= DEATH_STEP + 15


def test_bad_data_of_one_rank_is_named_on_both_and_blamed_on_nothing_else(directory: Path, ranks: list[Any]) -> None:
    alerts = [alert for told in ranks for alert in told["bad data"]["alerts"]]
    assert [(a["kind"], a["step"], a["until_step"]) for a in alerts] == [("nonfinite", BAD_STEP, BAD_STEP)] * 2
    assert [a["cause"] for a in alerts] == ["unknown", "bad_data"]
    (warning,), silence = (told["bad data"]["warnings"] for told in ranks)
    assert "it comes from another of the 2 ranks, or from the backward pass" in warning
    assert silence == []
    assert scalars(read_events(directory / "bad data"), "gradwatch/nonfinite_steps") == {BAD_STEP + 22: 1.0}


def test_early_stopping_and_checkpoints_decide_alike_on_both_ranks(directory: Path, ranks: list[Any]) -> None:
    one, other = (told["stopping"] for told in ranks)
    for told in (one, other):
        assert (told["epoch"], told["step"]) == (2, 16)  # judged after ten samples, so at the end of the second epoch
        assert told["best"] == told["metrics"]["gradwatch/vanishing"] > 0.5
    assert one["path"] == other["path"]
    assert [str(path) for path in (directory / "stopping/saved").iterdir()] == [one["path"]]


def test_it_adds_no_collective_and_changes_no_weight(ranks: list[Any]) -> None:
    for told in ranks:
        assert told["with"] == told["without"]
        counts = told["without"]["counts"]
        assert told["chatty"]["counts"] == {**counts, "gloo:all_reduce": counts["gloo:all_reduce"] + 12}
