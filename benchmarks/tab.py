"""How long the tab takes for a run of very many layers, in a real TensorBoard and a real Chromium.

A record of so many layers and columns, each norm with noise of its own, is written and loaded; then a page is opened on
it again and again, and zoomed, panned and pointed at. Times are medians, in milliseconds of this machine:

    python -m benchmarks.tab [--layers 10000] [--columns 2000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from playwright.sync_api import Page
from torch.utils.tensorboard import SummaryWriter

from benchmarks.screenshots import chromium, tensorboard
from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.quantities.several import STEPS
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.recorder import Event, Value
from lightning_gradwatch.outputs.tensorboard import Writer
from lightning_gradwatch.reading.bins import reduce_steps
from lightning_gradwatch.reading.schema import Description

ROLES = ("input_norm", "q_proj", "k_proj", "v_proj", "o_proj", "post_norm", "gate_proj", "up_proj", "down_proj", "moe")
BLOCK = 100
"""Steps that are written at once."""
_DRAWN = "performance.getEntriesByName('gradwatch-drawn').at(-1)"
_HOVER = """(share) => {
    const plot = document.querySelector("[role=application]");
    const { left, top, width, height } = plot.getBoundingClientRect();
    const where = { clientX: left + share * width, clientY: top + (1 - share) * height, bubbles: true };
    const start = performance.now();
    plot.dispatchEvent(new PointerEvent("pointermove", where));
    document.querySelector(".tooltip").getBoundingClientRect();
    return performance.now() - start;
}"""


def write(directory: Path, num_layers: int, num_steps: int) -> int:
    """A run in which every step has a column; its size in bytes."""
    layers = tuple(f"model.layers.{i // len(ROLES)}.{ROLES[i % len(ROLES)]}" for i in range(num_layers))
    offsets = np.array([-1.5 if name.endswith("norm") else 0.0 for name in layers]) + np.linspace(-2, 0, num_layers)
    elements = tuple(4096 if name.endswith("norm") else 4096**2 for name in layers)
    noise, about = np.random.default_rng(0), Description(STEPS, layers=layers, elements=elements)
    with SummaryWriter(str(directory)) as experiment:
        writer, tag = Writer(experiment, Cards(0)), metrics.part_tag(metrics.layers_tag(STEPS, 0, ""), 0)
        for first in range(0, num_steps, BLOCK):
            steps = np.arange(first, min(first + BLOCK, num_steps))
            norms = 10 ** (offsets + 0.1 * noise.standard_normal((len(steps), num_layers)))
            bins = reduce_steps(steps, norms.astype(np.float32), np.empty((len(steps), 0), np.float32), 1)
            content = np.frombuffer(bins.encode(), np.uint8)
            writer.record([Event(int(steps[-1]), (Value(tag, about, content),))])
        writer.write_alerts((), 0)
    return sum(path.stat().st_size for path in directory.iterdir())


def wait_until_loaded(address: str, last_step: int) -> float:
    """Seconds until TensorBoard has read everything."""
    start = time.perf_counter()
    while True:
        with urllib.request.urlopen(f"{address}/data/plugin/gradwatch/runs") as answer:
            if [run["last_step"] for run in json.load(answer)["runs"]] == [last_step]:
                return time.perf_counter() - start
        time.sleep(0.05)


def measure(page: Page, address: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds by what was done."""
    settled: Callable[[], Any] = page.locator("main[aria-busy=false]").wait_for
    times: dict[str, list[float]] = {name: [] for name in ("first picture", "picture again", "zoom or pan", "hover")}
    for turn in range(repeats):
        page.goto(f"{address}/data/plugin_entry.html?name=gradwatch&turn={turn}")
        settled()
        drawn = page.evaluate(f"{_DRAWN}.startTime + {_DRAWN}.duration")
        times["picture again" if turn else "first picture"].append(drawn)
        page.locator("[role=application]").focus()
        for key in ("Home", "+", "+", "-", "Escape"):
            page.keyboard.press(key)
            page.wait_for_timeout(100)
            settled()
            if key != "Home":
                times["zoom or pan"].append(page.evaluate(f"{_DRAWN}.duration"))
        times["hover"] += [page.evaluate(_HOVER, share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    return times


def main() -> None:
    """Write, load, open and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    size = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        num_bytes = write(Path(folder) / "run", size.layers, size.columns)
        with tensorboard(Path(folder), word="run") as address:
            loaded = wait_until_loaded(address, size.columns - 1)
            page, received = browser.new_page(viewport={"width": 1280, "height": 1000}), list[int]()
            page.on("response", lambda answer: received.append(int(answer.headers.get("content-length", 0))))
            times = measure(page, address, size.repeats)
            usage = page.context.new_cdp_session(page).send("Runtime.getHeapUsage")
    print(f"{size.layers:,} layers x {size.columns:,} columns, {num_bytes / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}")
    print(f"TensorBoard had loaded it after {loaded:.1f} s more")
    for name, found in times.items():
        print(f"{name:<14} {median(found):>7.0f} ms, at most {max(found):>6.0f}")
    heap = (usage["usedSize"] + usage["backingStorageSize"]) / 1e6
    print(
        f"the page holds {heap:.0f} MB and received {sum(received) / 1e6 / size.repeats:.1f} MB each time it was opened"
    )


if __name__ == "__main__":
    main()
