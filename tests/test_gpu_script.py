"""The script for a GPU: its order, its budgets and its files, and in small all that it does, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.__main__ import PIECES
from benchmarks.gpu.pieces import Piece, Row, Setting, run
from benchmarks.gpu.report import Report

ROOT = Path(__file__).parents[1]
DRY = Setting("cpu", is_dry=True)
MAY_NOT_RUN = {"1.3B", "tests"}
"""Pieces that a dry run leaves out: one is too large, the other needs a GPU."""
WITHOUT_LIGHTNING = "import sys\nsys.modules['pytorch_lightning'] = sys.modules['lightning'] = None\n"


def piece(name: str, *rows: Row, seconds: float = 1.0, then: Exception | None = None) -> Piece:
    def make(setting: Setting) -> Iterator[Row]:
        yield from rows
        if then is not None:
            raise then

    return Piece(name, name.title(), seconds, make)


def results(directory: Path) -> dict[str, list[tuple[str, str]]]:
    document = json.loads((directory / "gpu.json").read_text())
    return {key: [(row["name"], row["status"]) for row in part["rows"]] for key, part in document["pieces"].items()}


def test_a_failure_costs_the_rest_of_its_piece_alone(tmp_path: Path) -> None:
    pieces = [
        piece("one", Row("a", "right"), then=ValueError("broken | here")),
        piece("two", Row("b", "measured", {"time_ms": 1.25}, "a note")),
    ]
    report = Report(tmp_path, DRY)
    run(pieces, DRY, 60.0, report)
    assert results(tmp_path) == {"one": [("a", "right"), ("the rest", "WRONG")], "two": [("b", "measured")]}
    assert report.has_failed
    table = (tmp_path / "gpu.md").read_text()
    assert "| the rest | WRONG | ValueError: broken \\| here |" in table
    assert "| b | measured | time_ms 1.25 a note |" in table


def test_a_budget_ends_a_piece_and_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    def slow(setting: Setting) -> Iterator[Row]:
        for name in "abc":
            time.sleep(0.06)
            yield Row(name, "right")

    report = Report(tmp_path, DRY)
    run([Piece("slow", "Slow", 0.05, slow), piece("large", Row("a", "right"), seconds=1e6)], DRY, 60.0, report)
    assert results(tmp_path) == {
        "slow": [("a", "right"), ("the rest", "not run")],
        "large": [("everything", "not run")],
    }
    assert not report.has_failed


def test_what_was_measured_is_there_whatever_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run([piece("one", Row("a", "right"), then=KeyboardInterrupt())], DRY, 60.0, Report(tmp_path, DRY))  # type: ignore[arg-type]
    assert results(tmp_path) == {"one": [("a", "right")]}


def call(*arguments: Any, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    ran = call("--out", tmp_path / "out")
    assert (ran.returncode, ran.stderr) == (2, "This needs a CUDA device. `--dry` tries the script without one.\n")
    assert not (tmp_path / "out").exists()


def test_a_piece_that_is_not_there_is_refused() -> None:
    ran = call("--dry", "--only", "nothing")
    assert ran.returncode == 2
    assert "--only takes names of pieces, but ['nothing'] came; there are waiting, " in ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_runs_in_small_and_nothing_comes_out_wrong(tmp_path: Path) -> None:
    ran = call("--dry", "--out", tmp_path, "--budget", "800")
    found = results(tmp_path)
    wrong = [(name, row) for name, rows in found.items() for row, status in rows if status == "WRONG"]
    assert (ran.returncode, wrong) == (0, []), ran.stdout + ran.stderr
    assert list(found) == [each.name for each in PIECES]
    assert {name for name, rows in found.items() if rows[0][1] == "not run"} <= MAY_NOT_RUN


@pytest.mark.slow
def test_torch_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LIGHTNING)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ran = call("--dry", "--out", tmp_path, "--only", "numbers", "trainer", environment={"PYTHONPATH": path})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = results(tmp_path)
    assert {status for _, status in found["numbers"]} == {"right"}
    assert found["trainer"] == [("everything", "not run")]
