"""What real trainings leave in their event files."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.quantities.several import STEPS
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.announcing import where_to_look
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.dashboards import alert_table, prescription_table
from lightning_gradwatch.outputs.sinks import Sinks
from lightning_gradwatch.outputs.tensorboard import Writer
from lightning_gradwatch.reading.schema import Description
from tests.prescriptions import prescription
from tests.tasks import Classifier, fit, loop_host, norms_by_step, read_events, recorded, scalars, small_net
from tests.tensorboard.logs import train, watch

ALERT = Alert("vanishing", "alert", 9, None, "net.0", 4.0, 2.0, "Gradients vanish.", remedies=("ReLU", "a skip"))
DOCUMENT, TABLE, LAYOUT = "gradwatch/alert_document", "gradwatch/alert_table", "custom_scalars__config__"


def tensors(directory: Path, tag: str) -> dict[int, Any]:
    return {e.step: make_ndarray(e.tensor_proto) for e in read_events(directory).Tensors(tag)}


def texts(directory: Path, tag: str) -> list[tuple[int, bytes]]:
    events = read_events(directory)
    found = events.Tensors(tag) if tag in events.Tags()["tensors"] else []
    return [(e.step, make_ndarray(e.tensor_proto).item()) for e in found]


def test_the_record_has_every_step_whatever_the_rhythm_of_the_loggers(tmp_path: Path) -> None:
    """With the Trainer's defaults, and an epoch that ends before the loggers are due."""
    fit(GradWatch(), directory=tmp_path, max_epochs=1, max_steps=-1)
    events = read_events(tmp_path)
    assert list(scalars(events, "gradwatch/total_norm")) == [27]
    assert list(norms_by_step(events)) == list(range(28))
    assert list(tensors(tmp_path, "gradwatch/layers/output_grad_norm"))[:20] == list(range(20))
    for name in ("weight_norm", "zero_fraction"):
        assert list(tensors(tmp_path, f"gradwatch/layers/{name}")) == [0, 4, 9, 14, 19]
    assert list(tensors(tmp_path, "gradwatch/layers/log10_histogram")) == [0, 14]


def test_loss_total_norm_and_clipping_stand_beside_the_layers_at_every_step(tmp_path: Path) -> None:
    fit(GradWatch(auto_clip=1.0), directory=tmp_path, max_steps=12, log_every_n_steps=1)
    events, bins = read_events(tmp_path), recorded(read_events(tmp_path))
    known = Description.decode(events.SummaryMetadata("gradwatch/layers/grad_norm_steps").plugin_data.content)
    assert known.lines == ("total_norm", "loss", "clip_threshold", "clip_coefficient")
    for place, tag in enumerate(("gradwatch/total_norm", "loss", "gradwatch/clip_threshold")):
        assert bins.lines[:, place, 1].tolist() == pytest.approx(list(scalars(events, tag).values()), rel=1e-5)


def test_the_standard_dashboards_get_a_few_rows_from_the_input_to_the_loss(tmp_path: Path) -> None:
    deep = nn.Sequential(*[layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 10))
    for name, cards, expected in (("few", 8, 8), ("none", 0, 0), ("all", None, 31)):
        fit(GradWatch(layer_cards=cards), Classifier(deep), directory=tmp_path / name, max_steps=2)
        tags = read_events(tmp_path / name).Tags()
        rows = [tag for tag in tags["scalars"] if tag.startswith("grad_norm/")]
        assert (len(rows), len(tags["histograms"])) == (expected, expected)
        assert not rows or {rows[0], rows[-1]} == {"grad_norm/net.0", "grad_norm/net.60"}


def test_a_layer_without_a_gradient_is_told_from_one_whose_gradient_is_nan(tmp_path: Path) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.late = small_net(), nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.body(x)
            return logits + self.late(logits).detach()

    class PoisonBody(pl.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            pl_module.net.body[2].weight.grad.fill_(float("nan"))

    train(tmp_path, Classifier(Detached()), PoisonBody(), watch(), max_steps=1, log_every_n_steps=1)
    content = read_events(tmp_path).SummaryMetadata("gradwatch/layers/grad_norm_steps").plugin_data.content
    norms = dict(zip(json.loads(content)["layers"], norms_by_step(read_events(tmp_path))[0], strict=True))
    assert np.isnan(norms["net.body.2"])
    assert norms["net.late"] == -1
    assert norms["net.body.0"] > 0


def test_what_was_written_says_what_it_is(logs: Path) -> None:
    for run, optimizers in (("sick", [""]), ("gan", ["Adam", "SGD"])):
        events = read_events(logs / run)
        found = {}
        for tag in [t for t in events.Tags()["tensors"] if "/layers/" in t]:
            metadata = events.SummaryMetadata(tag)
            content = json.loads(metadata.plugin_data.content)
            assert (metadata.plugin_data.plugin_name, content["version"]) == ("gradwatch", 0)
            assert content["quantity"] == tag.rsplit("/", 1)[1]
            assert content["schema"] == (2 if content["quantity"] == STEPS else 1)
            for event in events.Tensors(tag) if content["quantity"] != STEPS else ():
                assert len(make_ndarray(event.tensor_proto)) == len(content["layers"])
            found[content["optimizer"]] = content["layers"]
        assert sorted(found) == optimizers
    (tag,) = [t for t in read_events(logs / "recurrent").Tags()["tensors"] if "/sequence/" in t]
    content = json.loads(read_events(logs / "recurrent").SummaryMetadata(tag).plugin_data.content)
    assert (tag, content["quantity"], content["layers"]) == ("gradwatch/sequence/net.rnn", "sequence", ["net.rnn"])


def test_update_ratios_are_those_of_the_weights(tmp_path: Path) -> None:
    """SGD without momentum moves the weights by the learning rate times the gradient; some of them are looked at."""
    fit(GradWatch(), Classifier(small_net(), lr=0.01), directory=tmp_path, log_every_n_steps=1, max_steps=10)
    ratios = tensors(tmp_path, "gradwatch/layers/update_ratio")
    norms, weights = norms_by_step(read_events(tmp_path)), tensors(tmp_path, "gradwatch/layers/weight_norm")
    first = min(step for step, found in ratios.items() if (found > 0).all())
    assert first < 10
    assert ratios[first] == pytest.approx(0.01 * np.array(norms[0]) / weights[0], rel=0.25)


def test_a_watched_run_is_known_before_its_first_step_and_each_change_of_its_alerts_is_written(logs: Path) -> None:
    documents = [(step, json.loads(text)) for step, text in texts(logs / "recovered", DOCUMENT)]
    empty = {"schema": 1, "alerts": [], "num_alerts": 0, "num_dropped": 0, "end": "", "left_out": []}
    assert documents[0] == (0, empty)
    assert [document["end"] for _, document in documents[1:]] == [*[""] * (len(documents) - 2), "end"]
    states = [(step, [a["until_step"] for a in document["alerts"]]) for step, document in documents[1:-1]]
    assert states in ([(13, [None]), (13, [13])], [(13, [13])])
    assert [json.loads(text)["end"] for _, text in texts(logs / "healthy", DOCUMENT)] == ["", "end"]
    assert read_events(logs / "sick").SummaryMetadata(DOCUMENT).plugin_data.plugin_name == "gradwatch"


def test_a_run_that_fails_at_its_first_step_is_known_as_watched(tmp_path: Path) -> None:
    class Failing(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("at once")

    with pytest.raises(RuntimeError, match="at once"):
        train(tmp_path, Failing(small_net()), watch())
    assert [json.loads(text)["end"] for _, text in texts(tmp_path, DOCUMENT)] == ["", "RuntimeError"]


def write_alerts(directory: Path, changes: list[tuple[Alert, ...]]) -> None:
    with SummaryWriter(directory) as experiment:
        writer = Writer(experiment, Cards(0))
        for alerts in changes:
            writer.write_alerts(alerts, len(alerts))
        writer.write_alerts(changes[-1], len(changes[-1]), end="end")


def test_alerts_that_come_and_go_do_not_flood_the_file(tmp_path: Path) -> None:
    ended = tuple(replace(ALERT, step=3 * i, until_step=3 * i + 1) for i in range(1, 1999))
    write_alerts(tmp_path, [ended[:n] for n in range(1999)])
    found = texts(tmp_path, DOCUMENT)
    assert 100 < len(found) < 300
    assert [step for step, _ in found[:4]] == [0, 4, 7, 10]
    step, last = found[-1]
    assert (step, json.loads(last)["alerts"][-1]["step"], json.loads(last)["num_dropped"]) == (5995, 5994, 1898)


def test_alerts_that_have_not_changed_are_not_written_again(tmp_path: Path) -> None:
    write_alerts(tmp_path, [(), (), (ALERT,), (ALERT,), (replace(ALERT, until_step=11),)])
    found = texts(tmp_path, DOCUMENT)
    assert [step for step, _ in found] == [0, 9, 11, 11], "the last one says that the run has ended"
    assert [json.loads(document)["end"] for _, document in found] == ["", "", "", "end"]
    assert len(texts(tmp_path, TABLE)) == 3


NASTY = [
    "<script>alert(1)</script>",
    "a | b || c",
    "**bold** _it_ `code` ~~gone~~",
    "[link](javascript:alert(1)) <http://example.org> https://example.org",
    "line\nbreak",
    "# head",
    "1. one",
    "&lt;b&gt; &#124; \\| \\",
    '<img src="x" onerror="alert(1)">',
    "$x$ ^[1] {: #id }",
    "![image](x.png)",
]


@pytest.mark.parametrize("text", NASTY)
def test_text_in_the_table_of_alerts_stands_for_itself(text: str) -> None:
    shown = markdown_to_safe_html(alert_table([replace(ALERT, message=text, layer="net.__a__")]))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", shown, re.DOTALL)
    assert [html.unescape(cell) for cell in cells] == [
        "9",
        "",
        "alert: vanishing",
        "net.__a__",
        text.replace("\n", " "),
    ]
    tags = {tag.split(" ")[0] for tag in re.findall(r"</?([^>]*)>", shown)}
    assert tags == {"table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("text", NASTY)
def test_text_in_the_table_of_remedies_stands_for_itself(text: str) -> None:
    tried = prescription(remedy=text, why=text, code=f"a = 1\n{text}")
    shown = markdown_to_safe_html(prescription_table(tried))
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", shown, re.DOTALL)]
    assert cells[:6] == ["as it is", "", "11.1", "2.3", "", ""]
    assert cells[6:12] == [text.replace("\n", " "), "helps", "0.4", "0.41", "0 %", ""]
    (code,) = re.findall(r"<code>(.*?)</code>", shown, re.DOTALL)
    assert html.unescape(code).strip() == f"a = 1\n{text}".replace("`", " ").strip()
    tags = {tag.split(" ")[0] for tag in re.findall(r"</?([^>]*)>", shown)}
    assert tags == {"p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"}


def test_the_table_of_remedies_is_written_once(tmp_path: Path) -> None:
    writer = Writer(SummaryWriter(str(tmp_path)), Cards(0))
    treated = replace(ALERT, prescription=prescription())
    for alerts in ([ALERT], [treated], [replace(treated, until_step=20)], [replace(treated, until_step=20), ALERT]):
        writer.write_alerts(alerts, 1)
    (table,) = texts(tmp_path, "gradwatch/prescription")
    assert b"| ReLU | helps |" in table[1]
    assert read_events(tmp_path).SummaryMetadata("gradwatch/prescription").plugin_data.plugin_name == "text"


def test_the_table_shows_the_newest_alerts_first(logs: Path) -> None:
    many = [replace(ALERT, step=step, until_step=step + 2) for step in range(100)]
    rows = alert_table(many).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {step}" for step in range(99, 79, -1)]
    assert texts(logs / "healthy", f"{TABLE}")[0] == (0, b"GradWatch watches this run. No alert so far.")
    step, table = texts(logs / "sick", TABLE)[-1]
    assert (step, b"alert&#58; vanishing | net&#46;0 | Gradients vanish with depth" in table) == (9, True)
    assert read_events(logs / "sick").SummaryMetadata(TABLE).plugin_data.plugin_name == "text"


class LaysOut(pl.Callback):
    """A user who lays out charts of his own."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.lay_out)

    def lay_out(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        trainer.logger.experiment.add_custom_scalars({"mine": {"loss": ["Multiline", ["loss"]]}})


def shown_layout(directory: Path) -> list[str]:
    """The categories that TensorBoard shows: of several layouts of a run it takes the last."""
    layout = Layout()
    layout.ParseFromString(texts(directory, LAYOUT)[-1][1])
    return [category.title for category in layout.category]


def test_charts_are_laid_out_over_tags_that_exist(logs: Path) -> None:
    for run, optimizers in (("sick", [""]), ("gan", ["Adam", "SGD"])):
        layout = Layout()
        layout.ParseFromString(texts(logs / run, LAYOUT)[0][1])
        (category,) = layout.category
        tags = read_events(logs / run).Tags()["scalars"]
        margins = [chart.margin.series[0] for chart in category.chart if chart.HasField("margin")]
        assert len(margins) == len(optimizers)
        assert {tag for margin in margins for tag in (margin.value, margin.lower, margin.upper)} <= set(tags)
        patterns = [tag for chart in category.chart if chart.HasField("multiline") for tag in chart.multiline.tag]
        drawn = [pattern for pattern in patterns if any(re.match(pattern, tag) for tag in tags)]
        assert len(drawn) == len(patterns) - 1  # no clipping here
    clipped = read_events(logs / "clipped").Tags()["scalars"]
    assert all(any(re.match(pattern, tag) for tag in clipped) for pattern in patterns)


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_batch_start", "on_train_end"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_layout_of_the_users_own_is_shown_whenever_it_was_made(tmp_path: Path, hook: str, place: int) -> None:
    callbacks: list[Any] = [watch()]
    callbacks.insert(place, LaysOut(hook))
    train(tmp_path, Classifier(small_net()), *callbacks, max_steps=2)
    assert shown_layout(tmp_path) == ["mine"]


def test_a_second_fit_leaves_the_layout_as_it_is(tmp_path: Path) -> None:
    for _ in range(2):
        train(tmp_path, Classifier(small_net()), watch(), max_steps=2)
    assert len(texts(tmp_path, LAYOUT)) == 1
    assert shown_layout(tmp_path) == ["GradWatch"]


def test_the_prefix_of_the_logger_stands_before_the_tags(tmp_path: Path) -> None:
    train(tmp_path, Classifier(small_net()), watch(), max_steps=4, prefix="fold1")
    tags = read_events(tmp_path).Tags()
    assert {"fold1-loss", "fold1-gradwatch/total_norm", "fold1-grad_norm/net.0"} <= set(tags["scalars"])
    assert "fold1-grad_log10/net.0" in tags["histograms"]
    assert not [tag for tag in tags["scalars"] if tag.startswith(("gradwatch", "grad_norm"))]
    layout = Layout()
    layout.ParseFromString(texts(tmp_path, LAYOUT)[0][1])
    series = layout.category[0].chart[0].margin.series[0]
    assert {series.value, series.lower, series.upper} <= set(tags["scalars"])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What GradWatch has said that is no trouble."""
    caplog.set_level("INFO")
    return lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith("GradWatch: tensorboard")]


def test_the_start_says_where_to_look_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    boards = [TensorBoardLogger("logs", name="my run", version=3), TensorBoardLogger("others", name="")]
    fit(watch(), logger=[CSVLogger("csv"), *boards], max_steps=2)
    address = "http://localhost:6006/#gradwatch&run=version_3"
    assert said() == [f"GradWatch: tensorboard --logdir 'logs/my run', then {address}"]


def test_nothing_is_said_where_nothing_is_written(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    fit(watch(), logger=False, max_steps=2)
    fit(GradWatch(record=False), logger=CSVLogger(tmp_path), max_steps=2)
    fit(watch(), logger=TensorBoardLogger(tmp_path), fast_dev_run=True)
    assert said() == []


def test_a_record_of_our_own_is_said_as_well(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    fit(watch(), logger=CSVLogger(tmp_path, "logs"), max_steps=2)
    link = "then http://localhost:6006/#gradwatch&run=version_0"
    assert said() == [f"GradWatch: tensorboard --logdir {tmp_path}/logs, {link}"]


def test_where_to_look_names_the_run_among_its_siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = "GradWatch: tensorboard --logdir"
    link = "then http://localhost:6006/#gradwatch&run="
    assert where_to_look(str(tmp_path / "lightning_logs/version_0")) == f"{start} lightning_logs, {link}version_0"
    assert where_to_look("lightning_logs/version_0") == f"{start} lightning_logs, {link}version_0"
    assert where_to_look(str(tmp_path / "logs")) == f"{start} logs, {link}."
    assert where_to_look(str(tmp_path)) == f"{start} ., {link}."
    assert where_to_look("s3://bucket/logs/run/1") == f"{start} s3://bucket/logs/run, {link}1"
    assert where_to_look("/data/a b/run & 1") == f"{start} '/data/a b', {link}run%20%26%201"


def test_a_logger_that_fails_costs_one_warning_and_the_others_go_on(tmp_path: Path) -> None:
    class Broken(TensorBoardLogger):
        @property
        def experiment(self) -> Any:
            raise OSError("disk full")

    sinks, logger = Sinks(loop_host()), TensorBoardLogger(tmp_path, name="", version="")
    with pytest.warns(match="Broken 0 cannot be written .*disk full.* and is left out"):
        sinks.open([Broken(tmp_path), logger], [""])
    sinks.write_alerts([Broken(tmp_path), logger], [], 0, end="end")  # a second warning would be an error
    logger.experiment.close()
    assert (shown_layout(tmp_path), len(texts(tmp_path, DOCUMENT))) == (["GradWatch"], 1)
