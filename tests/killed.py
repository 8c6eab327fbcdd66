"""Trainings that are killed without warning, again and again, and resumed where they were: what is left of them.

``python -m tests.killed DIRECTORY KILLS`` prints one line of JSON with what was found.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.util.tensor_util import make_ndarray

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core.quantities.several import STEPS, STEPS_AROUND
from lightning_gradwatch.core.sampling import YOUNG_STEPS
from lightning_gradwatch.outputs import alerts_file, announcing, flight
from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.schema import Description
from tests.tasks import Classifier, Sponge, digits, quiet_trainer, read_events, scalars, small_net

ANNOUNCED = re.compile(r"GradWatch, nonfinite: .*? since step (\d+)")
EVERY = 25
"""Steps between two incidents."""
LOST_YOUNG, LOST = 20, 200
"""Steps that the record of a killed training may lack: of the first 1,000, and later."""


class Pace(pl.Callback):
    """Says how far the training is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(str(trainer.global_step))
        unfinished.replace(self.path)


class Every(pl.Callback):
    """Makes a gradient non-finite in a fixed rhythm."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step % EVERY == EVERY - 1:
            pl_module.net[2].weight.grad.view(-1)[0] = math.nan


def train(directory: Path, steps: int) -> None:
    """Train from the latest checkpoint on; every incident is announced on the console."""
    (directory / "run").mkdir(exist_ok=True)
    announcing.PAUSE_STEPS = 0  # in a long run one would wait for the next announcement longer and longer
    warnings.simplefilter("always", GradWatchWarning)
    torch.set_num_threads(1)
    save = ModelCheckpoint(
        directory / "saved", every_n_train_steps=10, save_top_k=1, filename="last", enable_version_counter=False
    )
    trainer = quiet_trainer(
        GradWatch(flight_steps=50), Every(), Sponge(), save, Pace(directory / "pace"),
        directory=directory / "run", max_steps=steps, enable_checkpointing=True, log_every_n_steps=1,
    )  # fmt: skip
    last = directory / "saved/last.ckpt"
    trainer.fit(Classifier(small_net()), digits(), ckpt_path=last if last.exists() else None)


def start(directory: Path, steps: int) -> int:
    """Train in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    try:
        with (directory / "console.txt").open("a") as console:
            os.dup2(console.fileno(), 1)
            os.dup2(console.fileno(), 2)
            train(directory, steps)
        os._exit(0)
    except BaseException as failure:
        (directory / "failure.txt").write_text(repr(failure))
        os._exit(1)


def pace(directory: Path) -> int:
    path = directory / "pace"
    return int(path.read_text()) if path.exists() else 0


def recorded_spans(directory: Path) -> list[tuple[int, int]]:
    """First and last step of every bin in the record; what was resumed from an earlier step stands instead."""
    events, spans = read_events(directory / "run"), list[tuple[int, int]]()
    for tag in sorted(tag for tag in events.Tags()["tensors"] if f"/{STEPS}" in tag and STEPS_AROUND not in tag):
        known = Description.decode(events.SummaryMetadata(tag).plugin_data.content)
        for event in events.Tensors(tag):
            bins = Bins.decode(make_ndarray(event.tensor_proto).tobytes(), len(known.layers), len(known.lines))
            spans = [span for span in spans if span[1] < bins.first[0]]
            spans += list(zip(bins.first.tolist(), bins.last.tolist(), strict=True))
    return spans


def holes(directory: Path, num_steps: int, num_lost: int) -> list[str]:
    """Steps that the record lacks, but for so many at its end."""
    spans, expected = recorded_spans(directory), 0
    for first, last in spans:
        if first != expected:
            return [f"the record lacks the steps {expected} to {first - 1}"]
        expected = last + 1
    return [f"the record ends at step {expected - 1} of {num_steps}"] if expected < num_steps - num_lost else []


def problems(directory: Path) -> list[str]:
    """What a reader would stumble over after a kill, and what was announced and is nowhere."""
    found = [(directory / "failure.txt").read_text()] if (directory / "failure.txt").exists() else []
    announced = {int(step) for step in ANNOUNCED.findall((directory / "console.txt").read_text())}
    filed = {line["step"] for line in alerts_file.read(directory / "run") if line["event"] == "opened"}
    recorded = set()
    for path in flight.files(directory / "run"):
        first, steps = flight.read(path)
        recorded |= {line["step"] for line in steps if line.get("total_norm") == "nan"}
        if not steps or steps[-1]["step"] != first["step"]:
            found.append(f"{path.name} is not whole")
    if announced - filed:
        found.append(f"announced, but not in the alerts file: {sorted(announced - filed)}")
    if announced and not announced & recorded:
        found.append("announced, but no flight record")
    events = read_events(directory / "run")
    if announced and "gradwatch/total_norm" not in events.Tags()["scalars"]:
        found.append("the event file holds nothing")
    num_steps = pace(directory)
    return found + holes(directory, num_steps, LOST_YOUNG if num_steps <= YOUNG_STEPS else LOST)


def run(directory: Path, kills: int) -> dict[str, Any]:
    """Kill a training, look at what it left, resume it; at last let it end."""
    chance = random.Random(0)
    found: list[str] = []
    progress: list[int] = []
    for number in range(kills):
        child, before = start(directory, 10**9), pace(directory)
        while pace(directory) in (0, before) and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.8))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        progress.append(pace(directory))
        found += [f"kill {number}: {problem}" for problem in problems(directory)]
    end = max(progress) + 2 * EVERY
    _, status = os.waitpid(start(directory, end), 0)
    found += [f"end: {problem}" for problem in [*problems(directory), *holes(directory, end, num_lost=0)]]
    lines = alerts_file.read(directory / "run")
    text = (directory / "run" / alerts_file.NAME).read_text()
    return {
        "kills": kills,
        "problems": found,
        "progress": progress,
        "end": [status, pace(directory), end],
        "opened": sorted(line["step"] for line in lines if line["event"] == "opened"),
        "torn_lines": text.count("\n") - len(lines),
        "records": len(flight.files(directory / "run")),
        "last_published": max(scalars(read_events(directory / "run"), "gradwatch/total_norm")),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
