"""The record in memory: the same as in the files, also without any, within its bytes."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.cli.logs import Logs
from lightning_gradwatch.core.records import NUM_BINS, Layer, Observation
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.outputs.memory import MAX_BYTES, MERGED_AT_ONCE, MemoryRecord
from lightning_gradwatch.outputs.recorder import RunRecorder
from lightning_gradwatch.reading import answers
from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.heatmaps import heatmap
from lightning_gradwatch.reading.samples import Samples
from lightning_gradwatch.reading.store import Store
from tests.tasks import Classifier, deep_net, fit

ALL = (None, None)


def store_of(watch: GradWatch) -> tuple[Store, str]:
    """What a GradWatch remembers, and the name of the run."""
    memory = watch._state.memory
    return Store(memory.provider(), None), memory.run


def train(watch: GradWatch, **options: Any) -> None:
    """Train a network that is sick."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        fit(watch, Classifier(deep_net(nn.Sigmoid, 8)), **{"max_steps": 40, **options})


def test_memory_tells_what_the_files_tell(tmp_path: Path) -> None:
    watch = GradWatch()
    train(watch, logger=TensorBoardLogger(tmp_path, "", "run"))
    logs = Logs(tmp_path)
    whole = logs.open(logs.reload()[0])
    store, name = store_of(watch)
    document = answers.run(store, name)
    for field in ("status", "headline", "num_open", "optimizers", "num_dropped"):
        assert document[field] == whole.document[field]
    assert store.catalogue(name).document.alerts == list(whole.run.alerts)  # type: ignore[union-attr]
    kept = store.catalogue(name).of("", 0)
    series = whole.catalogue.of("", 0)
    assert len(series) > 5
    assert set(kept) == set(series)
    for quantity in set(series) - {"log10_histogram"}:
        expected = heatmap(whole.store, series[quantity], ALL, 1000)
        assert heatmap(store, kept[quantity], ALL, 1000) == expected
    expected = answers.distribution(whole.store, series["log10_histogram"], "net.0", ALL, 1000)
    assert answers.distribution(store, kept["log10_histogram"], "net.0", ALL, 1000) == expected
    losses = [one.scalars(run, "gradwatch/steps/loss") for one, run in ((store, name), (whole.store, whole.run.name))]
    assert len(losses[0]) == 40
    assert losses[0].values.tolist() == losses[1].values.tolist()


@pytest.mark.parametrize("record", [None, False])
def test_without_a_logger_all_is_remembered_and_nothing_written(
    record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watch = GradWatch(record=record)
    train(watch, default_root_dir=tmp_path)
    store, name = store_of(watch)
    assert answers.run(store, name)["headline"].startswith("Gradients vanish with depth since step 9")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("record", [None, "elsewhere"])
def test_a_place_that_cannot_be_written_leaves_the_record_in_memory(record: str | None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    watch = GradWatch(record=None if record is None else tmp_path / "file" / record)
    train(watch, default_root_dir=tmp_path / "file")
    store, name = store_of(watch)
    assert answers.run(store, name)["optimizers"][0]["versions"][0]["num_samples"] == 40


def test_copies_and_pickles_take_it_along() -> None:
    watch = GradWatch()
    train(watch, max_steps=12)
    for twin in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        store, name = store_of(twin)
        assert answers.run(store, name)["num_open"] == 1


def test_a_new_fit_begins_a_new_record() -> None:
    watch = GradWatch()
    train(watch, max_steps=12)
    fit(watch, Classifier(deep_net(nn.ReLU, 4, he_init=True)), max_steps=3)
    store, name = store_of(watch)
    assert answers.run(store, name)["status"] == "healthy"
    assert answers.run(store, name)["optimizers"][0]["versions"][0]["num_samples"] == 3


def observation(first: int, norms: torch.Tensor, layers: tuple[Layer, ...]) -> Observation:
    steps, unknown = tuple(range(first, first + len(norms))), (None,) * len(norms)
    return Observation(steps[-1], layers, steps, norms, unknown, unknown, 0.1, frozenset(), None, None, None, False)


class Long:
    """A long run of a model of so many layers: its norms are noise, but for one spike."""

    def __init__(self, num_layers: int, max_bytes: int = MAX_BYTES) -> None:
        self.memory, self.recorder = MemoryRecord(max_bytes), RunRecorder()
        self.layers = tuple(Layer(f"net.{i}", (f"net.{i}.weight",)) for i in range(num_layers))
        self.random = torch.Generator().manual_seed(0)
        self.largest = 0

    def go_on(self, start: int, end: int, spike: int | None = None) -> None:
        """Steps with a sample every tenth, and a histogram every hundredth."""
        for first in range(start, end, 10):
            norms = torch.rand(10, 1 + len(self.layers), generator=self.random) + 0.5
            if spike is not None and first <= spike < first + 10:
                norms[spike - first] = 1e9
            numbers = torch.rand(len(self.layers), generator=self.random)
            counts = torch.ones(len(self.layers), NUM_BINS + 2) if first % 100 == 0 else None
            snapshot = Snapshot(first, "", self.layers, numbers, numbers, histogram=counts)
            self.memory.add(self.recorder.take([observation(first, norms, self.layers)], [snapshot]))
            self.largest = max(self.largest, self.memory.num_bytes)

    def samples(self, quantity: str) -> Samples:
        store = Store(self.memory.provider(), None)
        return store.samples(store.catalogue(self.memory.run).of("", 0)[quantity])


def test_a_long_run_is_thinned_evenly_and_its_newest_steps_stay() -> None:
    run = Long(4, max_bytes=50_000)
    run.go_on(0, 20_000, spike=777)
    assert 20_000 < run.largest <= 50_000
    bins = run.samples("grad_norm").bins
    assert bins is not None
    assert bins.count.sum() >= 20_000 - 170  # the rest waits
    assert bins.high.max() == pytest.approx(1e9, rel=0.02)  # a spike of one step is never lost
    assert bins.first[0] == 0
    assert (bins.first[1:] == bins.last[:-1] + 1).all()
    widths = (bins.last - bins.first + 1)[:-20]
    assert widths.max() < 40 * np.median(widths)
    steps = run.samples("weight_norm").steps
    assert 0 < steps[0] + 1 < 2000
    assert steps[-1] > 19_000
    assert np.diff(steps).max() < 4000


@pytest.mark.parametrize("num_layers", [1, 3_000])
def test_no_model_is_too_large(num_layers: int) -> None:
    run = Long(num_layers, MAX_BYTES if num_layers > 1 else 500)
    run.go_on(0, 1_000)
    assert run.memory.num_bytes <= run.largest <= (MAX_BYTES if num_layers > 1 else 500)
    held = sum(s.num_bytes for s in run.memory._series.values())
    assert run.memory.num_bytes == held > 0
    assert run.samples("grad_norm").last_steps[-1] == 999


def test_a_step_that_comes_again_counts_once_after_thinning() -> None:
    run = Long(2, max_bytes=12_000)
    run.go_on(0, 100)
    run.recorder = RunRecorder()  # resumed from an earlier checkpoint
    run.go_on(50, 1000)
    bins = run.samples("grad_norm").bins
    assert bins is not None
    assert (bins.first[1:] > bins.last[:-1]).all()
    assert bins.count.sum() == 1000


def test_what_is_read_does_not_change_under_its_reader() -> None:
    run = Long(2)
    run.go_on(0, 50)
    provider = run.memory.provider()
    run.go_on(50, 100)
    store = Store(provider, None)
    assert store.catalogue("").last_step == 49
    assert isinstance(store.samples(store.catalogue("").of("", 0)["grad_norm"]).bins, Bins)


def test_room_is_made_in_small_portions() -> None:
    """Training waits for a few blocks to be merged, never for all that there are."""
    run, portions = Long(400), list[int]()

    def norms_in(samples: list[Any]) -> int:
        return sum(Bins.number_in(sample.values.tobytes()) * len(run.layers) for sample in samples)

    held: list[Any] = []
    for start in range(0, 12_000, 10):
        run.go_on(start, start + 10)
        (series,) = (series for series in run.memory._series.values() if series.is_of_steps)
        known = set(map(id, series.samples))
        portions.append(norms_in([sample for sample in held if id(sample) not in known]))
        held = list(series.samples)
    assert sum(map(bool, portions)) > 10
    assert max(portions) <= 4 * MERGED_AT_ONCE < norms_in(held)
    assert run.largest <= MAX_BYTES
