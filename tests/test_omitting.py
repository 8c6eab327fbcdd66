"""What fails and is left out is on record: a run without one of its rules must not pass for healthy."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core import architecture
from tests.cli.command import here
from tests.cli.test_page import opened as opened_page
from tests.tasks import Classifier, deep_net, fit, small_net
from tests.tensorboard.browser import alone, chromium, opened, tensorboard

RULE = "GradWatch left out your rule `hot` from step {} on (ZeroDivisionError: division by zero; test_omitting.py, line"
QUANTITY = "GradWatch left out your quantity `peak` from step"


class Hot:
    """A rule that fails at its twelfth step."""

    kind = "hot"
    title = "The gradient is hot"

    def update(self, observation: Any, history: Any) -> None:
        if observation.step == 12:
            1 / 0  # noqa: B018


class Two(Classifier):  # type: ignore[misc, valid-type]
    """Two optimizers, one after the other."""

    def __init__(self) -> None:
        super().__init__(small_net())
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[place].parameters(), 0.1) for place in (0, 2)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


class Peak:
    """A quantity that fails at once."""

    name = "peak"
    label, hint = "Peak", "The largest element of a layer's gradient."
    unit, missing = "", "no gradient"
    scale: Literal["log"] = "log"

    def measure(self, weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
        raise RuntimeError("no peak")


def train(watch: GradWatch, directory: Path | None, model: Any = None, **options: Any) -> list[str]:
    """A healthy training; what the console was told."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(watch, model, directory=directory, **{"max_steps": 30, **options})
    return [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GradWatch, list[str]]:
    directory, watch = tmp_path_factory.mktemp("run"), GradWatch(rules=[Hot()], quantities=[Peak()])
    return directory, watch, train(watch, directory)


def test_the_console_says_where_the_code_of_the_user_failed(run: tuple[Path, GradWatch, list[str]]) -> None:
    rule, quantity = sorted(run[2], reverse=True)
    assert "your rule `hot` from now on" in rule
    assert "ZeroDivisionError: division by zero; test_omitting.py, line " in rule
    assert "RuntimeError: no peak; test_omitting.py, line " in quantity


def test_a_program_does_not_take_the_run_for_healthy(
    run: tuple[Path, GradWatch, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("alerts", "report"):
        status, out, _ = here(capsys, command, run[0], "--json")
        (told,) = json.loads(out)["runs"]
        assert (status, told["status"], told["alerts"]) == (2, "unreadable", [])
        assert told["headline"].startswith(RULE.format(12))
        found = {(one["kind"], one["name"]): one for one in told["left_out"]}
        assert set(found) == {("rule", "hot"), ("quantity", "peak")}
        assert found["rule", "hot"]["step"] == 12
        assert found["quantity", "peak"]["message"].startswith(QUANTITY)


def test_the_terminal_says_what_is_missing(
    run: tuple[Path, GradWatch, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("alerts", "report"):
        status, out, _ = here(capsys, command, run[0])
        shown = " ".join(out.replace("│", " ").split())
        assert status == 2
        assert "HEALTHY" not in shown
        assert RULE.format(12) in shown
        assert QUANTITY in shown


def test_a_quantity_that_was_left_out_is_not_said_to_come(
    run: tuple[Path, GradWatch, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = here(capsys, "report", run[0], "--quantity", "peak")
    assert status == 2
    assert out.count(QUANTITY) == 2  # with the verdict, and in the place of the picture
    assert "so far" not in out


def test_the_end_of_the_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(GradWatch(rules=[Hot()]), tmp_path)
    assert RULE.format(12) in caplog.text


@pytest.mark.slow
def test_the_tab_and_the_page_say_so(
    run: tuple[Path, GradWatch, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(capsys, "report", run[0], "--html", tmp_path / "page.html")
    with tensorboard(run[0]) as address, chromium() as browser:
        with opened_page(browser, tmp_path / "page.html") as page:
            banners = [page.locator(".banner").inner_text()]
        with opened(browser, alone(address)) as tab:
            banners.append(tab.page.locator(".banner").inner_text())
    for text in banners:
        assert RULE.format(12) in text
        assert QUANTITY in text
        assert "Mend it, and train again." in text


def test_in_memory_it_is_kept_too(tmp_path: Path) -> None:
    watch = GradWatch(rules=[Hot()], record=False)
    train(watch, None)
    assert RULE.format(12) in str(watch.report())


def test_another_fit_tries_again_and_says_so_again(tmp_path: Path) -> None:
    watch = GradWatch(rules=[Hot()])
    for name in ("first", "second"):
        (line,) = train(watch, tmp_path / name)
        assert "your rule `hot`" in line


def test_it_is_said_once_for_several_optimizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = train(GradWatch(quantities=[Peak()]), tmp_path, Two(), max_steps=20)
    assert sum("your quantity `peak`" in line for line in told) == 1
    _, out, _ = here(capsys, "alerts", tmp_path, "--json")
    (told_run,) = json.loads(out)["runs"]
    assert [one["name"] for one in told_run["left_out"]] == ["peak"]


def test_a_figure_of_the_house_is_on_record_and_the_run_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no look")

    monkeypatch.setattr(architecture.Surveyor, "_survey", broken)
    train(GradWatch(), tmp_path)
    status, out, _ = here(capsys, "alerts", tmp_path, "--json")
    (told,) = json.loads(out)["runs"]
    assert (status, told["status"]) == (0, "healthy")
    (left_out,) = told["left_out"]
    assert (left_out["kind"], left_out["name"], left_out["step"]) == ("figure", "architecture", 0)
    assert "GradWatch left out what the network is made of from step 0 on (RuntimeError: no look)." in out


def test_an_open_alert_is_worth_more_than_a_rule_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(GradWatch(rules=[Hot()]), tmp_path, Classifier(deep_net(nn.Sigmoid)))
    status, out, _ = here(capsys, "alerts", tmp_path)
    assert status == 1
    assert out.startswith("SICK")
    assert "GradWatch left out your rule `hot`" in " ".join(out.split())
