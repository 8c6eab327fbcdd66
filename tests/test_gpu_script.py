"""The script for a GPU: its order, its budgets and its files, and in small all that it does, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.__main__ import PIECES
from benchmarks.gpu.correct import deterministic
from benchmarks.gpu.cost import contestants
from benchmarks.gpu.models import mlp, rows
from benchmarks.gpu.pieces import Piece, Row, Setting, run, tried
from benchmarks.gpu.report import Report
from benchmarks.gpu.traces import count
from benchmarks.gpu.training import Training, settings

ROOT = Path(__file__).parents[1]
DRY = Setting("cpu", is_dry=True)
BUDGET = 450.0
MAY_NOT_RUN = {"1.3B", "tests", "memory"}
"""Pieces that a dry run leaves out: one is too large, the others are about a GPU."""
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


def test_a_row_that_hangs_is_interrupted_and_the_next_piece_has_its_time(tmp_path: Path) -> None:
    def hang(setting: Setting) -> Iterator[Row]:
        yield Row("a", "right")
        while True:
            try:
                time.sleep(10)
            except Exception:  # as hooks and compilers do
                continue

    others, _ = signal.setitimer(signal.ITIMER_REAL, 200)
    start = time.monotonic()
    run([Piece("one", "One", 0.2, hang), piece("two", Row("b", "right"))], DRY, 60.0, Report(tmp_path, DRY))
    assert time.monotonic() - start < 5
    assert results(tmp_path) == {"one": [("a", "right"), ("the rest", "not run")], "two": [("b", "right")]}
    assert 190 < signal.getitimer(signal.ITIMER_REAL)[0] < 200  # whoever else has set an alarm is called in time
    signal.setitimer(signal.ITIMER_REAL, others)


def test_a_failing_row_costs_itself_alone() -> None:
    row = tried("a", lambda: [][1])  # type: ignore[arg-type, return-value]
    assert (row.name, row.status) == ("a", "WRONG")
    assert "IndexError" in row.note


def test_the_pieces_have_time_for_all_of_them_together() -> None:
    assert sum(each.seconds for each in PIECES) <= BUDGET


def test_a_figure_that_fails_is_no_right_answer() -> None:
    training = Training(mlp(4), rows(8, 64), settings(3, 2))
    assert training.troubles == ["nothing was watched"]
    training.step()
    assert training.troubles == []
    assert training.watcher is not None
    training.watcher._optional.take("histogram", None, lambda: [][1])
    assert training.watcher.instruments is not None
    training.watcher.instruments.window._groups = None
    assert len(training.troubles) == 2


def test_what_makes_results_reproducible_does_not_slow_what_is_measured_later() -> None:
    before = torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled()) == before


def test_a_trace_is_counted_by_what_it_does_to_the_host() -> None:
    events = [
        {"cat": "kernel", "name": "a"}, {"cat": "Kernel", "name": "b"}, {"name": "no category"},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)"},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pageable)"},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)"},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoD (Device -> Device)"},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel"}, {"cat": "cuda_runtime", "name": "cudaStreamSynchronize"},
    ]  # fmt: skip
    seen = {"kernels": 2, "waits": 1, "to the host": 2, "to the host, pageable": 1, "from the host": 1}
    assert {name: number for name, number in count(events).items() if number} == seen


def test_who_reads_every_number_on_the_host_takes_part_where_that_ends() -> None:
    assert [each.name for each in contestants() if each.reads_all] == [
        "add_histogram for each parameter",
        "wandb.watch",
    ]


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
