"""Trains under FSDP1, one process per rank, and tells what GradWatch saw; run by its tests."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.distributed.fsdp.wrap import wrap
from torch.profiler import ProfilerActivity, profile

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.clip import AdaGC, Band, MaxValue, Percentile, ZScore
from tests.setups.acting import act
from tests.setups.fsdp1_cpu import CPUStrategy, gather_without_offload, pretend_pinned_memory
from tests.setups.processes import tell
from tests.setups.sharded_training import BATCH, EVERY, NUM_STEPS, make_data, make_loss, make_net
from tests.tasks import quiet_trainer, watchers_of

WATCH: dict[str, Any] = {"max_overhead": None, "dense_steps": 4, "sample_every_n_steps": 5, "histogram_every": 1}
POLICY: dict[str, Any] = {"auto_wrap_policy": {nn.Linear}}
KINDS: dict[str, dict[str, Any]] = {
    "policy": POLICY,
    "by hand": {},
    "not wrapped": {},
    "shard_grad_op": {**POLICY, "sharding_strategy": "SHARD_GRAD_OP"},
    "no_shard": {**POLICY, "sharding_strategy": "NO_SHARD"},
    "checkpointed": {**POLICY, "activation_checkpointing_policy": {nn.Linear}},
    "offloaded": {**POLICY, "cpu_offload": True},
}
"""Ways to wrap and to shard, and the strategy's arguments for each."""
HYBRID: dict[str, Any] = {**POLICY, "sharding_strategy": "HYBRID_SHARD", "device_mesh": (2, 2)}
"""Two replicas, each in two parts."""


class Regression(pl.LightningModule):
    """The regression of the other sharded strategies, with an optimizer that has moments."""

    def __init__(
        self,
        kind: str,
        net: Callable[[], nn.Sequential],
        make_optimizer: Callable[[Any], Any],
        use_orig_params: bool,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.net = net()
        self.make_optimizer = make_optimizer
        self.use_orig_params = use_orig_params

    def configure_model(self) -> None:
        if self.kind == "by hand":
            for i, layer in enumerate(self.net):
                if isinstance(layer, nn.Linear):
                    self.net[i] = wrap(layer, device_id=torch.device("cpu"), use_orig_params=self.use_orig_params)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return make_loss(self.net, batch)

    def configure_optimizers(self) -> Any:
        assert self.trainer.model is not None
        return self.make_optimizer((self if self.use_orig_params else self.trainer.model).parameters())


class Two(Regression):
    """Two networks, each with an optimizer of its own, of which the second steps at every other batch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False
        self.other = make_net("fsdp")

    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
        first, second = self.optimizers()  # type: ignore[misc, attr-defined]
        for net, optimizer in [(self.net, first), (self.other, second)][: 2 - batch_idx % 2]:
            optimizer.zero_grad()
            self.manual_backward(make_loss(net, batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [self.make_optimizer(self.net.parameters()), self.make_optimizer(self.other.parameters())]


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Its ``eps`` is large, so that rounding moves no weight by much."""
    return torch.optim.Adam(parameters, lr=1e-2, eps=1e-2)


def train(
    kind: str,
    *callbacks: Any,
    directory: Path | None = None,
    resume: Any = None,
    net: Callable[[], nn.Sequential] = lambda: make_net("fsdp"),
    make_optimizer: Callable[[Any], Any] = adam,
    strategy: dict[str, Any] | None = None,
    num_ranks: int = 2,
    data: Tensor | None = None,
    use_orig_params: bool = True,
    model: type[Regression] = Regression,
    **options: Any,
) -> pl.Trainer:
    """Train on this rank's half of every batch; of ``kind`` "alone" on the whole of it, in one process."""
    defaults: dict[str, Any] = {"max_steps": NUM_STEPS, "log_every_n_steps": EVERY, "use_distributed_sampler": False}
    data = make_data() if data is None else data
    num_ranks = 1 if kind == "alone" else num_ranks
    if kind != "alone":
        data = data[int(os.environ["RANK"]) :: num_ranks]
        how = {**KINDS.get(kind, HYBRID), **(strategy or {})}
        defaults.update(devices=num_ranks, strategy=CPUStrategy(process_group_backend="gloo", **how))
    trainer = quiet_trainer(*callbacks, directory=directory, **{**defaults, **options})
    samples: Any = data
    loader: Any = torch.utils.data.DataLoader(samples, batch_size=BATCH // num_ranks)
    trainer.fit(model(kind, net, make_optimizer, use_orig_params), loader, ckpt_path=resume)
    return trainer


def sick() -> nn.Sequential:
    """Deep, with activations that saturate."""
    return make_net("sick")


def frozen() -> nn.Sequential:
    """Only the last layer is trained, of whose parameters one rank may hold nothing."""
    net = make_net("fsdp")
    net[:5].requires_grad_(False)
    return net


class _Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def cut_off() -> nn.Sequential:
    """No gradient gets past the middle."""
    net = make_net("fsdp")
    net[2] = _Detach()
    return net


NETS = {"sick": sick, "frozen": frozen, "cut off": cut_off}
ALERT_STEPS = 60


PRECISIONS = ("bf16-mixed", "16-mixed", "bf16-true")
HALF_STEPS = 10


class Truth(pl.Callback):
    """The norm of every parameter's whole gradient at every step, as torch itself gathers it."""

    def __init__(self) -> None:
        self.norms: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        model: Any = trainer.strategy.model
        with fsdp.FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            self.norms.append([float(p.grad.double().norm()) for p in pl_module.parameters() if p.grad is not None])


def measure(kind: str, directory: Path, **options: Any) -> dict[str, Any]:
    """What was seen in one run; its numbers are in the directory."""
    watch, truth = GradWatch(**WATCH), Truth()
    train(kind, *([truth] if "precision" in options else []), watch, directory=directory, **options)
    alerts = [(alert.kind, alert.step, alert.layer, alert.cause) for alert in watch.alerts]
    assert watch._session is not None
    return {"alerts": alerts, "profile": watch.profile, "is_off": watch._session.is_off, "truth": truth.norms}


class Given(pl.Callback):
    """The total norm of what each optimizer is given, by its name and the batch; the ranks hold parts of it."""

    def __init__(self) -> None:
        self.norms: dict[str, dict[int, float]] = {"Adam": {}, "Adam-1": {}}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        parts = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        squares = torch.stack([part.double().square().sum() for part in parts]).sum()
        torch.distributed.all_reduce(squares)
        name = next(name for name, one in zip(self.norms, trainer.optimizers, strict=True) if one is optimizer)
        self.norms[name][trainer.fit_loop.epoch_loop.batch_idx] = squares.sqrt().item()


def measure_two(directory: Path) -> dict[str, Any]:
    """Two optimizers in manual optimization.

    Where `training_step` differentiates, torch wants every parameter in a wrapper of its own, and `zero_grad` leaves
    gradients where they are, also without GradWatch: so the truth is what the optimizers are given.
    """
    watch, given = GradWatch(**WATCH), Given()
    strategy = {"auto_wrap_policy": {nn.Linear, nn.LayerNorm}}
    train("policy", given, watch, directory=directory, model=Two, strategy=strategy)
    assert watch._session is not None
    return {"given": given.norms, "is_off": watch._session.is_off}


def measure_one(directory: Path) -> dict[str, Any]:
    """The most usual kind."""
    return {"policy": measure("policy", directory / "policy")}


def measure_hybrid(directory: Path) -> dict[str, Any]:
    """In four processes."""
    return {"hybrid": measure("hybrid", directory / "hybrid", num_ranks=4)}


def measure_all(directory: Path) -> dict[str, Any]:
    """Every other kind, and what raises alerts."""
    pretend_pinned_memory()
    told = {kind: measure(kind, directory / kind) for kind in KINDS if kind != "policy"}
    told["two"] = measure_two(directory / "two")
    for precision in PRECISIONS:
        options: dict[str, Any] = {"precision": precision, "max_steps": HALF_STEPS}
        told[precision] = measure("policy", directory / precision, **options)
    for name, net in NETS.items():
        for kind in ("policy", "not wrapped"):
            told[f"{name} {kind}"] = measure(kind, directory / f"{name} {kind}", net=net, max_steps=ALERT_STEPS)
    return told


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """To which the size of a gradient matters."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.5)


INTERVENTIONS: dict[str, dict[str, Any]] = {
    "norm": {"auto_clip": 1.0},
    "percentile": {"auto_clip": Percentile(window=20, first_steps=5)},
    "zscore": {"auto_clip": ZScore(z_threshold=0.1, alpha=0.5, warmup_steps=5)},
    "band": {"auto_clip": Band(width=0.2, least_ratio=1.01, window=10)},
    "adagc": {"auto_clip": AdaGC(warmup_steps=5)},
    "value": {"auto_clip": MaxValue(0.05)},
    "nonfinite": {"on_nonfinite": "skip"},
    "spike": {"on_spike": "skip"},
    "nothing": {},
}
CLIPPING = [name for name, arguments in INTERVENTIONS.items() if "auto_clip" in arguments]
NUM_CLIPPED_STEPS = {**dict.fromkeys(INTERVENTIONS, 30), "spike": 75}
"""Nothing is called a spike before there have been 64 steps."""
BAD = {"nonfinite": (20, math.nan), "spike": (70, 1e4)}
"""The batch in which one sample, that of the last rank, is multiplied by what."""


def clip(kind: str, name: str, directory: Path) -> list[Any]:
    """The weights after a training in which gradients were clipped, or steps left out, as whole tensors."""
    data = torch.cat([make_data(), make_data()])  # as many batches as steps, and more
    if name in BAD:
        batch, factor = BAD[name]
        data[(batch + 1) * BATCH - 1] *= factor
    watch = GradWatch(max_overhead=None, **INTERVENTIONS[name])
    steps = NUM_CLIPPED_STEPS[name]
    trainer = train(kind, watch, directory=directory, data=data, make_optimizer=sgd, max_steps=steps)
    assert watch._session is not None
    assert not watch._session.is_off
    return full_weights(trainer)


def full_weights(trainer: pl.Trainer) -> list[Any]:
    """The weights of the whole model."""
    model = trainer.strategy.model
    assert model is not None
    is_cut = isinstance(model, fsdp.FullyShardedDataParallel)
    with fsdp.FullyShardedDataParallel.summon_full_params(model) if is_cut else contextlib.nullcontext():
        net: Any = trainer.lightning_module.net
        return [p.detach().tolist() for p in net.parameters()]


def clip_all(directory: Path) -> dict[str, Any]:
    """Every policy."""
    told: dict[str, Any] = {name: clip("policy", name, directory / name) for name in CLIPPING}
    told["no_shard"] = clip("no_shard", "value", directory / "no_shard")
    return told


def skip_all(directory: Path) -> dict[str, Any]:
    """Every way to leave out a step, and what is refused."""
    told: dict[str, Any] = {
        name: clip("policy", name, directory / name) for name in INTERVENTIONS if name not in CLIPPING
    }
    told["agc"] = refusal("policy", GradWatch(auto_clip="agc"))
    told["flat"] = refusal("policy", GradWatch(), strategy={"use_orig_params": False})
    told["flat by hand"] = refusal("by hand", GradWatch(), use_orig_params=False)
    return told


def refusal(kind: str, watch: GradWatch, **options: Any) -> str:
    """With what words a training is refused."""
    try:
        train(kind, watch, **options)
    except ValueError as refused:
        return str(refused)
    return "nothing"


SAVED_AT, NUM_RESUMED_STEPS = 16, 30
"""The end of the first epoch, with an alert open."""


def resume_all(directory: Path) -> dict[str, Any]:
    """Trainings without a break, and the second part of each from the checkpoint that it left: sharded, or one file."""
    gather_without_offload()
    told: dict[str, Any] = {}
    clipping: dict[str, Any] = {"watch": INTERVENTIONS["band"], "net": lambda: make_net("fsdp")}
    alerting: dict[str, Any] = {"watch": {**WATCH, "dense_steps": NUM_RESUMED_STEPS}, "net": sick}
    for name, how, kind in (
        ("clipping", clipping, "sharded"),
        ("alerting", alerting, "sharded"),
        ("clipping, one file", clipping, "full"),
    ):
        here = directory / name
        for resume in (None, here / "saved.ckpt"):
            saver = ModelCheckpoint(here, "saved", every_n_train_steps=SAVED_AT, save_top_k=-1)
            watch = GradWatch(**how["watch"])
            trainer = train(
                "policy",
                *([watch, saver] if resume is None else [watch]),
                directory=here,
                resume=resume,
                net=how["net"],
                make_optimizer=sgd,
                strategy={"state_dict_type": kind},
                enable_checkpointing=resume is None,
                max_steps=NUM_RESUMED_STEPS,
                max_epochs=-1,
                limit_train_batches=SAVED_AT,
            )
            alerts = [(alert.kind, alert.step, alert.cause) for alert in watch.alerts]
            known = [watcher.sampling.num_steps for watcher in watchers_of(watch)]
            told.setdefault(name, []).append([alerts, known, full_weights(trainer)])
    return told


def act_all(directory: Path) -> dict[str, Any]:
    """What is done about an alert."""

    def train_sick(watch: GradWatch, **options: Any) -> pl.Trainer:
        return train("policy", watch, net=sick, strategy={"state_dict_type": "sharded"}, **options)

    return act(train_sick, directory)


NUM_COUNTED_STEPS = 6


def count_all(directory: Path) -> dict[str, Any]:
    """How often the ranks talk to each other, below everything that Python can see."""
    lazy: dict[str, Any] = {"sample_every_n_steps": 1000}
    watches: dict[str, Callable[[], list[Any]]] = {
        "bare": list,
        "watched": lambda: [GradWatch(dense_steps=2, **lazy)],
        "clipped": lambda: [GradWatch(dense_steps=0, auto_clip=1.0, **lazy)],
        "skipping": lambda: [GradWatch(dense_steps=0, on_nonfinite="skip", **lazy)],
        "control": lambda: [_Talkative()],
    }
    told: dict[str, Any] = {}
    for name, make in watches.items():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            train("policy", *make(), directory=directory / name, make_optimizer=sgd, max_steps=NUM_COUNTED_STEPS)
        events = [event.name for event in profiler.events() or ()]
        told[name] = Counter(name for name in events if name.startswith("gloo:"))
    return told


class _Talkative(pl.Callback):
    def on_before_optimizer_step(self, *_: Any) -> None:
        torch.distributed.all_reduce(torch.ones(1))


def run(script: Callable[[Path], Any]) -> None:
    """Call on every rank."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tell(script(Path(sys.argv[1])))
