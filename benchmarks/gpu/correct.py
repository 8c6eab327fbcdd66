"""Is it right on a GPU, and does it wait for nothing? With torch alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .models import GPT, Batch, ManySmall, images, mlp, resnet, rows, text
from .pieces import Piece, Row, Setting
from .training import NEVER, Training, no_waiting, settings

POLICIES = ("percentile", "zscore", "agc", "adagc", "norm", "value")


def place(setting: Setting, batch: Batch) -> Batch:
    """The batch on the device."""
    return batch[0].to(setting.device), batch[1].to(setting.device)


def fresh(setting: Setting, make: Callable[[], nn.Module], batch: Batch, **options: Any) -> Training:
    """A training that starts from the same weights whenever it is made."""
    torch.manual_seed(0)
    return Training(make().to(setting.device), place(setting, batch), **options)


def adamw(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Fused AdamW, which runs on a CPU as well."""
    return torch.optim.AdamW(parameters, lr=lr, fused=True)


def outcome(name: str, is_right: bool, note: str = "", **figures: Any) -> Row:
    """A row that says whether something held."""
    return Row(name, "right" if is_right else "WRONG", figures, note)


# ------------------------------------------------------------------------------------------- waiting for the device


def waiting(setting: Setting) -> Iterator[Row]:
    """Nothing waits on ordinary steps, nor on sampled and published ones, whose one copy is asynchronous."""
    torch.manual_seed(0)
    small, pictures, words = rows(32, 64), images(4, 32), text(2, 16, 50)
    cases: list[tuple[str, Callable[[], nn.Module], Batch, dict[str, Any]]] = [
        ("SGD", mlp, small, {}),
        ("fused AdamW", mlp, small, {"optimizer": adamw}),
        ("bf16 autocast", lambda: GPT(2, 32, 2, 50, 16), words, {"dtype": torch.bfloat16}),
        ("channels_last", lambda: resnet((1, 1), 8).to(memory_format=torch.channels_last), pictures, {}),  # type: ignore[call-overload]
        ("10,000 tensors", lambda: ManySmall(50 if setting.is_dry else 5000), rows(4, 16), {}),
    ]
    for name, make, batch, options in cases:
        yield _waits(name, fresh(setting, make, batch, watch=settings(3, 5), **options))
    for policy in POLICIES:
        watch = settings(3, 5, clip=policy, on_nonfinite="skip")
        yield _waits(f"clipping by {policy}, skipping", fresh(setting, mlp, small, watch=watch, optimizer=adamw))
    yield from _copies(setting)


def _waits(name: str, training: Training) -> Row:
    training.step()  # the first one makes the plan
    training.guard = no_waiting
    try:
        for step in range(1, 25):
            training.step(publish=step % 6 == 0)
    except RuntimeError as error:
        return outcome(name, False, str(error))
    training.guard = nullcontext
    training.finish()
    return outcome(name, len(training.observations) > 5, observations=len(training.observations))


def _copies(setting: Setting) -> Iterator[Row]:
    """Copies from the device to the host, counted by the profiler: none on an ordinary step, one on the others."""
    if not setting.is_gpu:
        yield Row("copies to the host", "not run", note="needs a GPU")
        return
    for kind, watch, publish in (
        ("an ordinary step", settings(0, NEVER), False),
        ("a sampled step", settings(NEVER, 1), False),
        ("a published step", settings(0, NEVER), True),
    ):
        training = fresh(setting, mlp, rows(32, 64), watch=watch)
        for _ in range(3):
            training.step(publish)
        bare = fresh(setting, mlp, rows(32, 64))
        bare.step()
        watched, without = _profile(partial(training.step, publish)), _profile(bare.step)
        copies = watched["Memcpy DtoH"] - without["Memcpy DtoH"]
        wanted = 0 if kind == "an ordinary step" else 1
        launches = watched["cudaLaunchKernel"] - without["cudaLaunchKernel"]
        yield outcome(f"copies on {kind}", copies == wanted, copies=copies, kernels=launches)


def _profile(call: Callable[[], object]) -> dict[str, int]:
    """How often what the profiler calls by these names happened in a call."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() or ()]
    return {
        "Memcpy DtoH": sum(name.startswith("Memcpy DtoH") for name in names),
        "cudaLaunchKernel": sum(name.startswith("cudaLaunchKernel") for name in names),
    }


# ------------------------------------------------------------------------------------------- numbers


def numbers(setting: Setting) -> Iterator[Row]:
    """Norms of gradients that are unscaled and not clipped, against float64 on the host."""
    small, pictures, words = rows(32, 64), images(4, 32), text(2, 16, 50)
    half = torch.float16 if setting.is_gpu else torch.bfloat16
    cases: list[tuple[str, Callable[[], nn.Module], Batch, dict[str, Any]]] = [
        ("float32", mlp, small, {}),
        ("bf16 weights", lambda: mlp().bfloat16(), (small[0].bfloat16(), small[1]), {}),
        ("bf16 autocast", lambda: GPT(2, 32, 2, 50, 16), words, {"dtype": torch.bfloat16}),
        ("channels_last", lambda: resnet((1, 1), 8).to(memory_format=torch.channels_last), pictures, {}),  # type: ignore[call-overload]
        (
            "a large matrix",
            lambda: mlp(2, 256 if setting.is_dry else 4096),
            rows(8, 256 if setting.is_dry else 4096),
            {},
        ),
        ("small tensors", lambda: ManySmall(50), rows(4, 16), {}),
        ("loss scaler", mlp, small, {"dtype": half, "scaler": True}),
        ("loss scaler, fused AdamW", mlp, small, {"dtype": half, "scaler": True, "optimizer": adamw}),
        ("clipping at 0.01 comes later", mlp, small, {"clip": 0.01}),
    ]
    for name, make, batch, options in cases:
        yield _agree(setting, name, make, batch, **options)


def scaler_of(setting: Setting, scale: float = 1024.0) -> Any:
    """A loss scaler."""
    return torch.amp.GradScaler(setting.device, init_scale=scale)


def _agree(setting: Setting, name: str, make: Any, batch: Batch, clip: Any = None, **options: Any) -> Row:
    if options.pop("scaler", False):
        options["scaler"] = scaler_of(setting)
    training = fresh(setting, make, batch, watch=settings(0, NEVER, clip=clip), **options)
    truths: list[float] = []

    def remember(model: nn.Module) -> None:
        scale = float(training.scaler.get_scale()) if training.scaler is not None else 1.0
        squares = [
            float((p.grad.double().cpu() / scale).square().sum()) for p in model.parameters() if p.grad is not None
        ]
        truths.append(math.sqrt(sum(squares)))

    for _ in range(4):
        training.step(publish=True, spoil=remember)
    training.finish()
    seen = [norm for observation in training.observations for norm in observation.total_norms]
    pairs = list(zip(seen, truths, strict=True))
    worst = max(abs(a - b) / b for a, b in pairs)
    return outcome(name, len(pairs) == 4 and worst < 1e-5, worst_relative_error=worst)


# ------------------------------------------------------------------------------------------- skipped steps


def skipped(setting: Setting) -> Iterator[Row]:
    """Steps whose gradient is not finite: skipped by a loss scaler, by ``on_nonfinite``, with fused and plain AdamW."""

    def spoil(model: nn.Module) -> None:
        next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]

    half = torch.float16 if setting.is_gpu else torch.bfloat16
    for name, optimizer in (("fused", adamw), ("plain", lambda ps, lr: torch.optim.AdamW(ps, lr=lr))):
        for by in ("a loss scaler", "on_nonfinite"):
            is_scaled = by == "a loss scaler"
            scaling = {"scaler": scaler_of(setting), "dtype": half} if is_scaled else {}
            watch = settings(2, 3, on_nonfinite="keep" if is_scaled else "skip")
            training = fresh(setting, mlp, rows(32, 64), watch=watch, optimizer=optimizer, **scaling)
            for _ in range(4):
                training.step()
            before = [p.detach().clone() for p in training.model.parameters()]
            training.step(spoil=spoil)
            is_kept = all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
            for _ in range(6):
                training.step()
            training.finish()
            assert training.watcher is not None
            counted = training.watcher.scores["skipped_steps"]
            is_told = ("nonfinite" in training.alerts) != is_scaled  # to a scaler it is routine
            yield outcome(f"{name} AdamW, {by}", is_kept and counted == 1 and is_told, skipped=counted)


# ------------------------------------------------------------------------------------------- weights


def weights(setting: Setting) -> Iterator[Row]:
    """Weights after 25 steps are bit-identical with and without."""
    cases: list[tuple[str, Callable[[], nn.Module], Batch, dict[str, Any]]] = [
        ("float32", mlp, rows(32, 64), {}),
        ("fused AdamW", mlp, rows(32, 64), {"optimizer": adamw}),
        ("bf16 autocast", lambda: GPT(2, 32, 2, 50, 16), text(2, 16, 50), {"dtype": torch.bfloat16}),
    ]
    torch.backends.cudnn.deterministic = True
    for name, make, batch, options in cases:
        ends = [_end(fresh(setting, make, batch, watch=watch, **options)) for watch in (None, None, settings(5, 3))]
        if not _equal(ends[0], ends[1]):
            yield Row(name, "not run", note="this training is not reproducible here by itself")
        else:
            yield outcome(name, _equal(ends[0], ends[2]))


def _end(training: Training) -> list[Tensor]:
    for step in range(25):
        training.step(publish=step % 4 == 0)
    training.finish()
    return [p.detach().clone() for p in training.model.parameters()]


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------- clipping


def clipping(setting: Setting) -> Iterator[Row]:
    """Clipped gradients have the norm that they should, in float32 and in half precision, compared with torch's own."""
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (_clipped_norms(setting, dtype, is_ours) for is_ours in (True, False))
        worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
        tolerance = 1e-4 if dtype is torch.float32 else 2e-2
        yield outcome(f"norm 0.01, {str(dtype).removeprefix('torch.')}", worst < tolerance, worst_relative_error=worst)


def _clipped_norms(setting: Setting, dtype: torch.dtype, is_ours: bool) -> list[float]:
    """Norms of the gradients that the optimizer gets, in five steps clipped at 0.01 by us or by torch."""
    inputs, targets = rows(32, 64)
    watch = settings(clip=0.01) if is_ours else None
    training = fresh(setting, lambda: mlp().to(dtype), (inputs.to(dtype), targets), watch=watch)
    parameters = list(training.model.parameters())
    norms: list[float] = []

    def look() -> None:
        if not is_ours:
            torch.nn.utils.clip_grad_norm_(parameters, 0.01)
        norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None)))

    training.before_step = look
    for _ in range(5):
        training.step()
    return norms


# ------------------------------------------------------------------------------------------- compiled


def compiled(setting: Setting) -> Iterator[Row]:
    """torch.compile: no recompilation by us, right norms, the same weights; with CUDA graphs, too."""
    modes = ["default", "reduce-overhead"] if setting.is_gpu else ["default"]
    for mode in modes:
        for what in ("whole", "blocks"):
            yield _compiled(setting, mode, what)


def _compiled(setting: Setting, mode: str, what: str) -> Row:
    backend: dict[str, Any] = {"mode": mode} if setting.is_gpu else {"backend": "aot_eager"}
    batch = text(2, 16, 50)
    ends, alerts, graphs = [], [], []
    for watch in (None, settings(3, 4)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        model: Any = GPT(2, 32, 2, 50, 16).to(setting.device)
        if what == "whole":
            model = torch.compile(model, **backend)
        else:
            for block in model.blocks:
                block.compile(**backend)
        training = Training(model, place(setting, batch), watch)
        for step in range(16):
            training.step(publish=step % 5 == 0)
        training.finish()
        ends.append([p.detach().clone() for p in model.parameters()])
        alerts += training.alerts
        graphs.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))
    worst = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))
    is_right = _equal(*ends) and not alerts and graphs[0] == graphs[1]
    note = "" if is_right else f"alerts {alerts}"
    return outcome(f"{what}, {mode}", is_right, note, graphs=f"{graphs[0]} and {graphs[1]}", largest_difference=worst)


# ------------------------------------------------------------------------------------------- alerts and memory


def found(setting: Setting) -> Iterator[Row]:
    """A sick network is found at the same step as on a CPU, its cured twin is left alone."""
    for name, activation, wanted in (("sigmoids", nn.Sigmoid, ["vanishing"]), ("ReLU", nn.ReLU, [])):

        def make(activation: type[nn.Module] = activation) -> nn.Module:
            net = mlp(20, 64, activation)
            for layer in net if activation is nn.ReLU else ():
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight)
            return net

        training = fresh(setting, make, rows(64, 64), watch=settings(20, 10))
        for _ in range(40):
            training.step()
        training.finish()
        yield outcome(name, training.alerts == wanted, f"alerts: {training.alerts or 'none'}")


def memory(setting: Setting) -> Iterator[Row]:
    """What is held on the device between steps: below 1 MB or 1 % of the parameters."""
    if not setting.is_gpu:
        yield Row("held between steps", "not run", note="needs a GPU")
        return
    held: dict[bool, int] = {}
    size = 0
    for is_watched in (False, True):
        training = fresh(setting, lambda: mlp(20, 1024), rows(8, 1024), watch=settings(3, 5) if is_watched else None)
        for step in range(20):
            training.step(publish=step % 5 == 0)
        training.optimizer.zero_grad()
        torch.cuda.synchronize()
        held[is_watched] = torch.cuda.memory_allocated()
        size = sum(p.numel() * p.element_size() for p in training.model.parameters())
        del training
    more = held[True] - held[False]
    yield outcome("held between steps", more < max(2**20, size / 100), megabytes=more / 1e6, of_parameters=more / size)


PIECES = (
    Piece("waiting", "Nothing waits for the device", 40, waiting),
    Piece("numbers", "Norms against float64 on the host", 20, numbers),
    Piece("skipped", "Steps that are not finite", 15, skipped),
    Piece("weights", "Weights with and without, bit by bit", 15, weights),
    Piece("clipping", "Clipping beside torch's", 10, clipping),
    Piece("found", "Alerts", 10, found),
    Piece("memory", "Memory", 10, memory),
    Piece("compiled", "torch.compile and CUDA graphs", 80, compiled),
)
