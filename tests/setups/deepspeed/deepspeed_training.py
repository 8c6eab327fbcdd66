"""Trains under DeepSpeed, one process per rank, and tells what GradWatch saw; run by its tests."""

from __future__ import annotations

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
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.clip import AdaGC, Band, MaxValue, Percentile, ZScore
from tests.setups.deepspeed.cpu import CPUStrategy, pretend_float16
from tests.setups.failing import FAILURES, REACHING, train_all
from tests.setups.fsdp1_training import NETS
from tests.setups.processes import tell
from tests.setups.sharded_training import BATCH, EVERY, NUM_STEPS, make_data, make_loss, make_net
from tests.tasks import quiet_trainer, watchers_of

STAGES = (1, 2, 3)
WATCH: dict[str, Any] = {"max_overhead": None, "dense_steps": 4, "sample_every_n_steps": 5, "histogram_every": 1}
ACCUMULATING: dict[str, Any] = {"accumulate_grad_batches": 4, "max_steps": 12}
LENIENT = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
SMALL: dict[str, Any] = {"allgather_bucket_size": 2e6, "reduce_bucket_size": 2e6}


class Regression(pl.LightningModule):
    """The regression of the other sharded strategies, with an optimizer that has moments.

    Under DeepSpeed both Lightning and the engine divide the loss by the number of accumulated batches.
    """

    def __init__(self, net: Callable[[], nn.Module], make_optimizer: Callable[[Any], Any], divisor: int) -> None:
        super().__init__()
        self.net = net()
        self.make_optimizer = make_optimizer
        self.divisor = divisor

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return make_loss(self.net, batch) / self.divisor

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Its ``eps`` is large, so that rounding moves no weight by much."""
    return torch.optim.Adam(parameters, lr=1e-2, eps=1e-2)


def train(
    stage: int,
    *callbacks: Any,
    directory: Path | None = None,
    resume: Any = None,
    net: Callable[[], nn.Module] = lambda: make_net("fsdp"),
    make_optimizer: Callable[[Any], Any] = adam,
    model: type[Regression] = Regression,
    strategy: dict[str, Any] | None = None,
    zero: dict[str, Any] | None = None,
    top: dict[str, Any] | None = None,
    data: Tensor | None = None,
    **options: Any,
) -> pl.Trainer:
    """Train on this rank's half of every batch; at ``stage`` 0 on the whole of it, in one process without DeepSpeed."""
    defaults: dict[str, Any] = {"max_steps": NUM_STEPS, "log_every_n_steps": EVERY, "use_distributed_sampler": False}
    data = make_data() if data is None else data
    num_ranks, divisor = (2, 1) if stage else (1, options.get("accumulate_grad_batches", 1))
    if stage:
        data = data[int(os.environ["RANK"]) :: num_ranks]
        how = {"stage": stage, **SMALL, **(strategy or {})}
        if zero is not None:
            how = {"config": {"zero_optimization": {"stage": stage, **SMALL, **zero}, **LENIENT, **(top or {})}}
        defaults.update(devices=num_ranks, strategy=CPUStrategy(process_group_backend="gloo", **how))
    trainer = quiet_trainer(*callbacks, directory=directory, **{**defaults, **options})
    samples: Any = data
    loader: Any = torch.utils.data.DataLoader(samples, batch_size=BATCH // num_ranks)
    trainer.fit(model(net, make_optimizer, divisor), loader, ckpt_path=resume)
    return trainer


class _Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x


def spare() -> nn.Sequential:
    """One layer is not used at all, to whose gradient DeepSpeed adds zeros."""
    net = make_net("fsdp")
    net.append(_Spare())
    return net


ALERT_STEPS = 60
OFFLOADED: dict[str, Any] = {"offload_optimizer": {"device": "cpu"}}
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "1 not contiguous": (1, {"strategy": {"contiguous_gradients": False, "overlap_comm": False}}),
    "2 round robin": (2, {"zero": {"round_robin_gradients": True}}),
    "3 in groups": (3, {"strategy": {"sub_group_size": 20}}),
    "3 kept": (3, {"zero": {"stage3_param_persistence_threshold": 10}}),
    "1 offloaded": (1, {"zero": OFFLOADED}),
    "2 offloaded": (2, {"zero": OFFLOADED}),
    "3 offloaded": (3, {"zero": OFFLOADED}),
}
"""Ways to lay things out in memory that must not matter."""


HALVES = [
    f"{stage} {precision} {accumulate}"
    for stage in STAGES
    for precision, accumulate in (("bf16-mixed", 1), ("bf16-mixed", 4), ("16-mixed", 4))
]
"""Stage, precision and accumulated batches."""
HALF_STEPS = 8


class Truth(pl.Callback):
    """The norm of every parameter's whole gradient at every step, as DeepSpeed itself gathers it."""

    def __init__(self) -> None:
        self.norms: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        engine: Any = trainer.strategy.model
        if engine.is_gradient_accumulation_boundary():
            scale = optimizer.loss_scale
            whole = [safe_get_full_grad(p) for p in pl_module.parameters()]
            self.norms.append([float(g.double().norm()) / scale for g in whole])


def measure(stage: int, directory: Path, **options: Any) -> dict[str, Any]:
    """What was seen in one run; its numbers are in the directory."""
    watch, truth = GradWatch(**WATCH), Truth()
    train(stage, *([truth] if "precision" in options else []), watch, directory=directory, **options)
    alerts = [(alert.kind, alert.step, alert.layer, alert.cause) for alert in watch.alerts]
    assert watch._session is not None
    return {"alerts": alerts, "profile": watch.profile, "is_off": watch._session.is_off, "truth": truth.norms}


def measure_one(directory: Path) -> dict[str, Any]:
    """The most usual kind."""
    return {"2": measure(2, directory / "2")}


def measure_all(directory: Path) -> dict[str, Any]:
    """The other stages, and all of them where batches are accumulated, or a layer is not used."""
    told = {str(stage): measure(stage, directory / str(stage)) for stage in (1, 3)}
    for stage in STAGES:
        told[f"{stage} accumulating"] = measure(stage, directory / f"{stage} accumulating", **ACCUMULATING)
        told[f"{stage} spare"] = measure(stage, directory / f"{stage} spare", net=spare)
    return told


def measure_variants(directory: Path) -> dict[str, Any]:
    """Every way to lay things out."""
    return {name: measure(stage, directory / name, **how) for name, (stage, how) in VARIANTS.items()}


def measure_half(directory: Path) -> dict[str, Any]:
    """In half precision; there is no float16 on this accelerator, says DeepSpeed, but torch has it."""
    pretend_float16()
    told = {}
    for name in HALVES:
        stage, precision, accumulate = name.split()
        options: dict[str, Any] = {"precision": precision, "accumulate_grad_batches": int(accumulate)}
        told[name] = measure(int(stage), directory / name, max_steps=HALF_STEPS, **options)
    return told


def alert(name: str) -> Callable[[Path], dict[str, Any]]:
    """What raises alerts, or must not, at every stage."""

    def at_every_stage(directory: Path) -> dict[str, Any]:
        options: dict[str, Any] = {"net": NETS[name], "max_steps": ALERT_STEPS}
        return {str(stage): measure(stage, directory / str(stage), **options) for stage in STAGES}

    return at_every_stage


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
CLIPPED: dict[str, tuple[int, ...]] = {
    **{name: (2,) for name, arguments in INTERVENTIONS.items() if "auto_clip" in arguments},
    **dict.fromkeys(("norm", "value"), STAGES),
}
"""Policies, and the stages at which they are tried."""
NUM_CLIPPED_STEPS = {**dict.fromkeys(INTERVENTIONS, 30), "spike": 75}
"""Nothing is called a spike before there have been 64 steps."""
BAD = {"nonfinite": (20, math.nan), "spike": (70, 1e4)}
"""The batch in which one sample, that of the last rank, is multiplied by what."""


def clip(stage: int, name: str, directory: Path, **options: Any) -> list[Any]:
    """The weights after a training in which gradients were clipped, or steps left out, as whole tensors."""
    data = torch.cat([make_data(), make_data()])  # as many batches as steps, and more
    if name in BAD:
        batch, factor = BAD[name]
        data[(batch + 1) * BATCH - 1] *= factor
    watch = GradWatch(max_overhead=None, **{**INTERVENTIONS[name], **options.pop("watch", {})})
    steps = NUM_CLIPPED_STEPS[name]
    options = {"make_optimizer": sgd, "max_steps": steps, **options}
    trainer = train(stage, watch, directory=directory, data=data, **options)
    assert watch._session is not None
    assert not watch._session.is_off
    return full_weights(trainer)


def full_weights(trainer: pl.Trainer) -> list[Any]:
    """The weights of the whole model, in float32."""
    net: Any = trainer.lightning_module.net
    whole = [safe_get_full_fp32_param(p) for p in net.parameters()]
    return [(p if w is None else w).detach().tolist() for p, w in zip(net.parameters(), whole, strict=True)]


COMPOSED: dict[str, Any] = {"watch": {"compose_clipping": True}, "gradient_clip_val": 0.3}
"""GradWatch clips first, and DeepSpeed what is left."""


def clip_all(directory: Path) -> dict[str, Any]:
    """Every policy at stage 2, some of them at the others, and what goes with DeepSpeed's own clipping."""
    told: dict[str, Any] = {}
    for name, stages in CLIPPED.items():
        for stage in stages:
            told[f"{name} {stage}"] = clip(stage, name, directory / f"{name} {stage}")
    for stage in STAGES:
        told[f"composed {stage}"] = clip(stage, "norm", directory / f"composed {stage}", **COMPOSED)
        name = f"composed {stage} offloaded"
        told[name] = clip(stage, "norm", directory / name, zero=OFFLOADED, **COMPOSED)
    return told


def skip_all(directory: Path) -> dict[str, Any]:
    """Every way to leave out a step."""
    told: dict[str, Any] = {}
    for stage in STAGES:
        for name in BAD:
            told[f"{name} {stage}"] = clip(stage, name, directory / f"{name} {stage}")
    told["spike 2 offloaded"] = clip(2, "spike", directory / "spike 2 offloaded", zero=OFFLOADED)
    # in bfloat16, at stages 1 and 2, DeepSpeed itself can be asked to take a step whose gradient is not finite
    top = {"bf16": {"enabled": True, "check_grad_overflow": False}}
    half: dict[str, Any] = {"precision": "bf16-mixed", "zero": {}, "top": top}
    told["half"] = clip(2, "nonfinite", directory / "half", **half)
    told["half kept"] = clip(2, "nonfinite", directory / "half kept", watch={"on_nonfinite": "keep"}, **half)
    return told


def refuse_all(directory: Path) -> dict[str, Any]:
    """What is refused."""
    half: dict[str, Any] = {"top": {"data_types": {"grad_accum_dtype": "fp32"}}, "precision": "bf16-mixed"}
    return {
        "agc": refusal(2, GradWatch(auto_clip="agc")),
        "twice": refusal(2, GradWatch(auto_clip=1.0), gradient_clip_val=1.0),
        "twice in the configuration": refusal(2, GradWatch(auto_clip=1.0), zero={}, top={"gradient_clipping": 1.0}),
        "backward": refusal(2, GradWatch(sample_at="backward")),
        "nvme": refusal(3, GradWatch(), zero={"offload_optimizer": {"device": "nvme", "nvme_path": str(directory)}}),
        "bf16": refusal(1, GradWatch(), zero={}, **half),
        "stage 0": refusal(2, GradWatch(), zero={"stage": 0}),
    }


def refusal(stage: int, watch: GradWatch, **options: Any) -> str:
    """With what words a training is refused."""
    try:
        train(stage, watch, **options)
    except ValueError as refused:
        return str(refused)
    return "nothing"


def fail_all(directory: Path) -> dict[str, Any]:
    """The watch fails on one rank, everywhere at stage 2, and where gradients are reached at stage 3, too."""

    def train_at(stage: int) -> Callable[[GradWatch], pl.Trainer]:
        return lambda watch: train(stage, watch, make_optimizer=sgd)

    told = train_all({**FAILURES, **REACHING}, train_at(2), full_weights)
    return {"2": told, "3": train_all(REACHING, train_at(3), full_weights)}


SAVED_AT, NUM_RESUMED_STEPS = 16, 30
"""The end of the first epoch, with an alert open."""


def resume_all(directory: Path) -> dict[str, Any]:
    """Trainings without a break, and the second part of each from the checkpoint that it left."""
    told: dict[str, Any] = {}
    clipping: dict[str, Any] = {"watch": INTERVENTIONS["band"], "net": lambda: make_net("fsdp")}
    alerting: dict[str, Any] = {"watch": {**WATCH, "dense_steps": NUM_RESUMED_STEPS}, "net": NETS["sick"]}
    for name, stage, how in (("clipping", 2, clipping), ("clipping", 3, clipping), ("alerting", 2, alerting)):
        here = directory / f"{name} {stage}"
        for resume in (None, here / "saved.ckpt"):
            saver = ModelCheckpoint(here, "saved", every_n_train_steps=SAVED_AT, save_top_k=-1)
            watch = GradWatch(**how["watch"])
            trainer = train(
                stage,
                *([watch, saver] if resume is None else [watch]),
                directory=here,
                resume=resume,
                net=how["net"],
                make_optimizer=sgd,
                enable_checkpointing=resume is None,
                max_steps=NUM_RESUMED_STEPS,
                max_epochs=-1,
                limit_train_batches=SAVED_AT,
            )
            alerts = [(alert.kind, alert.step, alert.cause) for alert in watch.alerts]
            known = [watcher.sampling.num_steps for watcher in watchers_of(watch)]
            told.setdefault(f"{name} {stage}", []).append([alerts, known, full_weights(trainer)])
    return told


NUM_COUNTED_STEPS = 6


def count(stage: int) -> Callable[[Path], dict[str, Any]]:
    """How often the ranks talk to each other, below everything that Python can see."""
    lazy: dict[str, Any] = {"sample_every_n_steps": 1000}
    watches: dict[str, Callable[[], list[Any]]] = {
        "bare": list,
        "watched": lambda: [GradWatch(dense_steps=2, **lazy)],
        "clipped": lambda: [GradWatch(dense_steps=0, auto_clip=1.0, **lazy)],
        "skipping": lambda: [GradWatch(dense_steps=0, on_nonfinite="skip", **lazy)],
        "control": lambda: [_Talkative()],
    }

    def each(directory: Path) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for name, make in watches.items():
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                train(stage, *make(), directory=directory / name, make_optimizer=sgd, max_steps=NUM_COUNTED_STEPS)
            events = [event.name for event in profiler.events() or ()]
            told[name] = Counter(name for name in events if name.startswith("gloo:"))
        return told

    return each


class _Talkative(pl.Callback):
    def on_before_optimizer_step(self, *_: Any) -> None:
        torch.distributed.all_reduce(torch.ones(1))


def run(script: Callable[[Path], Any]) -> None:
    """Call on every rank."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tell(script(Path(sys.argv[1])))
