"""Trains under FSDP2 and tensor parallelism, one process per rank, and tells what GradWatch saw; run by its test."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from lightning_gradwatch import GradWatch, GradWatchWarning, _lightning
from lightning_gradwatch.core import reader
from lightning_gradwatch.core.measure import ParameterMeter
from tests.setups.processes import tell
from tests.tasks import quiet_trainer, watchers_of

NUM_STEPS, EVERY, BATCH, LR = 26, 5, 8, 0.05
SEQUENCE = 4
FOR_FOUR = ("hybrid", "grid")
"""Replicas of shards (HSDP), and shards of what tensor parallelism has cut: for four ranks."""
PLAN: dict[str, Any] = {"1": ColwiseParallel(), "3": RowwiseParallel()}
TENSOR_PARALLEL: dict[str, dict[str, Any]] = {
    "tensor": PLAN,
    "grid": PLAN,
    "sequence": {
        "0": SequenceParallel(),
        "1": ColwiseParallel(input_layouts=Shard(1)),
        "3": RowwiseParallel(output_layouts=Replicate()),
    },
    "kept": {"1": ColwiseParallel(use_local_output=False), "3": RowwiseParallel()},
    "gathered": {"1": ColwiseParallel(output_layouts=Replicate()), "3": RowwiseParallel(input_layouts=Replicate())},
    "summed": {
        "3": RowwiseParallel(input_layouts=Replicate(), use_local_output=False),
        "4": ColwiseParallel(output_layouts=Replicate()),
    },
}
"""Plans for the layers: outputs stay in parts, also as a ``DTensor``, or each rank gets the whole of them. In the last
one the ranks have not yet added up what each has of the gradient at the output of layer 3."""
OUTPUTS = ("kept", "gathered", "summed")
"""Those that are there for the gradients at the layers' outputs."""
MAX_NORM = 1.0
NUM_RANKS = int(os.environ.get("WORLD_SIZE", "1"))


def make_net(kind: str) -> nn.Sequential:
    """Layers of every fate: cut evenly and unevenly, empty on a rank, normalisation that stays whole."""
    torch.manual_seed(0)
    if kind == "sick":
        return nn.Sequential(*(layer for _ in range(16) for layer in (nn.Linear(8, 8), nn.Sigmoid())), nn.Linear(8, 1))
    return nn.Sequential(
        nn.LayerNorm(8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3), nn.Linear(3, 1)
    )


def make_data() -> Tensor:
    return torch.randn(64 * BATCH, SEQUENCE, 8, generator=torch.Generator().manual_seed(1))


def make_loss(net: nn.Module, x: Tensor, part: Tensor | None = None) -> Tensor:
    """Regression of the mean; with sequence parallelism a rank feeds only its part of the time steps."""
    y: Tensor = net(x if part is None else part)
    return (y - x.mean(-1, keepdim=True)).square().mean()


class Regression(pl.LightningModule):
    """Every kind of parallelism that a ``DeviceMesh`` offers, by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.net = make_net(kind)

    def configure_model(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        if self.kind == "hybrid":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
        if self.kind not in TENSOR_PARALLEL:
            self.shard(mesh)
            return
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], TENSOR_PARALLEL[self.kind])
        if self.kind == "grid":
            self.shard(mesh)

    def shard(self, mesh: DeviceMesh) -> None:
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                if self.kind == "compiled":
                    layer.compile(backend="aot_eager")
                fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        parts = batch.chunk(2, dim=1)
        return make_loss(self.net, batch, parts[self.global_rank] if self.kind == "sequence" else None)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.5)


class Calls:
    """Counts the collectives that are made through ``torch.distributed``'s functions, as ours is."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        for name in ("all_reduce", "all_gather", "broadcast", "all_gather_object", "broadcast_object_list", "barrier"):
            setattr(torch.distributed, name, self._counted(name, getattr(torch.distributed, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            return function(*args, **kwargs)

        return call


class Failure(pl.Callback):
    """Raises between two samples."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 6:
            self.calls.counts.clear()
            raise RuntimeError("on purpose")


def train(kind: str, *callbacks: Any, directory: Path | None = None, resume: Any = None, **options: Any) -> pl.Trainer:
    tensor_size = 2 if kind in TENSOR_PARALLEL else 1
    sizes = (NUM_RANKS // tensor_size, tensor_size)
    strategy = ModelParallelStrategy(
        data_parallel_size=sizes[0],
        tensor_parallel_size=sizes[1],
        process_group_backend="gloo",
        save_distributed_checkpoint=False,
    )
    defaults: dict[str, Any] = {"devices": NUM_RANKS, "max_steps": NUM_STEPS, "log_every_n_steps": EVERY}
    defaults["use_distributed_sampler"] = False
    trainer = quiet_trainer(*callbacks, directory=directory, strategy=strategy, **{**defaults, **options})
    own: Any = make_data()[int(os.environ["RANK"]) // tensor_size :: sizes[0]]
    loader = torch.utils.data.DataLoader(own, batch_size=BATCH // sizes[0])
    trainer.fit(Regression(kind), loader, ckpt_path=resume)
    return trainer


def fail(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("on purpose")


def full_weights(trainer: Any) -> list[Any]:
    parameters = [p.detach() for p in trainer.lightning_module.net.parameters()]
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).tolist() for p in parameters]


def main(directory: Path) -> dict[str, Any]:
    told: dict[str, Any] = {}
    calls = Calls()
    are_four = NUM_RANKS == 4
    for kind in FOR_FOUR if are_four else ("fsdp", "compiled", "tensor", "sequence", "sick"):
        calls.counts.clear()
        train(kind)
        bare = Counter(calls.counts)
        calls.counts.clear()
        watch = GradWatch(dense_steps=4, sample_every_n_steps=1000, histogram_every=1)
        trainer = train(kind, watch, directory=directory / kind)
        told[kind] = {
            "bare": bare["all_reduce"],
            "calls": {name: count - bare[name] for name, count in calls.counts.items() if count != bare[name]},
            "alerts": [asdict(alert) for alert in watch.alerts],
            "profile": watch.profile,
            "scores": {n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith("gradwatch/")},
        }
    for kind in FOR_FOUR if are_four else ("fsdp", "compiled", "tensor", "sequence"):
        calls.counts.clear()
        watch = GradWatch(auto_clip=MAX_NORM, dense_steps=0, sample_every_n_steps=1000)
        trainer = train(kind, watch, directory=directory / f"{kind} clipped")
        more = calls.counts["all_reduce"] - told[kind]["bare"]
        told[f"{kind} clipped"] = {"calls": more, "weights": full_weights(trainer)}
    if are_four:
        return told
    for kind in OUTPUTS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch = GradWatch(dense_steps=4, sample_every_n_steps=1000, histogram_every=1)
            train(kind, watch, directory=directory / kind)
        told[f"{kind} said"] = [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)]
    try:
        train("fsdp", GradWatch(auto_clip="agc"))
    except ValueError as refusal:
        told["refusal"] = str(refusal)
    for kind in ("fsdp", "sequence"):
        with pytest.MonkeyPatch.context() as patch:
            if os.environ["RANK"] == "1":
                patch.setattr(ParameterMeter, "weight_norms", fail)
                patch.setattr(ParameterMeter, "nonzeros", fail)
                patch.setattr(reader, "log_histograms", fail)
            watch = GradWatch(dense_steps=4, sample_every_n_steps=1000, histogram_every=1)
            train(kind, watch, directory=directory / f"{kind} without")
            told[f"{kind} without"] = [watcher.sampling.num_steps for watcher in watchers_of(watch)]
    watch = GradWatch(dense_steps=4, sample_every_n_steps=1000)
    with contextlib.suppress(RuntimeError):
        train("fsdp", watch, Failure(calls), log_every_n_steps=1000)
    told["calls after a failure"] = dict(calls.counts)
    watch = GradWatch()
    trainer = train("sick", watch, directory=directory / "resumed", max_steps=17)
    path = directory / "half.ckpt"
    trainer.save_checkpoint(path)
    resumed = GradWatch()
    train("sick", resumed, directory=directory / "resumed", resume=path)
    told["resumed"] = [[asdict(alert) for alert in w.alerts] for w in (watch, resumed)]
    said: list[str] = []
    _lightning.inform = said.append  # type: ignore[assignment]
    watch = GradWatch(prescribe=True)
    train("sick", watch)
    told["prescribing"] = [[line for line in said if "remedies" in line], [a.prescription for a in watch.alerts]]
    return told


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tell(main(Path(sys.argv[1])))
