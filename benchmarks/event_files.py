"""How large event files get, and how long TensorBoard's two loaders take to read them.

10,000 publications of a model with 200 layers, written by the writer that trainings use, beside one scalar per layer:

    python -m benchmarks.event_files [--publications 10000] [--layers 200]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.data.server_ingester import SubprocessServerDataIngester, get_server_binary
from tensorboard.util.grpc_util import ChannelCredsType
from torch.utils.tensorboard import SummaryWriter

from lightning_gradwatch.core.histogram import MAX_ELEMENTS, log_histograms
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.records import Layer, Publication, Sample, Window
from lightning_gradwatch.outputs.tensorboard import Writer, _Course
from lightning_gradwatch.tensorboard.loader import SAMPLES

HISTOGRAM_EVERY = 10
SCORES = (
    "vanishing", "decades_lost", "exploding", "dead_layers", "detached_layers", "stalled", "underflow",
    "nonfinite_steps", "update_ratio", "weight_drift", "gradient_signal", "loss_lower_share", "loss_roughness",
)  # fmt: skip
"""The run-level numbers of an ordinary training, besides those of the total norm."""


def layers(num_layers: int) -> tuple[Layer, ...]:
    """Names as long as those of a transformer."""
    return tuple(Layer(f"model.encoder.layers.{i}.attention.out_proj", ()) for i in range(num_layers))


def publications(num_publications: int, num_layers: int, details: bool) -> Iterator[Publication]:
    """What a training hands to the writer: norms over twelve decades, and histograms of normally distributed gradients.

    Args:
        num_publications: How many.
        num_layers: Layers in each.
        details: Whether there are samples, scores and histograms besides the norms.
    """
    torch.manual_seed(0)
    model = layers(num_layers)
    depth = torch.linspace(-12, 0, num_layers + 1)
    for i in range(num_publications):
        norms = 10 ** (depth + 0.1 * torch.randn(num_layers + 1))
        window = Window(50, norms, norms * 0.8, norms * 0.9, norms * 1.5)
        if not details:
            yield Publication(50 * i, "", model, window, None, None, {})
            continue
        sample = Sample(50 * i, norms[1:] * 2, norms[1:] + 1, torch.rand(num_layers))
        gradients = [norm * torch.randn(MAX_ELEMENTS) for norm in norms[1:]] if i % HISTOGRAM_EVERY == 0 else []
        counts = log_histograms(gradients, range(num_layers), num_layers, i) if gradients else None
        scores = dict(zip(SCORES, torch.rand(len(SCORES)).tolist(), strict=True))
        ratios = dict(zip((layer.name for layer in model), torch.rand(num_layers).tolist(), strict=True))
        yield Publication(50 * i, "", model, window, sample, counts, scores, update_ratios=ratios)


class NormsWriter(Writer):
    """Writes the norms of the layers and nothing else."""

    def write(self, publication: Publication, num_alerts: int) -> None:
        """Write one event."""
        summary = Summary()
        trial_run = self._courses.setdefault("", _Course(""))
        trial_run.turn_to(tuple(layer.name for layer in publication.layers), None)
        self._add_quantity(summary, trial_run, GRAD_NORM, publication)
        self._experiment._get_file_writer().add_summary(summary, publication.step)


def write_publications(directory: Path, num_publications: int, num_layers: int, details: bool) -> None:
    """With the writer that trainings use; without details the norms alone."""
    with SummaryWriter(directory, max_queue=1000) as experiment:
        writer = (Writer if details else NormsWriter)(experiment)
        for publication in publications(num_publications, num_layers, details):
            writer.write(publication, 0)


def write_scalars(directory: Path, num_publications: int, num_layers: int) -> None:
    """One scalar per layer, as ``self.log`` would."""
    with SummaryWriter(directory, max_queue=1000) as experiment:
        for publication in publications(num_publications, num_layers, details=False):
            for layer, norm in zip(publication.layers, publication.window.last[1:].tolist(), strict=True):
                experiment.add_scalar(f"grad_norm/{layer.name}", norm, publication.step)


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
        steps = [series.max_step for tags in tensors.values() for tag, series in tags.items() if "/grad_norm" in tag]
        steps += [last.step for tags in scalars.values() for last in tags.values()]
        if steps and max(steps) == last_step:
            return time.perf_counter() - start
        time.sleep(0.01)


def main() -> None:
    """Write, read and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publications", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=200)
    size = parser.parse_args()
    shape = (size.publications, size.layers)
    print(f"{size.publications} publications of {size.layers} layers, torch {torch.__version__}")
    print(f"{'':<34} {'MB':>7} {'Rust s':>7} {'Python CPU s':>13}")
    cases: dict[str, Callable[[Path], None]] = {
        "norms of all layers": lambda directory: write_publications(directory, *shape, details=False),
        "everything GradWatch writes": lambda directory: write_publications(directory, *shape, details=True),
        "one scalar per layer": lambda directory: write_scalars(directory, *shape),
    }
    for name, write in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            megabytes = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
            rust = seconds_of_rust_loader(Path(folder), 50 * (size.publications - 1))
            python = seconds_of_python_loader(Path(folder))
            print(f"{name:<34} {megabytes:>7.1f} {rust:>7.2f} {python:>13.2f}", flush=True)


if __name__ == "__main__":
    main()
