"""TensorBoard starts, whatever happens; both of its loaders keep enough, follow a run, and survive damaged files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.reading.schema import Description, encode_alerts
from lightning_gradwatch.tensorboard.loader import SAMPLES, GradWatchLoader
from tests.tasks import Classifier, small_net
from tests.tensorboard.board import Board
from tests.tensorboard.logs import train, watch
from tests.tensorboard.record import record

pytestmark = pytest.mark.slow

LOADERS = {"Rust loader": "--load_fast=true", "Python loader": "--load_fast=false"}
both_loaders = pytest.mark.parametrize("loader", list(LOADERS.values()), ids=list(LOADERS))
NORMS = Description("grad_norm", layers=("a", "b"))
HEALTHY = encode_alerts([], 0)


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which neither torch nor Lightning can be imported."""
    for name in ("torch", "lightning", "pytorch_lightning", "lightning_utilities"):
        (tmp_path / "poison" / name).mkdir(parents=True)
        (tmp_path / "poison" / name / "__init__.py").write_text(f"raise ImportError('{name} must stay out')")
    return {"PYTHONPATH": ":".join([str(tmp_path / "poison"), *sys.path])}


@both_loaders
def test_tensorboard_starts_and_shows_the_tab_where_torch_cannot_be_imported(
    stored: Path, no_torch: dict[str, str], loader: str
) -> None:
    poisoned = [sys.executable, "-c", "import torch"]
    assert "must stay out" in subprocess.run(poisoned, capture_output=True, text=True, env=no_torch).stderr
    with Board(stored, loader, environment=no_torch) as board:
        board.wait_for(".", 23)
        assert board.ask("data/plugins_listing").json["gradwatch"]["enabled"]
        assert board.get("heatmap", run=".", quantity="grad_norm").frame[1].shape == (4, 7)


def test_a_tab_that_cannot_be_imported_leaves_tensorboard_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "lightning_gradwatch.tensorboard.plugin", None)
    assert GradWatchLoader().load(TBContext(data_provider=object())) is None
    assert "The GradWatch tab cannot be shown" in caplog.text


def test_a_tensorboard_without_a_data_provider_gets_no_tab() -> None:
    assert GradWatchLoader().load(TBContext()) is None


@pytest.mark.parametrize(
    ("given", "fixed"),
    [
        ({}, {"gradwatch": SAMPLES}),
        (None, {"gradwatch": SAMPLES}),
        ({"gradwatch": 7, "images": 3}, {"gradwatch": 7, "images": 3}),
        ({"scalars": 5}, {"gradwatch": SAMPLES, "scalars": 5}),
    ],
)
def test_the_users_number_of_samples_wins(given: Any, fixed: Any) -> None:
    flags = Namespace(samples_per_plugin=given)
    GradWatchLoader().fix_flags(flags)
    assert flags.samples_per_plugin == fixed


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More points than either loader would keep by itself."""
    directory = tmp_path_factory.mktemp("long")
    train(directory, Classifier(small_net()), watch(), max_steps=130, log_every_n_steps=1)
    return directory


@both_loaders
def test_no_sample_of_a_long_run_is_left_out_unless_the_user_asks_for_it(long_run: Path, loader: str) -> None:
    with Board(long_run, loader) as board:
        board.wait_for(".", 129)
        assert board.get("heatmap", run=".", quantity="grad_norm").frame[0]["steps"] == list(range(130))
    with Board(long_run, loader, "--samples_per_plugin=gradwatch=5") as board:  # events, of several steps each
        board.wait_for(".", 129)
        steps = board.get("heatmap", run=".", quantity="grad_norm").frame[0]["steps"]
        assert len(steps) < 65
        assert steps[-1] == 129


@both_loaders
def test_what_schema_1_wrote_is_still_read(stored: Path, loader: str) -> None:
    """The file was written when this schema was new, and is never written again."""
    with Board(stored, loader) as board:
        board.wait_for(".", 23)
        (row,) = board.get("runs").json["runs"]
        assert (row["status"], row["num_open"]) == ("sick", 1)
        assert row["headline"] == "Gradients vanish with depth since step 9, in net.1.rnn."
        answer = board.get("run", run=".").json
        assert answer["alerts"][0]["cause"] == "cliff"
        (version,) = answer["optimizers"][0]["versions"]
        assert version["layers"] == ["net.1.rnn", *(f"net.2.{i}" for i in range(2, 14, 2))]
        assert version["sequences"] == ["net.1.rnn"]
        assert len(version["quantities"]) == 9
        header, norms = board.get("heatmap", run=".", quantity="grad_norm").frame
        assert header["steps"] == [5, 11, 17, 23]
        expected = [2.4753e-05, 1.9342e-05, 1.4792e-04, 1.0408e-03, 8.1848e-03, 5.3435e-02, 0.40687]
        assert norms[-1] == pytest.approx(expected, rel=1e-4)
        header, shares = board.get("distribution", run=".", layer="net.2.12").frame
        assert (header["lowest"], shares[0].tolist()) == (-3.75, [0, 10, 60, 52, 17, 99, 141, 141, 84, 41, 10])
        sequence = board.get("sequence", run=".", layer="net.1.rnn", step=23).json
        assert (sequence["horizon"], sequence["norms"][-1]) == (8, pytest.approx(5.1003e-07, rel=1e-4))


@both_loaders
def test_norms_of_every_step_come_through_also_where_a_run_was_resumed(tmp_path: Path, loader: str) -> None:
    def steady(num_steps: int, norm: float) -> Any:
        return np.full((num_steps, 2), norm, np.float32)

    with record(tmp_path, ("a", "b")) as run:
        run.write_plain("grad_norm", 0, [7, 7])
        run.write(1, steady(39, 1.0))
        run.write(40, steady(160, 1.0), width=40, part=1)
    time.sleep(1)  # the names of event files tell seconds
    with record(tmp_path, ("a", "b"), lines=("total_norm", "loss", "clip_threshold")) as run:
        # a part of its own: the Rust loader drops events of a tag in which an event of an earlier step comes later
        run.write(100, steady(60, 100.0), width=20, part=100)
        run.write(130, steady(5, 1000.0), around=True)
    with Board(tmp_path, loader, "--reload_multifile=true") as board:
        board.wait_for(".", 199)
        header, values = board.wait(lambda: _whole(board, 159))
        assert header["steps"] == [*range(40), 40, 80, 100, 120, *range(130, 135), 135, 140]
        assert header["last_steps"] == [*range(40), 79, 99, 119, 129, *range(130, 135), 139, 159]
        assert sum(header["counts"]) == 160
        expected = [7.0, *[1] * 41, 100, 100, *[1000] * 5, 100, 100]
        np.testing.assert_allclose(values, np.repeat(expected, 2).reshape(-1, 2), rtol=1.2e-2)
        loss = board.get("scalars", run=".", tag="gradwatch/steps/loss", points=100).json
        assert (loss["steps"][:2], loss["highs"][-1]) == ([1, 2], 159)


def _whole(board: Board, last: int) -> Any:
    """The heatmap, once it goes so far and no farther."""
    header, values = board.get("heatmap", run=".", quantity="grad_norm").frame
    return (header, values) if header["last_steps"][-1] == last else None


def test_the_stored_run_stays_small(stored: Path) -> None:
    assert sum(path.stat().st_size for path in stored.iterdir()) < 20_000


@both_loaders
def test_a_run_is_followed_while_it_grows(tmp_path: Path, loader: str) -> None:
    log = Log(tmp_path / "run")
    log.add("gradwatch/alert_document", Description("alerts").encode(), HEALTHY, 0)
    log.add("gradwatch/layers/grad_norm", NORMS.encode(), floats([1, 2]), 1)
    with Board(tmp_path, loader) as board:
        board.wait_for("run", 1)
        before = board.get("runs").json["runs"][0]
        log.add("gradwatch/layers/grad_norm", b"", floats([3, 4]), 2)
        alert = Alert("dead", "alert", 2, None, "a", 1.0, 0.5, "Dead.")
        log.add("gradwatch/alert_document", b"", encode_alerts([alert], 1), 2)
        board.wait_for("run", 2)
        board.wait(lambda: board.get("runs").json["runs"][0]["status"] == "sick")
        assert (before["status"], before["stamp"] == board.get("runs").json["runs"][0]["stamp"]) == ("healthy", False)
        header, values = board.get("heatmap", run="run", quantity="grad_norm").frame
        assert (header["steps"], values.tolist()) == ([1, 2], [[1, 2], [3, 4]])
    log.close()


@both_loaders
@pytest.mark.parametrize("prefix", ["/some/where"])
def test_the_endpoints_stand_behind_a_path_prefix(stored: Path, loader: str, prefix: str) -> None:
    with Board(stored, loader, f"--path_prefix={prefix}") as board:
        path = f"{prefix.strip('/')}/data/plugin/gradwatch"
        board.wait(lambda: board.ask(f"{path}/runs").json["runs"])
        assert board.ask(f"{path}/static/index.js").status == 200
        assert board.ask(f"{path}/static/../plugin.py").status == 404
        assert board.ask("data/plugin/gradwatch/runs").status == 404


def floats(numbers: list[float]) -> Any:
    return np.array(numbers, np.float32)


@both_loaders
def test_the_charts_are_laid_out_and_a_layout_of_the_users_own_takes_their_place(tmp_path: Path, loader: str) -> None:
    train(tmp_path, Classifier(small_net()), watch(), max_steps=4)

    def titles(board: Board) -> list[str]:
        layout = board.ask("data/plugin/custom_scalars/layout").json
        return [category["title"] for category in layout.get("category", [])]

    with Board(tmp_path, loader) as board:
        assert board.wait(lambda: titles(board)) == ["GradWatch"]
    with SummaryWriter(tmp_path) as experiment:
        experiment.add_custom_scalars({"mine": {"loss": ["Multiline", ["loss"]]}})
    with Board(tmp_path, loader) as board:
        board.wait(lambda: titles(board) == ["mine"])


class Log:
    """An event file into which anything may be written."""

    def __init__(self, directory: Path) -> None:
        self._writer = SummaryWriter(directory)
        self._described: set[str] = set()

    def add(self, tag: str, content: bytes, values: Any, step: int, shape: list[int] | None = None) -> None:
        """Write one value; with ``shape`` it claims one that it has not."""
        summary = Summary()
        value = summary.value.add(tag=tag)
        if tag not in self._described:
            self._described.add(tag)
            value.metadata.data_class = DATA_CLASS_TENSOR
            value.metadata.plugin_data.plugin_name = "gradwatch"
            value.metadata.plugin_data.content = content
        value.tensor.CopyFrom(make_tensor_proto(values))
        if shape is not None:
            value.tensor.tensor_shape.ClearField("dim")
            for size in shape:
                value.tensor.tensor_shape.dim.add(size=size)
        self._writer._get_file_writer().add_summary(summary, step)
        self._writer.flush()

    def add_scalar(self, step: int) -> None:
        self._writer.add_scalar("loss", 1.0, step)

    def close(self) -> None:
        self._writer.close()


NEWER = {"schema": 3, "quantity": "grad_norm", "optimizer": "", "version": 0, "layers": ["a", "b"]}


def write_damaged(directory: Path) -> None:
    """One run for each kind of damage; the last step of every one is 5."""
    document, norms = "gradwatch/alert_document", "gradwatch/layers/grad_norm"
    described, good = Description("alerts").encode(), floats([1, 2])

    def log(run: str, alerts: Any = HEALTHY, content: bytes = described) -> Log:
        log = Log(directory / run)
        if alerts is not None:
            log.add(document, content, alerts, 0)
        return log

    runs = {
        "newer": log("newer", json.dumps({"schema": 2, "anything": "else"}), json.dumps(NEWER).encode()),
        "newer series": log("newer series"),
        "no document": log("no document", None),
        "torn document": log("torn document", HEALTHY[:-9]),
        "no text": log("no text", floats([1, 2, 3])),
        "empty text": log("empty text", ""),
        "no description": log("no description"),
        "strange samples": log("strange samples"),
        "only strange samples": log("only strange samples"),
        "impossible tensor": log("impossible tensor"),
        "text for numbers": log("text for numbers"),
        "no layers": log("no layers"),
        "half a file": log("half a file"),
        "scalars": log("scalars", None),
    }
    for run, file in runs.items():
        if run == "newer":
            file.add(norms, json.dumps(NEWER).encode(), good, 1)
        elif run == "newer series":
            file.add(norms, json.dumps(NEWER).encode(), good, 1)
            file.add("gradwatch/layers/weight_norm", Description("weight_norm", layers=("a", "b")).encode(), good, 1)
        elif run == "no description":
            file.add(norms, b"{", good, 1)
        elif run == "only strange samples":
            file.add(norms, NORMS.encode(), floats([1, 2, 3]), 1)
        elif run == "impossible tensor":
            file.add(norms, NORMS.encode(), good, 1, shape=[7, 3])
        elif run == "text for numbers":
            file.add(norms, NORMS.encode(), "words", 1)
        elif run == "no layers":
            file.add(norms, Description("grad_norm").encode(), np.zeros(0, np.float32), 1)
        elif run != "scalars":
            file.add(norms, NORMS.encode(), good, 1)
        if run == "strange samples":
            for step, values in ((2, floats([1])), (3, np.array([1.0, 2.0])), (4, floats([3, 4]))):
                file.add(norms, b"", values, step)
        file.add_scalar(5)
        file.close()
    (path,) = (directory / "half a file").iterdir()
    with path.open("ab") as tail:
        tail.write(path.read_bytes()[:40])


@pytest.fixture(scope="module", params=list(LOADERS.values()), ids=list(LOADERS))
def damaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    directory = tmp_path_factory.mktemp("damaged")
    write_damaged(directory)
    with Board(directory, request.param) as board:
        for run in directory.iterdir():
            board.wait_for(run.name, 5)
        yield board


def test_damage_has_a_name_and_is_never_called_healthy(damaged: Board) -> None:
    runs = {run["run"]: (run["status"], run["headline"]) for run in damaged.get("runs").json["runs"]}
    healthy = {"strange samples", "only strange samples", "impossible tensor", "text for numbers", "no layers"}
    assert {run for run, (status, _) in runs.items() if status == "healthy"} == healthy | {"half a file"}
    assert runs.pop("scalars")[0] == "not_watched"
    headlines = {run: headline for run, (status, headline) in runs.items() if status == "unreadable"}
    assert "newer GradWatch (schema 2; this one reads up to 1): upgrade" in headlines.pop("newer")
    assert "newer GradWatch" in headlines.pop("newer series")
    assert headlines.pop("no document") == "The document of this run's alerts is missing."
    for run in ("torn document", "no text", "empty text", "no description"):
        assert "is damaged" in headlines.pop(run)
    assert headlines == {}


def test_what_is_left_of_a_damaged_run_can_be_seen(damaged: Board) -> None:
    for run in ("no document", "torn document", "no text", "empty text", "half a file"):
        assert damaged.get("heatmap", run=run, quantity="grad_norm").frame[1].tolist() == [[1, 2]]
    header, values = damaged.get("heatmap", run="strange samples", quantity="grad_norm").frame
    assert (header["steps"], values.tolist()) == ([1, 4], [[1, 2], [3, 4]])
    assert damaged.get("heatmap", run="newer series", quantity="weight_norm").frame[1].tolist() == [[1, 2]]
    assert damaged.get("heatmap", run="newer series", quantity="grad_norm").status == 404
    for run in ("only strange samples", "impossible tensor", "text for numbers"):
        reply = damaged.get("heatmap", run=run, quantity="grad_norm")
        assert (reply.status, f"run '{run}'" in reply.json["error"]) == (422, True)
        assert damaged.get("run", run=run).json["optimizers"] == [{"name": "", "versions": []}]


def test_no_question_about_a_damaged_run_is_the_servers_fault(damaged: Board) -> None:
    everything = {"quantity": "grad_norm", "layer": "a", "step": 1, "tag": "loss"}
    for row in damaged.get("runs").json["runs"]:
        for path in ("run", "heatmap", "column", "distribution", "sequence", "layer", "scalars"):
            reply = damaged.get(path, run=row["run"], **everything)
            assert reply.status in (200, 404, 422), (row["run"], path, reply)
            assert reply.status == 200 or len(reply.json["error"].split()) > 5


def test_a_directory_without_runs_has_an_inactive_tab(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(stored, tmp_path / "elsewhere")
    with Board(tmp_path / "empty") as board:
        assert not board.ask("data/plugins_listing").json["gradwatch"]["enabled"]
        assert board.get("runs").json == {"schema": 1, "runs": []}
