"""A disk that fills up in the middle of a run: training goes on, and what was written before can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_gradwatch.outputs import alerts_file, flight

TRAIN = """
import json, resource, signal, sys, traceback, warnings
from lightning_gradwatch import GradWatch, GradWatchWarning
from tests.killed import Every
from tests.tasks import Classifier, Sponge, digits, quiet_trainer, small_net

directory, limit = sys.argv[1], int(sys.argv[2])
if limit:  # no file may grow beyond it
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", GradWatchWarning)
    trainer = quiet_trainer(
        GradWatch(log_every_n_steps=1, flight_steps=50, on_alert="checkpoint"), Every(), Sponge(),
        directory=directory, max_steps=200, log_every_n_steps=10**6,
    )
    try:
        trainer.fit(Classifier(small_net()), digits())
        frames = ["finalize"]
    except OSError as failure:  # TensorBoard's own writer, when Lightning closes it after training
        frames = [frame.name for frame in traceback.extract_tb(failure.__traceback__)]
told = [str(w.message) for w in caught if w.category is GradWatchWarning and "nonfinite:" not in str(w.message)]
print(json.dumps([trainer.global_step, told, "finalize" in frames]))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 150 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(place)]
    if os.name != "posix" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def train(directory: Path, limit: int = 0) -> tuple[int, list[str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, str(directory), str(limit)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    steps, told, is_after_training = json.loads(done.stdout.splitlines()[-1])
    assert is_after_training
    return steps, told


@pytest.mark.slow
def test_a_disk_that_fills_up(small_disk: Path) -> None:
    steps, told = train(small_disk)
    assert steps == 200
    assert any("No space left" in message for message in told)
    assert len(told) <= 8
    assert alerts_file.read(small_disk)
    assert all(flight.read(path) for path in flight.files(small_disk))


@pytest.mark.slow
def test_files_that_may_not_grow(tmp_path: Path) -> None:
    steps, told = train(tmp_path, limit=12_000)
    assert steps == 200
    assert any("File too large" in message for message in told)
    assert len(told) <= 8
    assert len(alerts_file.read(tmp_path)) >= 5
    assert all(flight.read(path) for path in flight.files(tmp_path))
