"""What a watch shows in a notebook, from memory: words, the small heatmap, arrays, pictures."""

from __future__ import annotations

import builtins
import copy
import pickle
import sys
import warnings
from collections.abc import Iterator
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

from lightning_gradwatch import Alert, GradWatch, GradWatchWarning, watch
from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.notebook.report import NOTHING
from tests.builders import alert
from tests.prescriptions import prescription
from tests.tasks import Classifier, deep_net, digits, fit, small_net

mpl.use("agg")
EVIL = "</script><img src=x onerror=alert(1)>&\"'"


def train(watched: GradWatch, net: nn.Module | None = None, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        fit(watched, Classifier(deep_net(nn.Sigmoid, 8) if net is None else net), **{"max_steps": 40, **options})


@pytest.fixture(scope="module")
def sick() -> GradWatch:
    watched = GradWatch()
    train(watched)
    return watched


@pytest.fixture(autouse=True)
def _closes_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_before_training_everything_says_so() -> None:
    watched = GradWatch()
    assert NOTHING in repr(watched)
    assert NOTHING in watched._repr_html_()
    assert NOTHING in watched.report()._repr_html_()
    assert watched.history.quantities == {}
    assert "nothing was recorded" in repr(watched.history)
    with pytest.raises(ValueError, match="when training has begun"):
        watched.plot()
    with pytest.raises(ValueError, match="one that has stepped"):
        watched.history.of("")


def test_the_report_tells_what_why_and_what_to_try(sick: GradWatch) -> None:
    lines = repr(sick.report()).splitlines()
    assert lines[0] == "SICK: Gradients vanish with depth since step 9, in net.0."
    assert [line.split()[0] for line in lines[1:]] == ["Alert:", "What", "Why", "Try", "2."]
    assert "7 sigmoids" in repr(sick)
    html = sick._repr_html_()
    assert all(word in html for word in (">What<", ">Why<", ">Try<", "<svg", "net.14"))
    assert len(html) < 50_000


def test_a_healthy_run_is_told_in_a_line() -> None:
    watched = GradWatch()
    train(watched, small_net(), max_steps=12)
    assert repr(watched.report()) == "HEALTHY: No alert up to step 11."


def test_a_report_stays_as_it_was_made(sick: GradWatch) -> None:
    watched = GradWatch()
    reports: list[Any] = []

    class Asks(GradWatch):
        """Asks for a report in mid-run."""

        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            reports.append(self.report())

    watched = Asks()
    train(watched, max_steps=12)
    assert reports[5].headline.startswith("HEALTHY")
    assert watched.report().headline.startswith("SICK")
    assert not hasattr(copy.deepcopy(watched), "log")
    assert repr(pickle.loads(pickle.dumps(sick))) == repr(sick)


def test_a_page_is_saved(sick: GradWatch, tmp_path: Any) -> None:
    path = sick.report().save(tmp_path / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="`path` must be a file that can be written"):
        sick.report().save(tmp_path / "nowhere" / "report.html")


def test_a_large_model_fits_four_megabytes() -> None:
    from lightning_gradwatch.notebook.report import Report
    from tests.outputs.test_memory import Long

    run = Long(1500)
    run.memory.set_alerts([], 0)
    run.go_on(0, 300)
    assert 1_000_000 < len(Report(run.memory, [])._repr_html_()) < 4_000_000


def test_an_alert_is_told_in_lines_and_keeps_its_repr_for_debugging() -> None:
    one = alert(summary="It shrinks.", evidence="7 sigmoids", cause="small_init", remedies=("ReLU", "norms"))
    assert str(one).splitlines() == [
        "Alert: Gradients vanish with depth, since step 9, in net.0",
        "  What It shrinks.",
        "  Why  7 sigmoids (small_init)",
        "  Try  1. ReLU",
        "       2. norms",
    ]
    assert eval(repr(one), {"Alert": Alert}) == one
    assert ", steps 9 to 12, over" in str(alert(until=12))
    assert "\x1b" not in str(alert(layer="\x1b[31m"))
    html = alert(kind=EVIL, layer=EVIL, optimizer=EVIL, summary=EVIL, evidence=EVIL, remedies=(EVIL,))._repr_html_()
    assert "<img" not in html
    assert "<script" not in html


def test_a_prescription_is_shown_as_a_table() -> None:
    from lightning_gradwatch import Prescription
    from lightning_gradwatch.trials.records import NotTried, Trial

    known = prescription(remedy=EVIL, why=EVIL, code=EVIL)
    trials = tuple(Trial(**trial) for trial in known["trials"])
    missing = tuple(NotTried(**one) for one in known["not_tried"])
    made = Prescription(EVIL, Trial(**known["untreated"]), trials, missing, kind="vanishing")
    html = made._repr_html_()
    assert html.count("<tr>") == 2 + len(trials)
    assert "<img" not in html
    assert "onerror=alert(1)&gt;" in html


def test_the_history_is_what_was_seen(sick: GradWatch) -> None:
    history = sick.history
    assert history.layers == tuple(f"net.{i}" for i in range(0, 16, 2))
    norms = history.quantities["grad_norm"]
    assert norms.steps.tolist() == norms.last_steps.tolist() == list(range(40))
    assert norms.values.shape == (40, 8)
    outputs = history.quantities["output_grad_norm"]
    assert outputs.values[-1].tolist() == pytest.approx([sick.profile[name] for name in history.layers])
    assert history.numbers["loss"].values.shape == (40,)
    total = np.sqrt((norms.values.astype(np.float64) ** 2).sum(1))
    assert history.numbers["total_norm"].values == pytest.approx(total, rel=0.01)
    found = history.histogram("net.0")
    assert found.shares.shape == (len(found.steps), len(found.edges) - 1)
    assert found.shares.sum(1) == pytest.approx(np.ones(len(found.steps)), abs=0.02)
    with pytest.raises(ValueError, match="`layer` must be a layer that is watched"):
        history.histogram("nonsense")
    with pytest.raises(ValueError, match="`optimizer` must be one of ''"):
        history.of("nonsense")


def test_nan_infinity_and_zero_are_kept() -> None:
    from tests.outputs.test_memory import Long, observation

    run = Long(3)
    run.memory.set_alerts([], 0)
    norms = torch.tensor([[1.0, 1.0, 0.0, float("nan")], [1.0, float("inf"), MISSING, 2.0]])
    run.memory.add(run.recorder.take([observation(0, norms, run.layers)], []))
    watched = GradWatch()
    watched._state.memory = run.memory
    values = watched.history.quantities["grad_norm"].values
    assert np.allclose(values, norms[:, 1:].numpy(), rtol=0.002, atol=0, equal_nan=True)
    assert "#d32f2f" in watched._repr_html_()
    watched.plot()
    watched.plot("profile")


def test_to_pandas_without_pandas_names_the_cure(sick: GradWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        sick.history.to_pandas()


def test_to_pandas_has_a_row_for_every_number(sick: GradWatch) -> None:
    pytest.importorskip("pandas")
    table = sick.history.to_pandas()
    assert list(table.columns) == ["quantity", "layer", "step", "last_step", "value"]
    norms = table[(table.quantity == "grad_norm") & (table.layer == "net.4")]
    assert norms.value.tolist() == sick.history.quantities["grad_norm"].values[:, 2].tolist()
    assert (table[table.quantity == "loss"].layer == "").all()


@pytest.mark.parametrize("kind", ["heatmap", "profile", "histogram"])
def test_plots_return_figure_and_axes(kind: Any, sick: GradWatch) -> None:
    figure, axes = sick.plot(kind)
    assert axes in figure.axes
    _, given = plt.subplots()
    again, same = sick.plot(kind, ax=given)
    assert same is given
    assert again is given.figure


def test_the_heatmap_shows_the_norms(sick: GradWatch) -> None:
    _, axes = sick.plot()
    (mesh,) = axes.collections
    drawn = cast(Any, mesh).get_array()
    norms = sick.history.quantities["grad_norm"].values
    assert np.allclose(np.asarray(drawn).T, np.log10(norms), atol=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(sick.history.layers)


def test_clipping_is_drawn_where_somebody_clips(sick: GradWatch) -> None:
    clipping = GradWatch(auto_clip=0.5)
    train(clipping, small_net(), max_steps=20)
    _, axes = clipping.plot("clipping")
    norm, threshold, marks = axes.lines
    assert np.asarray(threshold.get_ydata()).tolist() == pytest.approx([0.5] * 20)
    is_above = np.asarray(norm.get_ydata()) > 0.5
    assert np.asarray(marks.get_xdata()).tolist() == np.arange(20)[is_above].tolist()
    with pytest.raises(ValueError, match="set `auto_clip`"):
        sick.plot("clipping")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "nonsense"}, "`kind` must be one of 'heatmap'"),
        ({"kind": "histogram", "layer": "nonsense"}, "`layer` must be a layer that is watched"),
        ({"optimizer": "nonsense"}, "`optimizer` must be one of ''"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: Any, message: str, sick: GradWatch) -> None:
    with pytest.raises(ValueError, match=message):
        sick.plot(**arguments)


def test_plot_without_matplotlib_names_the_cure(sick: GradWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return really(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        sick.plot()


def test_a_hand_written_loop_shows_the_same() -> None:
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with watch(net, optimizer) as session:
        for _, (inputs, targets) in zip(range(12), digits(), strict=False):
            session.before_forward()
            loss = nn.functional.cross_entropy(net(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            session.step(loss)
            optimizer.step()
    assert "HEALTHY" in repr(session)
    assert session.history.layers == ("0", "2", "4")
    assert session.plot("profile")[1].lines
    assert session.report().html().startswith("<!DOCTYPE html>")
