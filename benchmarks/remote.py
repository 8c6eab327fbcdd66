"""What a slow network costs a training whose run is kept at a URL.

A store of objects in memory, each request to which takes as long as you say, and the same training beside it with a
directory on the disk, with TensorBoard's own writer at the URL (without and with GradWatch), and without GradWatch:

    python -m benchmarks.remote [--milliseconds 50] [--steps 400]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import fsspec
import torch
from fsspec.implementations.memory import MemoryFileSystem
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch


class SlowStore(MemoryFileSystem):  # type: ignore[misc]
    """A store as s3fs shows it: who appends reads the whole file and writes it anew."""

    protocol = "slow"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    seconds = 0.0
    num_requests = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("slow://", "memory://"))

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        before = self.cat_file(path) if "a" in mode and self.isfile(path) else b""
        self._request()
        file = super()._open(path, mode.replace("a", "w"), *arguments, **options)
        file.write(before)
        return file

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        """Read a file."""
        self._request()
        return super().cat_file(path, *arguments, **options)

    def _request(self) -> None:
        SlowStore.num_requests += 1
        time.sleep(SlowStore.seconds)


class Network(LightningModule):
    """Twenty sigmoids: an alert comes for sure."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*(part for _ in range(20) for part in (nn.Linear(256, 256), nn.Sigmoid())))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """A loss, which is logged."""
        loss: Tensor = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Look at the clock."""
        self.times.append(time.perf_counter())


def measure(steps: int, logger: Any, watch: GradWatch | None) -> tuple[float, float, float, int]:
    """Median and longest step and what comes after the last one, in seconds; and the number of requests."""
    clock = Clock()
    SlowStore.num_requests = 0
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[*([watch] if watch else []), clock],
        log_every_n_steps=5,
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.randn(64 * 32, 256)), batch_size=64)
    trainer.fit(Network(), data)
    end = time.perf_counter() - clock.times[-1]
    lengths = [after - before for before, after in zip(clock.times[20:], clock.times[21:], strict=False)]
    return statistics.median(lengths), max(lengths), end, SlowStore.num_requests


def main() -> None:
    """Measure each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milliseconds", type=float, default=50.0, help="how long a request takes (default: 50)")
    parser.add_argument("--steps", type=int, default=400, help="steps of each training (default: 400)")
    options = parser.parse_args()
    SlowStore.seconds = options.milliseconds / 1000
    fsspec.register_implementation("slow", SlowStore, clobber=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as disk:
        ways: dict[str, Callable[[], tuple[Any, GradWatch | None]]] = {
            "no GradWatch, no logger": lambda: (False, None),
            "GradWatch(record=<disk>)": lambda: (False, GradWatch(record=disk)),
            "GradWatch(record=<URL>)": lambda: (False, GradWatch(record="slow://bucket/record")),
            "TensorBoardLogger(<URL>), no GradWatch": lambda: (TensorBoardLogger("slow://bucket/alone"), None),
            "TensorBoardLogger(<URL>), GradWatch()": lambda: (TensorBoardLogger("slow://bucket/both"), GradWatch()),
        }
        measure(50, *ways["GradWatch(record=<disk>)"]())  # what is made once is made here
        found = {name: measure(options.steps, *way()) for name, way in ways.items()}
    base = found["GradWatch(record=<disk>)"][0]
    print(f"{options.steps} steps, {options.milliseconds:g} ms a request")
    print(f"{'':<40} {'median step':>12} {'of disk':>8} {'longest':>9} {'after':>8} {'requests':>9}")
    for name, (median, longest, end, requests) in found.items():
        row = f"{1e3 * median:>9.2f} ms {median / base:>8.2f} {1e3 * longest:>6.0f} ms {end:>6.2f} s {requests:>9}"
        print(f"{name:<40} {row}")


if __name__ == "__main__":
    main()
