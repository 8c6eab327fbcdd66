"""Reading back, in this process: what is kept, what is left out, and what is bounded."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider

from lightning_gradwatch.reading import answers, store
from lightning_gradwatch.reading.schema import Description
from lightning_gradwatch.reading.store import Cache, MissingError, Samples, Store, latest_course
from tests.tasks import Classifier, deep_net, small_net
from tests.tensorboard.board import read_frame
from tests.tensorboard.logs import train, watch


class Provider(MultiplexerDataProvider):  # type: ignore[misc]
    """TensorBoard's provider over event files, which counts what it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.files = EventMultiplexer(tensor_size_guidance={"gradwatch": 0, "scalars": 0})
        super().__init__(self.files, str(directory))
        self.directory = directory
        self.asked: list[str] = []
        self.reload()

    def reload(self) -> None:
        self.files.AddRunsFromDirectory(str(self.directory))
        self.files.Reload()

    def list_runs(self, *arguments: Any, **options: Any) -> Any:
        self.asked.append("list")
        return super().list_runs(*arguments, **options)

    def read_tensors(self, *arguments: Any, **options: Any) -> Any:
        (tag,) = options["run_tag_filter"].tags
        self.asked.append(tag)
        return super().read_tensors(*arguments, **options)


def open_store(provider: DataProvider, cache: Cache | None = None) -> Store:
    return Store(provider, RequestContext(), "", cache)


@pytest.fixture(autouse=True)
def always_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_AGE_SECONDS", -1.0)


def heatmap(found: Store, run: str, version: int | None = None) -> tuple[list[int], Any]:
    catalogue = found.catalogue(run)
    series = answers.series_of(catalogue, *answers.find(catalogue, None, version), "grad_norm")
    header, values = read_frame(answers.heatmap(found, series, (None, None), 1000))
    return header["steps"], values


def test_polling_reads_nothing_again_until_something_is_written(tmp_path: Path) -> None:
    train(tmp_path / "run", Classifier(small_net()), watch(), max_steps=6)
    provider, cache = Provider(tmp_path), Cache()
    first = heatmap(open_store(provider, cache), "run")
    stamp = open_store(provider, cache).catalogue("run").stamp
    assert provider.asked.count("gradwatch/layers/grad_norm") == 1
    for _ in range(5):
        again = heatmap(open_store(provider, cache), "run")
    assert np.array_equal(first[1], again[1])
    assert provider.asked.count("gradwatch/layers/grad_norm") == 1
    assert open_store(provider, cache).catalogue("run").stamp == stamp
    time.sleep(0.01)
    train(tmp_path / "run", Classifier(small_net()), watch(), max_steps=10)
    provider.reload()
    steps, values = heatmap(open_store(provider, cache), "run")
    assert (steps, len(values)) == ([1, 3, 5, 7, 9], 5)
    assert provider.asked.count("gradwatch/layers/grad_norm") == 2
    assert open_store(provider, cache).catalogue("run").stamp != stamp


def test_many_questions_at_once_list_the_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_AGE_SECONDS", 1000.0)
    train(tmp_path / "run", Classifier(small_net()), watch(), max_steps=4)
    provider, cache = Provider(tmp_path), Cache()
    for _ in range(3):
        heatmap(open_store(provider, cache), "run")
    assert provider.asked.count("list") == 1


def samples(num_bytes: int) -> Samples:
    return Samples(np.zeros(0, np.int64), np.zeros(num_bytes, np.uint8))


def test_the_cache_is_bounded_and_forgets_what_was_not_used_for_the_longest_time() -> None:
    cache = Cache(max_bytes=100)
    for key in "abc":
        cache.put(key, 1, samples(30))
    assert cache.get("a", 1) is not None
    cache.put("d", 1, samples(30))
    assert [cache.get(key, 1) is not None for key in "abcd"] == [True, False, True, True]
    cache.put("a", 2, samples(10))
    assert (cache.get("a", 1), cache.num_bytes) == (None, 70)
    cache.put("huge", 1, samples(1000))
    assert (cache.get("huge", 1), cache.num_bytes) == (None, 0)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_the_latest_course_leaves_out_what_was_written_anew(steps: list[int]) -> None:
    kept = latest_course(np.array(steps)).tolist()
    assert kept == [all(step < later for later in steps[i + 1 :]) for i, step in enumerate(steps)]


def test_a_run_that_started_anew_in_its_directory_shows_the_new_course(tmp_path: Path) -> None:
    train(tmp_path / "run", Classifier(small_net(), lr=0.5), watch(), max_steps=12)
    train(tmp_path / "run", Classifier(small_net(), lr=0.01), watch(), max_steps=6)
    train(tmp_path / "alone", Classifier(small_net(), lr=0.01), watch(), max_steps=6)
    found = open_store(Provider(tmp_path))
    (steps, values), (alone_steps, alone_values) = heatmap(found, "run"), heatmap(found, "alone")
    assert steps == alone_steps == [1, 3, 5]
    assert np.array_equal(values, alone_values)


def test_a_run_whose_layers_changed_has_a_version_for_each_list_of_them(tmp_path: Path) -> None:
    class Thawing(Classifier):  # type: ignore[misc, valid-type]
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 6:
                self.optimizers().add_param_group({"params": self.late.parameters()})

        def __init__(self) -> None:
            super().__init__(small_net())
            self.late = deep_net(depth=1)
            self.make_optimizer = lambda: __import__("torch").optim.SGD(self.net.parameters(), lr=0.1)

    train(tmp_path, Thawing(), watch(), max_steps=12)
    found = open_store(Provider(tmp_path))
    (optimizer,) = answers.run(found, ".")["optimizers"]
    spans = [(v["version"], len(v["layers"]), v["first_step"], v["last_step"]) for v in optimizer["versions"]]
    assert spans == [(0, 3, 1, 5), (1, 4, 7, 11)]
    assert heatmap(found, ".", 0)[1].shape == (3, 3)
    assert heatmap(found, ".")[1].shape == (3, 4)
    with pytest.raises(MissingError, match="`version` must be one of 0, 1, but 2 came"):
        heatmap(found, ".", 2)


def test_an_empty_directory_has_no_runs(tmp_path: Path) -> None:
    assert answers.runs(open_store(Provider(tmp_path))) == {"schema": 1, "runs": []}


def test_many_layers_are_not_listed_in_full_in_a_sentence(logs: Path) -> None:
    (series,) = [s for s in open_store(Provider(logs)).catalogue("sick").series if s.tag.endswith("/grad_norm")]
    with pytest.raises(MissingError) as error:
        answers.row_of(series, "x")
    assert "and" not in str(error.value)
    wide = store.Series("run", "tag", Description("grad_norm", layers=tuple("abcdefghijklmnopqrstuvwxyz")), 0, 0)
    with pytest.raises(MissingError, match="'t' and 6 more, but 'x1' came"):
        answers.row_of(wide, "x1")


def test_a_series_that_the_server_takes_in_after_the_newest_one_changes_the_stamp() -> None:
    def stamp(*last_steps: int) -> str:
        about = [SimpleNamespace(plugin_content=b"", max_step=step, max_wall_time=9.0) for step in last_steps]
        known = {str(place): each for place, each in enumerate(about)}
        return store._catalogue("run", known, {}, None).stamp

    assert len({stamp(300, 200, 200), stamp(300, 300, 200), stamp(300, 300, 300)}) == 3
