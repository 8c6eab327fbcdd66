"""Somebody adds a rule and a quantity of their own, as `docs/extending.md` shows, and looks for both everywhere."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning, watch
from tests.cli.command import here
from tests.cli.test_page import opened as opened_page
from tests.tasks import Classifier, deep_net, digits, quiet_trainer
from tests.tensorboard.board import Board
from tests.tensorboard.browser import chromium

DOCUMENT = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
KIND, TITLE = "one_layer_takes_all", "One layer takes nearly all of the gradient"
QUANTITY, LABEL = "peak_over_mean", "Largest over mean element"


def example() -> dict[str, Any]:
    """The names that the document's example defines; its watch among them."""
    return after_blocks(1)


def after_blocks(number: int) -> dict[str, Any]:
    """The names that the document has defined after so many of its blocks."""
    names: dict[str, Any] = {"__name__": "example"}
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    for code in blocks[:number]:
        exec(compile(code, "docs/extending.md", "exec"), names)
    return names


def train(watch: GradWatch, directory: Path, steps: int, checkpoint: Path | None = None, **options: Any) -> list[str]:
    """Train a network whose last layers hold all of the gradient; what the console was told."""
    saves = ModelCheckpoint(dirpath=directory / "checkpoints", save_last=True, every_n_train_steps=20)
    trainer = quiet_trainer(
        watch, saves, directory=directory, max_steps=steps, log_every_n_steps=5, enable_checkpointing=True, **options
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Classifier(deep_net(nn.Sigmoid, 8)), digits(), ckpt_path=checkpoint, weights_only=True)
    return [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)]


class Run(NamedTuple):
    """What has come of the example."""

    watch: GradWatch
    directory: Path
    told: list[str]

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory, example_watch = tmp_path_factory.mktemp("run"), example()["watch"]
    return Run(example_watch, directory, train(example_watch, directory, 40))


@pytest.fixture(scope="module")
def board(run: Run) -> Iterator[Board]:
    with Board(run.directory) as board:
        (path,) = {file.parent.relative_to(run.directory).as_posix() for file in run.directory.rglob("*tfevents*")}
        board.wait_for(path, 39)
        yield board


def of_kind(alerts: Any, kind: str = KIND) -> list[Any]:
    return [alert for alert in alerts if alert.kind == kind]


def test_the_console_and_the_watch_tell_of_it(run: Run) -> None:
    (line,) = [line for line in run.told if TITLE in line]
    assert "the other layers are frozen, starving, or scaled down" in line.lower()
    assert "Try  1. a smaller learning rate for this layer" in line
    (alert,) = of_kind(run.watch.alerts)
    assert alert.layer
    assert alert.value >= 0.9


def test_the_alerts_file_has_it(run: Run) -> None:
    (path,) = run.directory.rglob("alerts.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines if line["kind"] == KIND][:1] == ["opened"]


def test_the_terminal_shows_both(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status, shown, _ = here(capsys, "report", run.directory, "--quantity", QUANTITY)
    assert status == 1
    assert LABEL in shown
    assert TITLE in " ".join(shown.replace("│", " ").split())
    _, shown, _ = here(capsys, "report", run.directory, "--json")
    (reported,) = json.loads(shown)["runs"]
    assert KIND in [alert["kind"] for alert in reported["alerts"]]


@pytest.mark.slow
def test_the_page_shows_both(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here(capsys, "report", run.directory, "--html", tmp_path / "page.html")
    with (
        chromium() as browser,
        opened_page(browser, tmp_path / "page.html", f"#p.gradwatch.quantity={QUANTITY}") as page,
    ):
        assert LABEL in page.get_by_label("Quantity").locator("option").all_inner_texts()
        assert page.get_by_label("Quantity").input_value() == QUANTITY
        assert TITLE in page.locator("main").inner_text()


@pytest.mark.slow
def test_the_tab_shows_both(run: Run, board: Board) -> None:
    (name,) = [one["run"] for one in board.get("runs").json["runs"]]
    told = board.get("run", run=name).json
    assert KIND in [alert["kind"] for alert in told["alerts"]]
    (optimizer,) = told["optimizers"]
    assert QUANTITY in optimizer["versions"][-1]["quantities"]
    header, values = board.get("heatmap", run=name, quantity=QUANTITY).frame
    assert len(header["steps"]) == len(values) > 2
    assert (values >= 1).all()  # the largest is no less than the mean


def test_a_resumed_run_goes_on_with_the_rule(run: Run, tmp_path: Path) -> None:
    resumed = example()["watch"]
    told = train(resumed, tmp_path, 60, run.checkpoint)
    assert [line for line in told if TITLE in line] == []  # it is the same incident
    (alert,) = of_kind(resumed.alerts)
    assert alert.step == of_kind(run.watch.alerts)[0].step


def test_a_run_that_is_resumed_without_them_goes_on(run: Run, tmp_path: Path) -> None:
    plain = GradWatch()
    told = train(plain, tmp_path, 60, run.checkpoint)
    assert not [line for line in told if "cannot" in line or "leaves out" in line or "switched itself off" in line]
    assert of_kind(plain.alerts, "vanishing")
    # what nobody judges any more is over, where the run was resumed
    (alert,) = of_kind(plain.alerts)
    assert alert.step < alert.until_step <= 40
    (path,) = tmp_path.rglob("alerts.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["event"], one["step"]) for one in lines if one["kind"] == KIND][-1] == ("ended", alert.step)


def test_an_alert_whose_rule_refuses_its_state_is_over_and_opens_anew(run: Run, tmp_path: Path) -> None:
    taking_all = example()["OneLayerTakesAll"]

    class Forgetful(taking_all):  # type: ignore[misc, valid-type]
        def load_state_dict(self, state: Any) -> None:
            raise ValueError("another version")

    resumed = GradWatch(rules=[Forgetful()])
    train(resumed, tmp_path, 60, run.checkpoint)
    before, after = of_kind(resumed.alerts)
    assert before.step == of_kind(run.watch.alerts)[0].step
    assert before.until_step is not None
    assert before.until_step <= after.step
    assert after.until_step is None


def test_a_rule_judges_a_quantity(tmp_path: Path) -> None:
    names = after_blocks(2)
    watch = GradWatch(rules=[names["OneElementStandsOut"](ratio=3.0)], quantities=[names["PeakOverMean"]()])
    train(watch, tmp_path, 40)
    (alert,) = of_kind(watch.alerts, "one_element_stands_out")
    assert alert.layer
    assert alert.value > 3
    assert alert.step > 0  # the first value alone does not alert


def test_an_alert_of_ones_own_can_end_the_training(tmp_path: Path) -> None:
    names = example()
    stopped = GradWatch(rules=[names["OneLayerTakesAll"]()], on_alert={KIND: "stop"})
    train(stopped, tmp_path, 100)
    (alert,) = of_kind(stopped.alerts)
    assert alert.step < 20


def test_a_hand_written_loop_takes_them_too(tmp_path: Path) -> None:
    names, net = example(), deep_net(nn.Sigmoid, 8)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    rules, quantities = [names["OneLayerTakesAll"]()], [names["PeakOverMean"]()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watch(net, optimizer, log_dir=tmp_path, rules=rules, quantities=quantities) as loop:
            for _, (pixels, digit) in zip(range(15), digits(), strict=False):
                loop.before_forward()
                loss = nn.functional.cross_entropy(net(pixels), digit)
                optimizer.zero_grad()
                loss.backward()
                loop.step(loss)
                optimizer.step()
    assert of_kind(loop.alerts)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"rules": 3}, "`rules` must be a list"),
        ({"rules": [object()]}, r"`rules\[0\]` must be a rule"),
        ({"quantities": [object()]}, r"`quantities\[0\]\.name` must be a text"),
        ({"quantities": "grad_norm"}, "`quantities` must be a list"),
        ({"on_alert": {KIND: "stop"}}, "`on_alert` must be a dict by kinds of alerts"),
    ],
)
def test_what_is_none_is_refused_before_training(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        GradWatch(**arguments)
