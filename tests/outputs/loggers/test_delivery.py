"""What is delivered to loggers, as far as it needs none of their packages; the others have a file each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.outputs import page
from lightning_gradwatch.outputs.loggers import FAMILIES, family_of
from lightning_gradwatch.outputs.loggers.delivery import Delivery, in_a_line
from lightning_gradwatch.outputs.loggers.mlflow import MLflow
from lightning_gradwatch.outputs.page import PageMaker
from tests.builders import alert
from tests.outputs.loggers.training import train


class Gone:
    """A service that has gone away."""

    def log_artifact(self, *args: Any) -> None:
        raise ConnectionError("the service has gone away")

    set_tag = log_artifact


class MLFlowLogger(Logger):
    """One of the name of Lightning's, of which nothing works but its numbers."""

    name, version, log_dir, run_id, experiment = "own", 0, "", "run", Gone()

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.log_dir = str(directory)
        self.numbers: list[dict[str, float]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.numbers.append(metrics)


class Derived(MLFlowLogger):
    """A user's own."""


def test_a_logger_is_known_by_the_names_of_its_classes(tmp_path: Path) -> None:
    assert isinstance(family_of(Derived(tmp_path)), MLflow)
    assert family_of(CSVLogger(tmp_path)) is None
    assert len({family.logger for family in FAMILIES}) == len(FAMILIES) == 4


def test_a_logger_that_fails_costs_a_warning_and_none_of_the_others(tmp_path: Path) -> None:
    broken, csv = MLFlowLogger(tmp_path / "broken"), CSVLogger(tmp_path, "csv")
    with pytest.warns(GradWatchWarning) as caught:
        train([broken, csv], tmp_path, GradWatch(layer_cards=2))
    told = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert sum("is left out" in line for line in told) == 1
    assert sum("vanish" in line and "is left out" not in line for line in told) == 1
    assert not any("switched itself off" in line for line in told)
    # what it still takes it gets, and so does the other
    assert sum("grad_norm/net.0" in numbers for numbers in broken.numbers) == 6
    header = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "gradwatch/vanishing" in header
    assert "grad_norm/" not in header


def test_without_such_a_logger_no_page_is_made(tmp_path: Path) -> None:
    train(CSVLogger(tmp_path, "csv"), tmp_path)
    assert list(tmp_path.rglob("*tfevents*"))
    assert not list(tmp_path.rglob("gradwatch.*"))


def test_open_alerts_are_a_line_of_bounded_length() -> None:
    first, over, second = alert(9), alert(12, until=15), alert(20, layer="", kind="dead")
    assert in_a_line([first, over, second]) == "vanishing since step 9 in net.0; dead since step 20"
    assert in_a_line([over, replace(first, level="notice")]) == "none"
    many = [alert(step, layer="x" * 1000) for step in range(100)]
    assert in_a_line(many).endswith("; 95 more")
    assert len(in_a_line(many)) < 1000


def test_pages_come_at_alerts_and_farther_and_farther_apart(tmp_path: Path) -> None:
    begun = []

    def directory() -> str | None:
        begun.append(step)
        return None

    def attempt(sink: str, write: Any) -> None:
        if sink == "page of the run":
            write()

    delivery = Delivery(attempt, None, None, directory)  # type: ignore[arg-type]
    delivery.join([("MLFlowLogger 0", MLFlowLogger(tmp_path))])
    for step in range(0, 100_000, 10):
        delivery.tell([alert(step)], [alert(step)])
        delivery.go_on(step)
    assert begun[:5] == [0, 500, 1000, 1500, 2250]
    assert len(begun) == 14


def test_a_page_is_made_beside_the_events_and_taken_once(tmp_path: Path) -> None:
    train(CSVLogger(tmp_path, "csv"), tmp_path)
    (events,) = tmp_path.rglob("*tfevents*")
    maker = PageMaker(str(events.parent))
    assert maker.take() is None
    maker.begin()
    assert maker.take() is None  # a process of its own has not even begun
    made = maker.last()
    assert made == events.parent / page.NAME
    assert "gradwatch-data" in made.read_text()
    assert maker.take() is None
    assert not list(tmp_path.rglob("*.part"))


def test_a_page_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="`RUN_DIR` must hold what GradWatch wrote"):
        PageMaker(str(tmp_path)).last()


def test_a_page_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "CLOSE_S", 0.0)
    monkeypatch.setattr(page, "LIMIT_S", 0.0)
    maker = PageMaker(str(tmp_path))
    with pytest.raises(TimeoutError, match="make it by `gradwatch report"):
        maker.last()
    maker.begin()
    with pytest.raises(TimeoutError, match="the page was not there"):
        maker.take()
    maker.close()
