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

from lightning_gradwatch.reading import answers, heatmaps, lines, run_list, store
from lightning_gradwatch.reading.cache import Cache
from lightning_gradwatch.reading.samples import Samples, latest_course
from lightning_gradwatch.reading.schema import Description, UnreadableError
from lightning_gradwatch.reading.store import MissingError, Store
from tests.tasks import Classifier, deep_net, small_net
from tests.tensorboard.board import read_frame
from tests.tensorboard.logs import train, watch
from tests.tensorboard.record import record


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
    monkeypatch.setattr("lightning_gradwatch.reading.cache.MAX_AGE_SECONDS", -1.0)


def heatmap(found: Store, run: str, version: int | None = None) -> tuple[list[int], Any]:
    catalogue = found.catalogue(run)
    series = answers.series_of(catalogue, *answers.find(catalogue, None, version), "grad_norm")
    header, values = read_frame(heatmaps.heatmap(found, series, (None, None), 1000))
    return header["steps"], values


def test_polling_reads_nothing_again_until_something_is_written(tmp_path: Path) -> None:
    train(tmp_path / "run", Classifier(small_net()), watch(), max_steps=6)
    provider, cache = Provider(tmp_path), Cache()
    first = heatmap(open_store(provider, cache), "run")
    stamp = open_store(provider, cache).catalogue("run").stamp
    assert provider.asked.count("gradwatch/layers/grad_norm_steps") == 1
    for _ in range(5):
        again = heatmap(open_store(provider, cache), "run")
    assert np.array_equal(first[1], again[1])
    assert provider.asked.count("gradwatch/layers/grad_norm_steps") == 1
    assert open_store(provider, cache).catalogue("run").stamp == stamp
    time.sleep(0.01)
    train(tmp_path / "run", Classifier(small_net()), watch(), max_steps=10)
    provider.reload()
    steps, values = heatmap(open_store(provider, cache), "run")
    assert (steps, len(values)) == (list(range(10)), 10)
    assert provider.asked.count("gradwatch/layers/grad_norm_steps") == 2
    assert open_store(provider, cache).catalogue("run").stamp != stamp


def test_many_questions_at_once_list_the_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gradwatch.reading.cache.MAX_AGE_SECONDS", 1000.0)
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
    assert steps == alone_steps == list(range(6))
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
    assert spans == [(0, 3, 0, 5), (1, 4, 6, 11)]
    assert heatmap(found, ".", 0)[1].shape == (6, 3)
    assert heatmap(found, ".")[1].shape == (6, 4)
    with pytest.raises(MissingError, match="`version` must be one of 0, 1, but 2 came"):
        heatmap(found, ".", 2)


def test_an_empty_directory_has_no_runs(tmp_path: Path) -> None:
    assert run_list.runs(open_store(Provider(tmp_path))) == {"schema": 1, "runs": []}


def test_many_layers_are_not_listed_in_full_in_a_sentence(logs: Path) -> None:
    series = open_store(Provider(logs)).catalogue("sick").of("", 0)["grad_norm"]
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


def steady(num_steps: int, *norms: float) -> Any:
    return np.tile(np.array(norms, np.float32), (num_steps, 1))


def frame(found: Store, run: str, **options: Any) -> tuple[dict[str, Any], Any]:
    catalogue = found.catalogue(run)
    series = answers.series_of(catalogue, *answers.find(catalogue, None, None), "grad_norm")
    return read_frame(heatmaps.heatmap(found, series, (None, None), options.pop("columns", 1000), **options))


def test_the_norms_of_every_step_are_one_series_whatever_tags_hold_them(tmp_path: Path) -> None:
    norms = np.geomspace(1e-3, 1e3, 2 * 320, dtype=np.float32).reshape(320, 2)
    with record(tmp_path / "run", ("a", "b")) as run:
        run.write(0, norms[:10])
        run.write(10, norms[10:160], width=50, part=1)
        run.write(91, norms[91:100], around=True)
        run.write(160, norms[160:], width=160, part=2)
        run.write_plain("weight_norm", 9, [1, 2])
    found = open_store(Provider(tmp_path))
    catalogue = found.catalogue("run")
    assert set(catalogue.of("", 0)) == {"grad_norm", "weight_norm"}
    header, values = frame(found, "run")
    fine = list(range(91, 100))
    assert header["steps"] == [*range(10), 10, 60, *fine, 100, 110, 160]
    assert header["last_steps"] == [*range(10), 59, 90, *fine, 109, 159, 319]
    assert header["counts"] == [1] * 10 + [50, 31] + [1] * 9 + [10, 50, 160]
    assert (header["counted"], sum(header["counts"])) == ("steps", 320)
    np.testing.assert_allclose(values[:10], norms[:10], rtol=2e-3)
    np.testing.assert_allclose(values[-1], norms[-1], rtol=1.2e-2)
    means = frame(found, "run", statistic="mean")[1]
    np.testing.assert_allclose(means[-1], np.exp(np.log(norms[160:]).mean(0)), rtol=1.2e-2)
    np.testing.assert_allclose(frame(found, "run", statistic="low")[1][-1], norms[160], rtol=1.2e-2)
    (version,) = answers.run(found, "run")["optimizers"][0]["versions"]
    assert (version["first_step"], version["last_step"], version["num_samples"]) == (0, 319, 320)
    assert version["quantities"] == ["grad_norm", "weight_norm"]
    # what is said of a step is said of the bin that holds it
    series = catalogue.of("", 0)["grad_norm"]
    told = heatmaps.column(found, series, 200)
    assert (told["step"], told["last_step"], told["values"]) == (160, 319, values[-1].tolist())
    layer: dict[str, Any] = answers.layer(found, catalogue, "", 0, "b", 200)
    assert (layer["step"], layer["last_step"], layer["numbers"]["weight_norm"]) == (160, 319, 2)
    np.testing.assert_allclose(layer["grad_norm_range"], [norms[160, 1], means[-1][1], norms[-1, 1]], rtol=1.2e-2)


def test_a_short_run_has_a_sample_for_each_of_its_steps(tmp_path: Path) -> None:
    with record(tmp_path / "run", ("a", "b")) as run:
        run.write(0, steady(28, 1, 2))
    (version,) = answers.run(open_store(Provider(tmp_path)), "run")["optimizers"][0]["versions"]
    assert (version["first_step"], version["last_step"], version["num_samples"]) == (0, 27, 28)


def test_a_run_that_went_on_after_an_upgrade_has_both_its_parts(tmp_path: Path) -> None:
    with record(tmp_path / "run", ("a", "b")) as run:
        for step in (49, 99, 149):
            run.write_plain("grad_norm", step, [step, 1])
        run.write(100, steady(40, 5, 6))
    found = open_store(Provider(tmp_path))
    header, values = frame(found, "run")
    assert header["steps"] == [49, 99, *range(100, 140)]
    assert values[:2].tolist() == [[49, 1], [99, 1]]
    (version,) = answers.run(found, "run")["optimizers"][0]["versions"]
    assert version["num_samples"] == 42
    losses = lines.scalars(found, "run", "gradwatch/steps/loss", (None, None), 1000)
    assert losses["steps"] == list(range(100, 140))


def test_polling_a_long_run_reads_its_last_part_alone(tmp_path: Path) -> None:
    provider, cache = Provider(tmp_path), Cache()
    with record(tmp_path / "run", ("a", "b")) as run:
        for part in range(3):
            run.write(100 * part, steady(100, 1, 2), width=10, part=part)
        run.experiment.flush()
        provider.reload()
        assert len(frame(open_store(provider, cache), "run")[0]["steps"]) == 30
        first = [tag for tag in provider.asked if "grad_norm_steps" in tag]
        assert sorted(first) == [f"gradwatch/layers/grad_norm_steps{part}" for part in ("", "/1", "/2")]
        provider.asked.clear()
        run.write(300, steady(100, 1, 2), width=10, part=2)
    provider.reload()
    assert len(frame(open_store(provider, cache), "run")[0]["steps"]) == 40
    assert [tag for tag in provider.asked if "grad_norm" in tag] == ["gradwatch/layers/grad_norm_steps/2"]


def test_the_numbers_of_the_run_are_scalars_from_every_step(tmp_path: Path) -> None:
    losses = np.array([np.nan, 5, 4, 9, 3, np.nan, 2, 1], np.float32)
    with record(tmp_path / "run", ("a",), lines=("total_norm", "loss", "clip_threshold")) as run:
        lines_of = np.stack([np.arange(8), losses, np.full(8, np.nan)], axis=1)
        run.write(0, steady(4, 1), lines_of[:4])
        run.write(4, steady(4, 1), lines_of[4:], width=2, part=1)
        run.experiment.add_scalar("train_loss", 7.0, 5)
        run.experiment.add_scalar("grad_norm/a", 7.0, 5)
    found = open_store(Provider(tmp_path))
    document = answers.run(found, "run")
    own = ["gradwatch/steps/total_norm", "gradwatch/steps/loss"]
    assert document["scalars"] == sorted([*own, "train_loss", "grad_norm/a"])
    assert document["loss_tag"] == "gradwatch/steps/loss"
    assert document["view"]["lines"] == {"": {"loss": "gradwatch/steps/loss"}}
    assert document["view"]["choices"] == [*own, "train_loss"]
    whole: Any = lines.scalars(found, "run", own[1], (None, None), 1000)
    assert (whole["steps"], whole["last_steps"]) == ([1, 2, 3, 4, 6], [1, 2, 3, 5, 7])
    assert (whole["values"], whole["lows"], whole["highs"]) == ([5, 4, 9, 3, 1.5], [5, 4, 9, 3, 1], [5, 4, 9, 3, 2])
    few: Any = lines.scalars(found, "run", own[1], (None, None), 2)
    assert (few["steps"], few["lows"], few["highs"]) == ([1, 4], [4, 1], [9, 3])
    with pytest.raises(MissingError, match="but 'gradwatch/steps/joy' came"):
        lines.scalars(found, "run", "gradwatch/steps/joy", (None, None), 2)


def test_a_number_of_the_run_spans_all_lists_of_layers_of_its_optimizer(tmp_path: Path) -> None:
    with record(tmp_path / "run", ("a",), optimizer="Adam") as first:
        first.write(0, steady(10, 1), np.full((10, 2), 1.0))
    time.sleep(0.01)
    with record(tmp_path / "run", ("a", "b"), optimizer="Adam", version=1) as second:
        second.write(8, steady(4, 1, 2), np.full((4, 2), 2.0))
    found = open_store(Provider(tmp_path))
    (optimizer,) = answers.run(found, "run")["optimizers"]
    assert [version["layers"] for version in optimizer["versions"]] == [["a"], ["a", "b"]]
    losses = lines.scalars(found, "run", "gradwatch/Adam/steps/loss", (None, None), 100)
    assert losses["values"] == [1] * 8 + [2] * 4


def test_what_is_left_of_damaged_blocks_is_read(tmp_path: Path) -> None:
    with record(tmp_path / "run", ("a", "b")) as run:
        run.write(0, steady(5, 1, 2))
        described = Description("grad_norm_steps", layers=run.layers, lines=run.lines)
        for block in (np.zeros(40, np.uint8), np.zeros(3, np.float32)):
            run.add("gradwatch/layers/grad_norm_steps", described, block, 6)
        run.write(10, steady(5, 1, 2))
    with record(tmp_path / "nothing", ("a", "b")) as run:
        run.add("gradwatch/layers/grad_norm_steps", described, np.zeros(40, np.uint8), 6)
    found = open_store(Provider(tmp_path))
    assert frame(found, "run")[0]["steps"] == [*range(5), *range(10, 15)]
    with pytest.raises(UnreadableError, match="holds no readable sample"):
        frame(found, "nothing")
    (optimizer,) = answers.run(found, "nothing")["optimizers"]
    assert optimizer["versions"] == []
