"""A training that is killed at any moment leaves files that can be read, and everything that it had announced."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_gradwatch import GradWatchWarning
from lightning_gradwatch.outputs import announcing
from tests.servers import Inbox

KILLS = int(os.environ.get("GRADWATCH_KILLS", "6"))
"""``GRADWATCH_KILLS=50 pytest tests/test_killed.py`` takes two minutes."""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
@pytest.mark.timeout(30 + 10 * KILLS)
def test_killed_trainings_leave_what_they_had_announced_and_can_be_resumed(tmp_path: Path) -> None:
    with Inbox() as inbox:
        environment = {**os.environ, "GRADWATCH_NOTIFY": inbox.address(), "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-W", "ignore", "-m", "tests.killed", str(tmp_path), str(KILLS)]
        told = json.loads(subprocess.check_output(command, env=environment, text=True).splitlines()[-1])
    assert told["problems"] == []
    assert len(told["progress"]) == KILLS
    status, reached, end = told["end"]
    assert (status, reached) == (0, end)
    assert told["last_published"] == end - 1
    assert told["opened"] == sorted(set(told["opened"]))
    assert len(told["opened"]) >= 2
    messages = {int(match[1]) for m in inbox.messages if (match := re.search(r"opened .*\(step (\d+)\)", m["title"]))}
    assert messages
    assert messages <= set(told["opened"])


def test_the_check_finds_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An announcement without a line in the file, and files that are not whole, do not pass."""
    from tests import killed

    monkeypatch.setattr(announcing, "PAUSE_STEPS", 0)  # and so it is put back
    with pytest.warns(GradWatchWarning):
        killed.train(tmp_path, 40)
    (tmp_path / "console.txt").write_text("GradWatch, nonfinite: NaN or infinite values since step 24, in net.2.")
    assert killed.problems(tmp_path) == []
    run = tmp_path / "run"
    lines = (run / "alerts.jsonl").read_bytes()
    (run / "alerts.jsonl").write_bytes(lines[:30])
    assert "announced, but not in the alerts file: [24]" in killed.problems(tmp_path)
    (run / "alerts.jsonl").write_bytes(lines)
    for path in run.glob("flight*"):
        path.unlink()
    assert killed.problems(tmp_path) == ["announced, but no flight record"]
    assert killed.holes(tmp_path, 40, num_lost=0) == []
    assert killed.holes(tmp_path, 41, num_lost=0) == ["the record ends at step 39 of 41"]
