"""The tab's endpoints in a real TensorBoard, with the loader written in Rust and the one written in Python."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.util.tensor_util import make_ndarray

from lightning_gradwatch.core.quantities import BY_NAME
from lightning_gradwatch.core.quantities.several import NORM_RANGE, SEVERAL
from lightning_gradwatch.reading import answers, tables
from lightning_gradwatch.reading.status import SICKEST_FIRST
from lightning_gradwatch.tensorboard import plugin
from tests.builders import as_logged
from tests.cli.command import alert
from tests.tasks import norms_by_step, read_events, scalars
from tests.tensorboard.board import Board
from tests.tensorboard.logs import SICK_LAYERS

LAST_STEPS = {"sick": 39, "healthy": 39, "recovered": 39, "recurrent": 19, "gan": 9, "clipped": 9, "group/plain": 5}
STATUSES = {
    "sick": "sick",
    "recurrent": "notice",
    "recovered": "recovered",
    "healthy": "healthy",
    "gan": "healthy",
    "clipped": "healthy",
    "group/plain": "not_watched",
}


@pytest.fixture(scope="module", params=["true", "false"], ids=["Rust loader", "Python loader"])
def board(request: pytest.FixtureRequest, logs: Path) -> Iterator[Board]:
    with Board(logs, f"--load_fast={request.param}") as board:
        for run, step in LAST_STEPS.items():
            board.wait_for(run, step)
        yield board


def written(logs: Path, run: str, quantity: str) -> dict[int, Any]:
    """What TensorBoard's own reader finds in the file."""
    events = read_events(logs / run)
    if quantity == "grad_norm":
        return {step: np.array(norms, np.float32) for step, norms in norms_by_step(events).items()}
    return {e.step: make_ndarray(e.tensor_proto) for e in events.Tensors(f"gradwatch/layers/{quantity}")}


def test_the_tab_is_listed_and_shown_once_there_is_data(board: Board) -> None:
    listing = board.ask("data/plugins_listing").json["gradwatch"]
    assert (listing["enabled"], listing["tab_name"]) == (True, "GradWatch")
    assert listing["loading_mechanism"]["module_path"].endswith("/data/plugin/gradwatch/static/index.js")


def test_labels_and_titles_come_from_the_tables(board: Board) -> None:
    assert board.get("tables").json == json.loads(json.dumps(tables.encode()))


def test_runs_come_the_sickest_first_and_a_run_that_is_not_watched_is_not_called_healthy(board: Board) -> None:
    answer = board.get("runs").json
    assert answer["schema"] == 1
    runs = answer["runs"]
    assert {run["run"]: run["status"] for run in runs} == STATUSES
    assert {run["run"]: run["last_step"] for run in runs} == LAST_STEPS
    ranks = [SICKEST_FIRST.index(run["status"]) for run in runs]
    assert ranks == sorted(ranks)
    sick = runs[0]
    assert (sick["run"], sick["num_open"]) == ("sick", 1)
    assert sick["headline"] == "Gradients vanish with depth since step 9, in net.0."
    assert len({run["stamp"] for run in runs}) > 1


def test_a_run_tells_its_layers_alerts_and_scalars(board: Board) -> None:
    answer = board.get("run", run="sick").json
    (alert,) = answer["alerts"]
    assert (alert["kind"], alert["level"], alert["step"], alert["until_step"]) == ("vanishing", "alert", 9, None)
    assert alert["remedies"]
    assert alert["message"].startswith("Gradients vanish")
    (optimizer,) = answer["optimizers"]
    (version,) = optimizer["versions"]
    assert (optimizer["name"], version["version"], version["layers"]) == ("", 0, SICK_LAYERS)
    assert (version["first_step"], version["last_step"], version["num_samples"]) == (0, 39, 40)
    others = {"clipped_fraction", "memory_horizon", NORM_RANGE.name}
    assert set(version["quantities"]) == {*BY_NAME, *SEVERAL} - others
    assert {"loss", "gradwatch/total_norm", "gradwatch/steps/loss"} <= set(answer["scalars"])
    assert answer["loss_tag"] == "gradwatch/steps/loss"
    assert {answer[name] for name in ("run", "status", "num_dropped")} == {"sick", 0}


def test_alerts_are_ranked_by_the_rule_of_the_command(board: Board) -> None:
    ended = alert(1, 2), alert(3, 9), alert(7, level="notice"), alert(8), alert(4)
    found = answers.ranked([as_logged(one) for one in ended])
    assert [one["step"] for one in found] == [1, 3, 7, 8, 4]
    assert [one["rank"] for one in found] == [4, 3, 2, 1, 0]
    assert [one["rank"] for one in board.get("run", run="sick").json["alerts"]] == [0]


_EVERY_STEP = ("loss", "total_norm", "clip_threshold", "clip_coefficient")


def test_a_run_tells_the_tags_of_its_lines(board: Board) -> None:
    view = board.get("run", run="clipped").json["view"]
    every_step = {name: f"gradwatch/steps/{name}" for name in _EVERY_STEP}
    assert view["lines"] == {"": {**every_step, "clipped_percent": "gradwatch/clipped_percent"}}
    assert {"loss", "gradwatch/total_norm", *view["lines"][""].values()} <= set(view["choices"])
    assert not [tag for tag in view["choices"] if tag.startswith("grad_norm/")]
    assert board.get("run", run="sick").json["view"]["lines"] == {"": {"loss": "gradwatch/steps/loss"}}
    gan = board.get("run", run="gan").json
    assert gan["view"]["lines"] == {name: {"loss": f"gradwatch/{name}/steps/loss"} for name in ("Adam", "SGD")}
    assert {"gradwatch/Adam/steps/total_norm", "gradwatch/SGD/steps/total_norm"} <= set(gan["view"]["choices"])


def test_a_run_that_is_not_watched_has_scalars_and_nothing_else(board: Board) -> None:
    answer = board.get("run", run="group/plain").json
    assert (answer["status"], answer["optimizers"], answer["alerts"]) == ("not_watched", [], [])
    assert (answer["loss_tag"], "loss" in answer["scalars"]) == ("loss", True)


@pytest.mark.parametrize("quantity", ["grad_norm", "output_grad_norm", "weight_norm", "zero_fraction", "update_ratio"])
def test_a_heatmap_holds_what_was_written(board: Board, logs: Path, quantity: str) -> None:
    header, values = board.get("heatmap", run="sick", quantity=quantity).frame
    expected = written(logs, "sick", quantity)
    assert header["steps"] == header["last_steps"] == list(expected)
    assert (header["schema"], header["dtype"]) == (1, "float32")
    assert np.array_equal(values, np.stack(list(expected.values())))


def test_a_heatmap_of_some_steps_merges_neighbours_by_their_maximum(board: Board, logs: Path) -> None:
    header, values = board.get("heatmap", run="sick", quantity="grad_norm", first=10, to=30, columns=4).frame
    expected = {step: norms for step, norms in written(logs, "sick", "grad_norm").items() if 10 <= step <= 30}
    assert (header["steps"][0], header["last_steps"][-1]) == (10, 30)
    assert len(expected) == sum(header["counts"]) == 21
    assert (set(header["counts"]), header["counted"]) == ({5, 6}, "steps")
    for start, end, column in zip(header["steps"], header["last_steps"], values, strict=True):
        merged = np.max([norms for step, norms in expected.items() if start <= step <= end], axis=0)
        assert np.array_equal(column, merged)


def test_nan_survives_merging_and_json(board: Board, logs: Path) -> None:
    norms = written(logs, "recovered", "grad_norm")
    assert np.isnan(norms[13]).tolist() == [False, True, False]
    _, values = board.get("heatmap", run="recovered", quantity="grad_norm", columns=2).frame
    assert np.isnan(values).tolist() == [[False, True, False], [False, False, False]]
    column = board.get("column", run="recovered", quantity="grad_norm", step=13).json
    assert (column["step"], column["values"][1]) == (13, "NaN")


@pytest.mark.parametrize(("asked", "found"), [(0, 0), (1, 1), (20, 20), (10**9, 39), (-5, 0)])
def test_a_column_is_the_sample_at_the_step_or_nearest_before(board: Board, logs: Path, asked: int, found: int) -> None:
    answer = board.get("column", run="sick", quantity="grad_norm", step=asked).json
    assert answer == {
        "step": found,
        "last_step": found,
        "values": pytest.approx(written(logs, "sick", "grad_norm")[found].tolist()),
    }


def test_a_distribution_shows_where_the_gradients_of_a_layer_lie(board: Board, logs: Path) -> None:
    header, shares = board.get("distribution", run="sick", layer="net.0").frame
    assert (header["dtype"], header["steps"][:4], header["bins_per_decade"]) == ("uint8", [0, 4, 9, 14], 4)
    centres = header["lowest"] + (np.arange(shares.shape[1]) + 0.5) / 4
    weights = (shares / 255.0) ** 2
    assert weights.sum(1) == pytest.approx(1, abs=0.02)
    for step, column in zip(header["steps"], weights, strict=True):
        norm = written(logs, "sick", "grad_norm")[step][0]
        typical = np.log10(norm / np.sqrt(64 * 64 + 64))  # root mean square of the layer's elements
        assert abs(column @ centres - typical) < 1
    assert shares[:, 0].any()
    assert shares[:, -1].any()


def test_a_sequence_tells_how_far_back_the_gradient_reaches(board: Board) -> None:
    answer = board.get("sequence", run="recurrent", layer="net.rnn", step=100).json
    assert answer["step"] == 19
    assert answer["steps_back"] == list(range(63, -1, -1))
    norms = answer["norms"]
    assert norms[-1] == max(norms) > 100 * norms[0]
    assert answer["horizon"] == sum(norm >= 0.01 * max(norms) for norm in norms)
    horizons = board.get("column", run="recurrent", quantity="memory_horizon", step=100).json["values"]
    assert horizons == [answer["horizon"], -1]


def test_a_layer_tells_all_its_numbers(board: Board, logs: Path) -> None:
    answer = board.get("layer", run="clipped", layer="net.2", step=9).json
    assert answer["step"] == 9
    assert set(answer["numbers"]) == set(BY_NAME) - {"memory_horizon"}
    for quantity in ("grad_norm", "clipped_fraction"):
        assert answer["numbers"][quantity] == written(logs, "clipped", quantity)[9][1]
    low, median, high = answer["grad_norm_range"]
    assert 0 < low <= median <= high
    assert answer["numbers"]["clipped_fraction"] == 1


def test_optimizers_are_told_apart(board: Board) -> None:
    names = [optimizer["name"] for optimizer in board.get("run", run="gan").json["optimizers"]]
    assert names == ["Adam", "SGD"]
    layers = []
    for name in names:
        header, _ = board.get("heatmap", run="gan", quantity="grad_norm", optimizer=name, version=0).frame
        layers.append(header["shape"])
    default, _ = board.get("heatmap", run="gan", quantity="grad_norm").frame
    assert default["shape"] == layers[0]


def test_scalars_are_thinned_to_their_extremes(board: Board, logs: Path) -> None:
    expected = scalars(read_events(logs / "sick"), "loss")
    whole = board.get("scalars", run="sick", tag="loss").json
    assert dict(zip(whole["steps"], whole["values"], strict=True)) == expected
    few = board.get("scalars", run="sick", tag="loss", points=4).json
    assert 2 <= len(few["steps"]) <= 4
    assert {min(expected.values()), max(expected.values())} <= set(few["values"])
    part = board.get("scalars", run="sick", tag="loss", first=5, to=9).json
    assert part["steps"] == [5, 7, 9]


def test_the_table_of_alerts_stands_in_the_text_dashboard(board: Board) -> None:
    tags = board.ask("data/plugin/text/tags").json
    assert tags["sick"] == tags["healthy"] == ["gradwatch/alert_table"]
    shown = board.ask("data/plugin/text/text", run="sick", tag="gradwatch/alert_table").json[-1]
    assert (shown["step"], "<td>alert: vanishing</td>" in html.unescape(shown["text"])) == (9, True)


BAD: list[tuple[int, str, dict[str, Any], str]] = [
    (404, "run", {"run": "nobody"}, "`run` must be a run that TensorBoard knows, but 'nobody' came"),
    (400, "run", {}, "`run` must be given"),
    (404, "heatmap", {"run": "nobody", "quantity": "grad_norm"}, "`run` must be"),
    (404, "heatmap", {"run": "sick", "quantity": "charm"}, "`quantity` must be one of 'grad_norm', .*'charm' came"),
    (400, "heatmap", {"run": "sick"}, "`quantity` must be given"),
    (400, "heatmap", {"run": "sick", "quantity": "log10_histogram"}, "one number per layer"),
    (404, "heatmap", {"run": "group/plain", "quantity": "grad_norm"}, "GradWatch does not watch it"),
    (404, "heatmap", {"run": "sick", "quantity": "grad_norm", "optimizer": "Adam"}, "`optimizer` must be one of ''"),
    (404, "heatmap", {"run": "sick", "quantity": "grad_norm", "version": 7}, "`version` must be one of 0, but 7 came"),
    (404, "distribution", {"run": "sick", "layer": "net.1"}, "`layer` must be one of 'net.0', .*'net.1' came"),
    (404, "layer", {"run": "sick", "layer": "net.1", "step": 1}, "`layer` must be one of"),
    (404, "sequence", {"run": "sick", "layer": "net.0", "step": 1}, "`layer` must be a recurrent layer"),
    (404, "sequence", {"run": "recurrent", "layer": "net.head", "step": 1}, "recurrent layer .one of 'net.rnn'."),
    (404, "scalars", {"run": "sick", "tag": "joy"}, "`tag` must be a scalar of the run 'sick', but 'joy' came"),
    (400, "column", {"run": "sick", "quantity": "grad_norm"}, "`step` must be given"),
]
NUMBERS = [
    ("heatmap", "columns"),
    ("heatmap", "from"),
    ("heatmap", "to"),
    ("heatmap", "version"),
    ("distribution", "columns"),
    ("column", "step"),
    ("layer", "step"),
    ("sequence", "step"),
    ("scalars", "points"),
]
WHOLE: dict[str, Any] = {"run": "sick", "quantity": "grad_norm", "layer": "net.0", "tag": "loss", "step": 3}
BAD += [
    (400, path, {**WHOLE, name: value}, f"`{name}` must be an integer from .* but '{str(value)[:9]}")
    for path, name in NUMBERS
    for value in ("nan", "inf", "1e3", "0.5", "", "9" * 400, "2x", "--1", "\u0664")
]
BAD += [
    (400, path, {**WHOLE, "first": 9, "to": 8}, "`from` must not lie behind `to`, but from=9 and to=8 came")
    for path in ("heatmap", "distribution", "scalars")
]
BAD += [(400, "heatmap", {**WHOLE, "columns": columns}, "`columns` must be") for columns in (0, -1, 10_001, 2**60)]
BAD += [(400, "heatmap", {**WHOLE, "statistic": "mode"}, "`statistic` must be one of low, mean, high, but 'mode' came")]
BAD += [(400, "scalars", {**WHOLE, "points": 1}, "`points` must be an integer from 2 to 10000")]


def test_bad_input_gets_a_4xx_and_a_sentence(board: Board) -> None:
    for status, path, arguments, sentence in BAD:
        reply = board.get(path, **arguments)
        assert reply.status == status, (path, arguments, reply)
        (error,) = reply.json.values()
        assert re.search(sentence, error), (path, arguments, error)
    assert board.process.poll() is None


@pytest.mark.parametrize("path", [*plugin.ANSWERS, "static/index.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_sent(board: Board, path: str, method: str) -> None:
    reply = board.ask(f"data/plugin/gradwatch/{path}", method=method)
    assert (reply.status, "The method must be GET" in reply.json["error"]) == (405, True)


def test_the_head_of_an_answer_has_no_body(board: Board) -> None:
    reply = board.ask("data/plugin/gradwatch/runs", method="HEAD")
    assert (reply.status, reply.body) == (200, b"")


def test_static_files_are_served_with_their_type_and_nothing_outside_their_folder(board: Board) -> None:
    script = board.get("static/index.js")
    assert (script.status, script.kind) == (200, "text/javascript; charset=utf-8")
    assert script.body == (plugin.STATIC / "index.js").read_bytes()
    outside = ("../plugin.py", "%2e%2e/plugin.py", "..%2fplugin.py", "//etc/passwd", "%2fetc%2fpasswd", "x%00.js", "")
    for path in (*outside, ".", "x" * 5000, "no/such.js", "../../../pyproject.toml", "..\\plugin.py"):
        reply = board.get(f"static/{path}")
        assert reply.status == 404, (path, reply)


def test_answers_are_json_that_a_browser_can_read(board: Board) -> None:
    for run in STATUSES:
        answer = board.get("run", run=run)
        assert json.loads(answer.body)["run"] == run
        answer.json  # noqa: B018 - refuses NaN
