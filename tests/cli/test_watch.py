"""``gradwatch watch``, in a real terminal, beside a real training."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, ConsoleDimensions

from lightning_gradwatch.cli.logs import Logs
from lightning_gradwatch.cli.main import build_parser
from lightning_gradwatch.cli.terminal import Scene
from lightning_gradwatch.cli.watching import _fitted, _news
from lightning_gradwatch.outputs import alerts_file
from tests.cli.command import COMMAND, alert, environment, here
from tests.cli.terminal import HOME, Terminal
from tests.tensorboard.browser import Log, write_run

LAYERS = ["a", "b", "c"]
TRAINING = """
import sys
from pathlib import Path
from torch import nn
from tests.tasks import Classifier, deep_net, digits, quiet_trainer
from lightning_gradwatch import GradWatch
quiet_trainer(GradWatch(), directory=Path(sys.argv[1]), max_steps=30, log_every_n_steps=2).fit(
    Classifier(deep_net(nn.Sigmoid, depth=12)), digits()
)
"""


@contextmanager
def training(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A training in a process of its own."""
    command = [sys.executable, "-c", TRAINING, str(directory)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_training_is_followed_from_before_its_first_step_to_its_alert(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    with Terminal("watch", directory, "--every", "0.2", "--until-alert") as terminal:
        terminal.wait_for("Waiting for GradWatch to write to")
        with training(directory):
            assert terminal.end() == 1
        assert terminal.is_as_before
        assert "SICK" in terminal.left
        assert "Gradients vanish with depth" in terminal.left
        assert "Traceback" not in terminal.left


def test_it_ends_after_a_training_has_ended(tmp_path: Path) -> None:
    write_run(tmp_path, LAYERS, {0: [1.0] * 3})
    with Terminal("watch", tmp_path, "--every", "0.2", "--until-idle", "1") as terminal:
        assert terminal.end() == 0
        assert "HEALTHY" in terminal.left


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_it_ends_cleanly_whenever_it_is_told_to(logs: Path, how: str) -> None:
    with Terminal("watch", logs, "--every", "0.2") as terminal:
        terminal.wait_for("SICK")
        if how == "Ctrl-C":
            terminal.press(b"\x03")
        else:
            terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 1
        assert terminal.is_as_before
        assert "SICK" in terminal.left
        assert "Traceback" not in terminal.left


def redraws(terminal: Terminal) -> int:
    return terminal.output.count(HOME)


def test_it_redraws_only_what_has_changed(tmp_path: Path) -> None:
    log = Log(tmp_path, LAYERS)
    log.write(1, [1.0] * 3)
    log.flush()
    with Terminal("watch", tmp_path, "--every", "0.1") as terminal:
        terminal.wait_for("step 1")
        before = redraws(terminal)
        time.sleep(1.5)  # fifteen looks without news
        assert redraws(terminal) == before
        log.write(2345, [1.0] * 3)
        log.flush()
        terminal.wait_for("2,345")
        assert redraws(terminal) > before
        terminal.press(b"\x03")
        assert terminal.end() == 0
    log.close()


def test_it_follows_the_size_of_the_window(logs: Path) -> None:
    with Terminal("watch", logs / "sick", "--every", "600", rows=40, columns=100) as terminal:
        terminal.wait_for("SICK")
        before = redraws(terminal)
        terminal.resize(20, 60)
        end = time.monotonic() + 30
        while redraws(terminal) == before:
            assert time.monotonic() < end
            time.sleep(0.05)
        terminal.press(b"\x03")
        assert terminal.end() == 1


def test_a_run_that_begins_anew_in_its_directory_is_followed(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    write_run(directory, LAYERS, {10: [1.0] * 3})
    with Terminal("watch", tmp_path, "--every", "0.1") as terminal:
        terminal.wait_for("step 10")
        shutil.rmtree(directory)
        terminal.wait_for("Waiting for GradWatch")
        write_run(directory, LAYERS, {4321: [1.0] * 3})
        terminal.wait_for("4,321")
        terminal.press(b"\x03")
        assert terminal.end() == 0


def test_without_a_terminal_it_tells_in_a_line_what_has_changed(tmp_path: Path) -> None:
    write_run(tmp_path / "one", LAYERS, {0: [1.0] * 3})
    command = [*COMMAND, "watch", str(tmp_path), "--every", "0.1", "--until-alert"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    alerts_file.append(tmp_path / "two", "opened", alert(7, level="notice"))
    lines.append(process.stdout.readline())
    alerts_file.append(tmp_path / "two", "escalated", alert(7))
    rest, _ = process.communicate(timeout=60)
    lines += rest.splitlines(keepends=True)
    assert process.returncode == 1
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        "healthy: one: No alert up to step 0.\n",
        "notice: two: Gradients vanish with depth since step 7, in a.\n",
        "sick: two: Gradients vanish with depth since step 7, in a.\n",
    ]


def test_where_nothing_was_ever_written_it_says_so(tmp_path: Path, capsys: Any) -> None:
    status, out, err = here(capsys, "watch", tmp_path / "x", "--every", "0.1", "--until-idle", "0.3")
    assert (status, out) == (2, "")
    assert "`RUN_DIR` must be where GradWatch writes" in err
    assert "To cure it" in err


def test_a_file_is_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    status, _, err = here(capsys, "watch", tmp_path / "file")
    assert status == 2
    assert "which is a file" in err


@pytest.mark.parametrize("height", [30, 40, 60])
@pytest.mark.parametrize("run", ["sick", "gan", "recurrent"])
def test_the_picture_makes_room_for_the_words(logs: Path, run: str, height: int) -> None:
    console = Console(width=90, height=height, force_terminal=True, file=io.StringIO())
    source = Logs(logs / run)
    view = _fitted(source.reload(), Scene(source, console))
    assert len(console.render_lines(view)) <= height


@pytest.mark.timeout(60)
def test_a_window_that_changes_while_it_is_drawn_is_drawn_anew(tmp_path: Path) -> None:
    write_run(tmp_path, LAYERS, {0: [1.0] * 3})
    console = Console(width=100, height=40, file=io.StringIO())
    options = build_parser().parse_args(["watch", str(tmp_path), "--every", "600"])
    news = _news(Scene(Logs(tmp_path, None), console, options.quantity), options)
    drawn = []
    for _ in range(2):
        next(news)
        drawn.append(console.size)
        console.size = ConsoleDimensions(60, 20)  # before the wait for the next news begins
    assert drawn == [(100, 40), (60, 20)]
