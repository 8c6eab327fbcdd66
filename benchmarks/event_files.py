"""How large the record of a run gets, and how long TensorBoard's two loaders and ``gradwatch report`` take to read it.

Simulated runs of 200 layers go through the recorder and the writer that trainings use, a sample every ten steps and
run-level numbers every fifty, beside one scalar per layer as ``self.log`` would write it:

    python -m benchmarks.event_files [--layers 200] [--longest 10000000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.data.server_ingester import SubprocessServerDataIngester, get_server_binary
from tensorboard.util.grpc_util import ChannelCredsType
from torch.utils.tensorboard import SummaryWriter

from lightning_gradwatch.cli.logs import Logs
from lightning_gradwatch.core.histogram import MAX_ELEMENTS, log_histograms
from lightning_gradwatch.core.records import Layer, Observation, Publication, Window
from lightning_gradwatch.core.sampling import HOME_EVERY, HOME_EVERY_LATER, THOROUGH_EVERY, YOUNG_STEPS, Sampling
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.recorder import RunRecorder
from lightning_gradwatch.outputs.tensorboard import Writer
from lightning_gradwatch.outputs.thinning import Thinning
from lightning_gradwatch.tensorboard.loader import SAMPLES

LOG_EVERY = 50
SAMPLE_EVERY = 10
SCORES = (
    "vanishing", "decades_lost", "exploding", "dead_layers", "detached_layers", "stalled", "underflow",
    "nonfinite_steps", "update_ratio", "weight_drift", "gradient_signal", "loss_lower_share", "loss_roughness",
)  # fmt: skip
"""The run-level numbers of an ordinary training, besides those of the total norm."""


class Run:
    """A simulated run: norms over twelve decades that scatter by a quarter, and bell-shaped gradients.

    Args:
        num_layers: Layers of the model, with names as long as those of a transformer.
    """

    def __init__(self, num_layers: int) -> None:
        torch.manual_seed(0)
        self.layers = tuple(Layer(f"model.encoder.layers.{i}.attention.out_proj", ()) for i in range(num_layers))
        self._depth = torch.linspace(-12, 0, num_layers + 1)
        self._sampling = Sampling(Schedule())
        gradients = [torch.randn(MAX_ELEMENTS)] * num_layers
        self._counts = log_histograms(gradients, range(num_layers), num_layers, 0)

    def observations(self, num_steps: int) -> Iterator[tuple[Observation, Snapshot | None]]:
        """What comes to the host, with a sample at the end of most of it."""
        step, num_samples = 0, 0
        while step < num_steps:
            size = min(HOME_EVERY if step < YOUNG_STEPS else HOME_EVERY_LATER, SAMPLE_EVERY, num_steps - step)
            steps = tuple(range(step, step + size))
            norms = 10 ** (self._depth + 0.1 * torch.randn(size, len(self._depth)))
            step += size
            num_samples += 1
            losses = tuple(torch.rand(size).tolist())
            unknown = (None,) * size
            yield (
                Observation(
                    steps[-1], self.layers, steps, norms, losses, unknown, 0.1, frozenset(), None, None, None, False
                ),
                self._snapshot(steps[-1], norms[-1, 1:], num_samples % THOROUGH_EVERY == 0),
            )

    def _snapshot(self, step: int, norms: torch.Tensor, is_thorough: bool) -> Snapshot:
        if not is_thorough:
            return Snapshot(step, "", self.layers, output_grad_norm=norms * 2)
        num_layers, self._sampling.num_steps = len(self.layers), step
        counts = self._counts if self._sampling.takes_histogram(10, num_layers) else None
        shares = torch.rand(num_layers)
        ratios = dict(zip((layer.name for layer in self.layers), shares.tolist(), strict=True))
        return Snapshot(step, "", self.layers, norms * 2, norms + 1, shares, histogram=counts, update_ratios=ratios)

    def publication(self, observation: Observation) -> Publication:
        """Run-level numbers at its last step."""
        norms = observation.norms[-1]
        scores = dict(zip(SCORES, torch.rand(len(SCORES)).tolist(), strict=True))
        return Publication(
            observation.step, "", self.layers, Window(50, norms, norms * 0.8, norms * 0.9, norms * 1.5), scores
        )


def write_record(directory: Path, num_steps: int, num_layers: int) -> None:
    """As into a file of GradWatch's own."""
    run, recorder, thinning, point = Run(num_layers), RunRecorder(), Thinning(), 0
    with SummaryWriter(directory, max_queue=1000) as experiment:
        writer = Writer(experiment, Cards(8))
        for observation, snapshot in run.observations(num_steps):
            writer.record(recorder.take([observation], [snapshot] if snapshot else []))
            if snapshot is not None and snapshot.histogram is not None:
                writer.show(snapshot)
            if observation.step // LOG_EVERY > point:
                point = observation.step // LOG_EVERY
                if thinning.passes(observation.step):
                    writer.publish(run.publication(observation), 0)
        writer.record(recorder.drain())


def write_scalars(directory: Path, num_steps: int, num_layers: int) -> None:
    """One scalar per layer at every step, as ``self.log`` would."""
    with SummaryWriter(directory, max_queue=1000) as experiment:
        for observation, _ in Run(num_layers).observations(num_steps):
            for step, norms in zip(observation.steps, observation.norms.tolist(), strict=True):
                for layer, norm in zip(observation.layers, norms[1:], strict=True):
                    experiment.add_scalar(f"grad_norm/{layer.name}", norm, step)


def most_events(directory: Path) -> int:
    """Events of the tag that has most of them."""
    counts: Counter[str] = Counter()
    for path in directory.iterdir():
        for event in LegacyEventFileLoader(str(path)).Load():
            counts.update(value.tag for value in event.summary.value)
    return max(counts.values())


def seconds_of_python_loader(directory: Path) -> float:
    """Seconds of one core until the loader of ``--load_fast=false`` has read everything."""
    start = time.process_time()
    loader = EventMultiplexer(tensor_size_guidance={"gradwatch": SAMPLES})
    loader.AddRunsFromDirectory(str(directory))
    loader.Reload()
    return time.process_time() - start


def seconds_of_rust_loader(directory: Path, last_step: int) -> float:
    """Seconds until the data server, its start included, has read everything."""
    server: Any = SubprocessServerDataIngester(
        server_binary=get_server_binary(),
        logdir=str(directory),
        reload_interval=1,
        channel_creds_type=ChannelCredsType.LOCAL,
        samples_per_plugin={"gradwatch": SAMPLES},
    )
    start = time.perf_counter()
    server.start()
    query: dict[str, Any] = {"ctx": None, "experiment_id": ""}
    while True:
        tensors = server.data_provider.list_tensors(plugin_name="gradwatch", **query)
        scalars = server.data_provider.read_last_scalars(plugin_name="scalars", **query)
        steps = [series.max_step for tags in tensors.values() for series in tags.values()]
        steps += [last.step for tags in scalars.values() for last in tags.values()]
        if steps and max(steps) == last_step:
            return time.perf_counter() - start
        time.sleep(0.01)


def seconds_of_command(directory: Path) -> float:
    """Seconds of one core until ``gradwatch report`` has read everything."""
    start = time.process_time()
    Logs(directory).reload()
    return time.process_time() - start


def main() -> None:
    """Write, read and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--longest", type=int, default=10_000_000)
    size = parser.parse_args()
    cases: list[tuple[str, Callable[[Path, int, int], None], int, int]] = [
        ("the record", write_record, 1_000, size.layers),
        ("the record", write_record, 10_000, size.layers),
        ("the record", write_record, size.longest, size.layers),
        ("the record", write_record, 1_000, 10_000),
        ("the record", write_record, 5_000, 10_000),
        ("one scalar per layer", write_scalars, 10_000, size.layers),
    ]
    print(f"torch {torch.__version__}")
    columns = (
        ("", -22), ("steps", 10), ("layers", 7), ("MB", 7), ("B/step", 7), ("most events", 12), ("Rust s", 7),
        ("Python CPU s", 13), ("command CPU s", 14),
    )  # fmt: skip
    print(*(f"{name:{'<' if width < 0 else '>'}{abs(width)}}" for name, width in columns))
    for name, write, num_steps, num_layers in cases:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), num_steps, num_layers)
            num_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
            rust = seconds_of_rust_loader(Path(folder), num_steps - 1)
            python = seconds_of_python_loader(Path(folder))
            command = seconds_of_command(Path(folder))
            print(
                f"{name:<22} {num_steps:>10} {num_layers:>7} {num_bytes / 1e6:>7.1f} {num_bytes / num_steps:>7.0f} "
                f"{most_events(Path(folder)):>12} {rust:>7.2f} {python:>13.2f} {command:>14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
