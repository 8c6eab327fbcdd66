"""What of us comes to the console: an alert in lines, above the progress bar, and a warning as Python knows it."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from lightning_gradwatch import GradWatchWarning
from lightning_gradwatch._lightning import warn
from lightning_gradwatch.console import shown_in_lines
from tests.cli.command import environment

SICK = """
import sys
from lightning.pytorch import Trainer, callbacks
from torch import nn
from lightning_gradwatch import GradWatch
from tests.tasks import Classifier, deep_net, digits
bar = getattr(callbacks, sys.argv[1])()
options = {"max_steps": 14, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
Trainer(callbacks=[GradWatch(), bar], **options).fit(Classifier(deep_net(nn.Sigmoid)), digits())
"""
ANNOUNCED = r"""GradWatch, vanishing: Gradients vanish with depth, since step 9, in net\.0
  What On the way back from layers such as .*
(       .*\n)*  Why  Between the loss and net\.0 the gradient loses .*
(       .*\n)*  Try  1\. ReLU, GELU or SiLU with He initialisation
       2\. .*
(       .*\n)*  Look the report\(\) of this GradWatch.*
"""


def in_a_terminal(command: list[str], directory: Path, columns: int) -> str:
    """What a command says in a window of so many columns."""
    ours, theirs = pty.openpty()
    variables = environment(COLUMNS=str(columns), LINES="40", TERM="xterm", OMP_NUM_THREADS="1")
    with subprocess.Popen(command, cwd=directory, env=variables, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            said += piece
    os.close(ours)
    assert process.returncode == 0, said.decode(errors="replace")
    return said.decode(errors="replace")


def shown(said: str) -> list[str]:
    """The lines that stay: what a carriage return takes back to its beginning is written over."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.replace("\r\n", "\n"))
    return [line.split("\r")[-1].rstrip() for line in plain.split("\n")]


@pytest.mark.slow
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_an_alert_is_told_in_lines_that_fit_the_window_and_above_the_bar(bar: str, tmp_path: Path) -> None:
    lines = shown(in_a_terminal([sys.executable, "-c", SICK, bar], tmp_path, 80))
    assert re.search(ANNOUNCED, "\n".join(lines))
    start = next(number for number, line in enumerate(lines) if line.startswith("GradWatch, vanishing"))
    end = next(number for number, line in enumerate(lines) if line.startswith("  Look "))
    assert max(map(len, lines[start : end + 1])) <= 80
    assert not [line for line in lines if "GradWatchWarning" in line or "warnings.warn" in line]


def test_neither_file_nor_category_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with shown_in_lines():
        said = warnings.formatwarning(GradWatchWarning("GradWatch: " + "word " * 20), GradWatchWarning, __file__, 7)
    assert said.startswith("GradWatch: word")
    assert said.endswith("word\n")
    assert max(map(len, said.splitlines())) <= 40


def test_other_warnings_look_as_ever() -> None:
    # Lightning has a format of its own for files under whatever is called "lightning", as a checkout of ours is.
    about = UserWarning("mine"), UserWarning, "/scripts/train.py", 7
    before = warnings.formatwarning(*about)
    with shown_in_lines():
        assert warnings.formatwarning(*about) == before
        assert "/scripts/train.py:7: UserWarning: mine" in before


def test_the_format_is_left_as_it_was_also_by_several_threads_and_after_an_error() -> None:
    before = warnings.formatwarning
    ends = threading.Barrier(4)

    def work() -> None:
        ends.wait()
        for _ in range(200):
            with shown_in_lines():
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(KeyError), shown_in_lines():
        raise KeyError
    assert warnings.formatwarning is before


def test_it_is_a_warning_that_can_be_caught_and_filtered() -> None:
    with pytest.warns(GradWatchWarning, match="^GradWatch, vanishing: bad$") as caught:
        warn("GradWatch, vanishing: bad")
    assert [w.category for w in caught] == [GradWatchWarning]
    with warnings.catch_warnings(record=True) as silent:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "GradWatch, vanishing", GradWatchWarning)
        warn("GradWatch, vanishing: bad")
        warn("GradWatch, exploding: bad")
    assert [str(w.message) for w in silent] == ["GradWatch, exploding: bad"]


def test_who_sends_warnings_to_the_log_gets_it_there(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        try:
            warn("GradWatch, vanishing: bad")
        finally:
            logging.captureWarnings(False)
    assert [r.getMessage() for r in caplog.records if r.name == "py.warnings"] == ["GradWatch, vanishing: bad\n"]


def test_where_warnings_are_errors_training_goes_on_and_the_log_tells(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("GradWatch, vanishing: bad")
    assert "GradWatch, vanishing: bad" in caplog.text
