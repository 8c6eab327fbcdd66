"""How long the GradWatch tab takes to open over a sweep: seconds until the list, the heatmap and the small pictures.

Simulated runs of 20 layers and 300 steps, with the names that a sweep gives, a fifth of them sick; a real TensorBoard
that has read them all, and a real Chromium:

    python -m benchmarks.runs [--runs 20 60 200] [--directory runs_logs]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from playwright.sync_api import Browser
from torch.utils.tensorboard import SummaryWriter

from benchmarks.event_files import LOG_EVERY, Run
from benchmarks.screenshots import chromium
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.recorder import RunRecorder
from lightning_gradwatch.outputs.tensorboard import Writer

STEPS, LAYERS, TRIES = 300, 20, 5
VANISHING = Alert(
    kind="vanishing", level="alert", step=9, until_step=None, layer="model.encoder.layers.0.attention.out_proj",
    value=7.0, threshold=2.0, message="Gradients vanish with depth (step 9).", evidence="nineteen sigmoids",
    remedies=("ReLU", "normalisation layers"), summary="They shrink by 11 decades; the early layers starve.",
)  # fmt: skip
SETTINGS = itertools.product(range(1000), (4, 8, 12, 20), ("sigmoid", "relu", "gelu", "silu", "tanh"))


def names(num_runs: int) -> Iterator[str]:
    """As a sweep calls its runs: long, and alike at the beginning."""
    for i, (seed, depth, activation) in enumerate(itertools.islice(SETTINGS, num_runs)):
        yield f"sweep_digits_classifier_{activation}_depth{depth}_lr{0.001 * (1 + i % 10):.3f}_seed{seed}"


def write_sweep(directory: Path, num_runs: int) -> None:
    """The runs; every fifth has an open alert, every seventh one that is over, every eleventh a notice."""
    for i, name in enumerate(names(num_runs)):
        if (directory / name).exists():
            continue
        run, recorder, point = Run(LAYERS), RunRecorder(), 0
        with SummaryWriter(directory / name, max_queue=1000) as experiment:
            writer = Writer(experiment, Cards(0))
            for observation, snapshot in run.observations(STEPS):
                writer.record(recorder.take([observation], [snapshot] if snapshot else []))
                if observation.step // LOG_EVERY > point:
                    point = observation.step // LOG_EVERY
                    writer.publish(run.publication(observation), 0)
            writer.record(recorder.drain())
            writer.write_alerts(alerts := list(alerts_of(i)), len(alerts))


def alerts_of(place: int) -> Iterator[Alert]:
    """The alerts of a run, by its place in the sweep."""
    if place % 5 == 0:
        yield VANISHING
    elif place % 7 == 0:
        yield replace(VANISHING, until_step=120)
    elif place % 11 == 0:
        yield replace(VANISHING, level="notice", kind="exploding")


@contextlib.contextmanager
def tensorboard(directory: Path, num_runs: int) -> Iterator[str]:
    """TensorBoard on a free port, when it has read all runs; its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, read = f"http://localhost:{port}", b""
    try:
        while read.count(f'"last_step": {STEPS - 1}'.encode()) < num_runs:
            time.sleep(0.5)
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{address}/data/plugin/gradwatch/runs") as answer,
            ):
                read = answer.read()
        yield address
    finally:
        process.terminate()
        process.wait()


SEEN = """() => [...document.querySelectorAll(".run")].filter((one) => {
    const [box, list] = [one.getBoundingClientRect(), one.parentElement.getBoundingClientRect()];
    return box.right > list.left && box.left < list.right && box.bottom > list.top && box.top < list.bottom;
}).every((one) => {
    const canvas = one.querySelector("canvas");
    const { width, height } = canvas;
    return width > 0 && canvas.getContext("2d").getImageData(width / 2, height / 2, 1, 1).data[3] > 0;
})"""
"""Whether every run that can be seen in the list has its small picture."""


def open_once(browser: Browser, address: str) -> tuple[float, float, float, float]:
    """Seconds from the click until the list, the heatmap, all small pictures in sight, and everything stand."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(f"{address}/data/plugin_entry.html?name=gradwatch", wait_until="commit")
    page.locator(".run").first.wait_for()
    listed = time.perf_counter() - start
    page.locator("canvas.heat[data-from]").first.wait_for()
    drawn = time.perf_counter() - start
    page.wait_for_function(SEEN)
    pictured = time.perf_counter() - start
    page.locator("main[aria-busy=false]").wait_for()
    whole = time.perf_counter() - start
    context.close()
    return listed, drawn, pictured, whole


def main() -> None:
    """Write, serve, open, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[20, 60, 200])
    parser.add_argument("--directory", type=Path, default=Path("runs_logs"), help="where the logs go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'runs':>6} {'list s':>8} {'heatmap s':>10} {'pictures s':>11} {'all s':>7}   (median of {TRIES})")
    with chromium() as browser:
        for num_runs in arguments.runs:
            directory = arguments.directory / str(num_runs)
            write_sweep(directory, num_runs)
            with tensorboard(directory, num_runs) as address:
                tries = [open_once(browser, address) for _ in range(TRIES)]
            seconds = [statistics.median(values) for values in zip(*tries, strict=True)]
            widths = (8, 10, 11, 7)
            print(f"{num_runs:>6}", *(f"{one:>{width}.2f}" for one, width in zip(seconds, widths, strict=True)))


if __name__ == "__main__":
    main()
