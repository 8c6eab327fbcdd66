"""Is it right on a GPU, and does it wait for nothing? With torch alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.core.clip import AGC, NAMES, AdaGC, Clipper, ClipPolicy, MaxNorm, MaxValue, Percentile, ZScore
from lightning_gradwatch.core.shards import Shards
from lightning_gradwatch.core.transfer import Transfer

from .models import GPT, Batch, ManySmall, images, mlp, resnet, rows, text
from .pieces import Piece, Row, Setting, release, tried
from .traces import profile
from .training import NEVER, Training, no_waiting, settings

Case = tuple[str, Callable[[], nn.Module], Batch, dict[str, Any]]


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


def plain_adamw(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """AdamW as it is by default: multi-tensor on a GPU."""
    return torch.optim.AdamW(parameters, lr=lr)


def outcome(name: str, is_right: bool, note: str = "", **figures: Any) -> Row:
    """A row that says whether something held."""
    return Row(name, "right" if is_right else "WRONG", figures, note)


def half_of(setting: Setting) -> torch.dtype:
    """What a loss scaler is for; on a CPU the half precision that all operators have there."""
    return torch.float16 if setting.is_gpu else torch.bfloat16


def scaler_of(setting: Setting, scale: float = 1024.0) -> Any:
    """A loss scaler."""
    return torch.amp.GradScaler(setting.device, init_scale=scale)


def channels_last() -> nn.Module:
    """A small convolutional network whose weights lie channel by channel."""
    net: nn.Module = resnet((1, 1), 8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def small_gpt() -> nn.Module:
    """A language model of two blocks."""
    return GPT(2, 32, 2, 50, 16)


# ------------------------------------------------------------------------------------------- waiting for the device


def waiting(setting: Setting) -> Iterator[Row]:
    """Nothing waits on ordinary steps, nor on sampled and published ones, whose one copy is asynchronous.

    What waits raises in the whole step, hooks in the forward and backward pass included, where the bare training itself
    waits for nothing. (A sampled step does wait for the copy of the sample before it, by an event, which torch's debug
    mode takes for no synchronisation; the traces count it.)
    """
    torch.manual_seed(0)
    small, pictures, words = rows(32, 64), images(4, 32), text(2, 16, 50)
    scaled = {"dtype": half_of(setting), "optimizer": adamw}
    cases: list[Case] = [
        ("SGD", mlp, small, {}),
        ("AdamW", mlp, small, {"optimizer": plain_adamw}),
        ("fused AdamW", mlp, small, {"optimizer": adamw}),
        ("float16, a loss scaler, fused AdamW", mlp, small, {**scaled, "scaler": True}),
        ("bf16 weights", lambda: mlp().bfloat16(), (small[0].bfloat16(), small[1]), {}),
        ("bf16 autocast", small_gpt, words, {"dtype": torch.bfloat16}),
        ("channels_last", channels_last, pictures, {}),
    ]
    for name, make, batch, options in cases:
        yield tried(name, partial(_waits, setting, name, make, batch, settings(3, 5, histogram_every=1), **options))
    for policy in NAMES:
        watch = settings(3, 5, clip=policy, on_nonfinite="skip")
        name = f"clipping by {policy}, skipping"
        yield tried(name, partial(_waits, setting, name, mlp, small, watch, optimizer=adamw))
    half = small[0].bfloat16(), small[1]
    for policy in NAMES:
        name = f"clipping bf16 weights by {policy}"
        watch = settings(3, 5, clip=policy)
        yield tried(name, partial(_waits, setting, name, lambda: mlp().bfloat16(), half, watch))
    yield from _copies(setting)
    yield tried("a copy arrives with the next one", partial(_arrives, setting))
    many = partial(ManySmall, 50 if setting.is_dry else 5000)
    watch = settings(3, 5, histogram_every=1)
    yield tried("10,000 tensors", partial(_waits, setting, "10,000 tensors", many, rows(4, 16), watch, num_steps=9))


def _waits(
    setting: Setting, name: str, make: Callable[[], nn.Module], batch: Batch, watch: Any, num_steps: int = 25,
    scaler: bool = False, **options: Any,
) -> Row:  # fmt: skip
    if scaler:
        options["scaler"] = scaler_of(setting)
    is_whole = _waits_for_nothing(fresh(setting, make, batch, **options))
    training = fresh(setting, make, batch, watch=watch, **options)
    training.step()  # the first one makes the plan
    training.guard = no_waiting
    training.guard_all = no_waiting if is_whole else nullcontext
    try:
        for step in range(1, num_steps):
            training.step(publish=step % 6 == 0)
    except RuntimeError as error:
        return outcome(name, False, str(error))
    finally:
        training.guard = training.guard_all = nullcontext
    training.finish()
    num_seen, troubles = len(training.observations), "; ".join(training.troubles)
    guarded = "the whole step" if is_whole else "GradWatch's own part"
    return outcome(name, num_seen > num_steps // 6 and not troubles, troubles, observations=num_seen, guarded=guarded)


def _waits_for_nothing(bare: Training) -> bool:
    bare.step()
    bare.guard_all = no_waiting
    try:
        bare.step()
    except RuntimeError:
        return False
    return True


def _copies(setting: Setting) -> Iterator[Row]:
    """Copies from the device to the host, counted by the profiler: none on an ordinary step, one on the others."""
    if not setting.is_gpu:
        yield Row("copies to the host", "not run", note="needs a GPU")
        return
    for kind, watch, publish in (
        ("an ordinary step", settings(0, NEVER), False),
        ("a sampled step", settings(NEVER, 1), False),
        ("a published step", settings(0, NEVER), True),
        ("a sampled, published step with histograms", settings(NEVER, 1, histogram_every=1), True),
    ):
        yield tried(f"copies on {kind}", partial(_copied, setting, kind, watch, publish), "not run")


def _copied(setting: Setting, kind: str, watch: Any, publish: bool) -> Row:
    training, bare = fresh(setting, mlp, rows(32, 64), watch=watch), fresh(setting, mlp, rows(32, 64))
    for _ in range(3):
        training.step(publish)
        bare.step()
    without = profile(bare.step)
    watched = profile(partial(training.step, publish))
    watched.subtract(without)
    wanted = 0 if kind == "an ordinary step" else 1
    is_right = watched["to the host"] == wanted and not watched["to the host, pageable"]
    is_right &= wanted > 0 or (watched["waits"], watched["from the host"]) == (0, 0)
    return outcome(f"copies on {kind}", is_right, "; ".join(training.troubles), **watched)


def _arrives(setting: Setting) -> Row:
    """The numbers are whole though the device is busy when they are sent."""
    transfer: Transfer[int] = Transfer()
    size = 64 if setting.is_dry else 8192
    load = torch.ones(size, size, device=setting.device)
    seen: list[tuple[int, float, float]] = []
    for turn in range(6):
        with no_waiting():
            numbers = torch.full((1000,), float(turn), device=setting.device)
            numbers += 0 * (load @ load)[0, 0]
        seen += [(label, *_ends(arrived["a"])) for label, arrived in transfer.send(turn, {"a": numbers})]
        numbers.fill_(-1)  # the copy must have been taken before
    seen += [(label, *_ends(arrived["a"])) for label, arrived in transfer.receive()]
    return outcome("a copy arrives with the next one", seen == [(turn, turn, turn) for turn in range(6)], str(seen))


def _ends(tensor: Tensor) -> tuple[float, float]:
    return tensor.min().item(), tensor.max().item()


# ------------------------------------------------------------------------------------------- numbers


def numbers(setting: Setting) -> Iterator[Row]:
    """Norms of gradients that are unscaled and not clipped, against float64 on the host."""
    torch.manual_seed(0)
    small, pictures, words = rows(32, 64), images(4, 32), text(2, 16, 50)
    scaled = {"dtype": half_of(setting), "scaler": True}
    width = 256 if setting.is_dry else 4096
    cases: list[Case] = [
        ("float32", mlp, small, {}),
        ("bf16 weights", lambda: mlp().bfloat16(), (small[0].bfloat16(), small[1]), {}),
        ("bf16 autocast", small_gpt, words, {"dtype": torch.bfloat16}),
        ("channels_last", channels_last, pictures, {}),
        ("a large matrix", lambda: mlp(2, width), rows(8, width), {}),
        ("small tensors", lambda: ManySmall(50), rows(4, 16), {}),
        ("loss scaler", mlp, small, scaled),
        ("loss scaler, fused AdamW", mlp, small, {**scaled, "optimizer": adamw}),
        ("clipping at 0.01 comes later", mlp, small, {"clip": 0.01}),
        ("the same, loss scaler, fused AdamW", mlp, small, {**scaled, "optimizer": adamw, "clip": 0.01}),
    ]
    for name, make, batch, options in cases:
        yield tried(name, partial(_agree, setting, name, make, batch, **options))


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
    worst = max((abs(a - b) / b for a, b in zip(seen, truths, strict=False)), default=math.nan)
    is_right = len(seen) == len(truths) == 4 and worst < 1e-5 and not training.troubles
    return outcome(name, is_right, "; ".join(training.troubles), worst_relative_error=worst)


# ------------------------------------------------------------------------------------------- skipped steps


def skipped(setting: Setting) -> Iterator[Row]:
    """Steps whose gradient is not finite: skipped by a loss scaler, by ``on_nonfinite``, with fused and plain AdamW."""
    for kind, is_fused in (("fused", True), ("plain", False)):
        for by in ("a loss scaler", "on_nonfinite", "on_nonfinite, bf16 weights", "on_nonfinite, float16 weights"):
            # in float16 alone Adam's eps is 0, and weights are NaN before long
            make = torch.optim.SGD if "float16" in by else torch.optim.AdamW
            name = f"{kind} {make.__name__}, {by}"
            yield tried(name, partial(_skips, setting, name, by, partial(make, fused=is_fused or None)))


def _skips(setting: Setting, name: str, by: str, optimizer: Any) -> Row:
    is_scaled = by == "a loss scaler"
    weights = torch.bfloat16 if "bf16" in by else half_of(setting) if "float16" in by else torch.float32
    scaling = {"scaler": scaler_of(setting), "dtype": half_of(setting)} if is_scaled else {}
    watch = settings(2, 3, on_nonfinite="keep" if is_scaled else "skip")
    inputs, targets = rows(32, 64)
    batch = inputs.to(weights), targets
    training = fresh(setting, lambda: mlp().to(weights), batch, watch=watch, optimizer=optimizer, **scaling)
    for _ in range(4):
        training.step()
    before = _state(training)
    training.step(spoil=_spoil)
    is_kept = _equal(before, _state(training))
    for _ in range(6):
        training.step()
    training.finish()
    is_going_on = not _equal(before, _state(training)) and all(bool(t.isfinite().all()) for t in _state(training))
    counted = training.watcher.scores["skipped_steps"] if training.watcher is not None else math.nan
    is_told = ("nonfinite" in [kind for kind, _ in training.alerts]) != is_scaled  # to a scaler it is routine
    note = f"kept {is_kept}, goes on {is_going_on}, told {is_told}; {training.troubles}"
    is_right = is_kept and is_going_on and counted == 1 and is_told and not training.troubles
    return outcome(name, is_right, "" if is_right else note, skipped=counted)


def _spoil(model: nn.Module) -> None:
    next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]


def _state(training: Training) -> list[Tensor]:
    """The weights, and what the optimizer keeps: moments and its count of steps."""
    kept = [v for state in training.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return [t.detach().clone() for t in (*training.model.parameters(), *kept)]


# ------------------------------------------------------------------------------------------- weights


def weights(setting: Setting) -> Iterator[Row]:
    """Weights after 25 steps are bit-identical with and without."""
    torch.manual_seed(0)
    small, words, pictures = rows(32, 64), text(2, 16, 50), images(4, 32)
    scaled = {"dtype": half_of(setting), "optimizer": adamw, "scaler": True}
    cases: list[Case] = [
        ("float32", mlp, small, {}),
        ("fused AdamW", mlp, small, {"optimizer": adamw}),
        ("float16, a loss scaler, fused AdamW", mlp, small, scaled),
        ("bf16 weights", lambda: mlp().bfloat16(), (small[0].bfloat16(), small[1]), {}),
        ("bf16 autocast", small_gpt, words, {"dtype": torch.bfloat16}),
        ("channels_last", channels_last, pictures, {}),
    ]
    with deterministic():
        for name, make, batch, options in cases:
            yield tried(name, partial(_same_weights, setting, name, make, batch, **options))


@contextmanager
def deterministic() -> Iterator[None]:
    """What torch computes is the same each time, as far as it knows how; afterwards all is as before."""
    cudnn = torch.backends.cudnn.deterministic
    is_on, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.cudnn.deterministic = cudnn
        torch.use_deterministic_algorithms(is_on, warn_only=warns)


def _same_weights(setting: Setting, name: str, make: Any, batch: Batch, **options: Any) -> Row:
    is_scaled = options.pop("scaler", False)

    def end(watch: Any) -> tuple[list[Tensor], list[str]]:
        scaling = {"scaler": scaler_of(setting)} if is_scaled else {}
        training = fresh(setting, make, batch, watch=watch, **options, **scaling)
        for step in range(25):
            training.step(publish=step % 4 == 0)
        training.finish()
        return [p.detach().clone() for p in training.model.parameters()], training.troubles

    bare, (watched, troubles) = end(None)[0], end(settings(5, 3, histogram_every=1))
    return _compared(name, bare, watched, lambda: end(None)[0], "; ".join(troubles))


def _compared(
    name: str, bare: list[Tensor], watched: list[Tensor], again: Callable[[], list[Tensor]], note: str, **figures: Any
) -> Row:
    """Whether two ends are the same; where they are not, a second bare one tells whether that says anything."""
    if _equal(bare, watched):
        return outcome(name, not note, note, **figures)
    figures["largest_difference"] = _distance(bare, watched)
    if not _equal(bare, second := again()):
        by_itself = f"this training is not reproducible here by itself: it differs by {_distance(bare, second):.3g}"
        return Row(name, "not run", figures, by_itself)
    return outcome(name, False, note, **figures)


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _distance(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------- clipping


def clipping(setting: Setting) -> Iterator[Row]:
    """Clipped gradients have the norm that they should, beside torch's own; each policy does as on a CPU."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = f"norm 0.01, {str(dtype).removeprefix('torch.')}"
        yield tried(name, partial(_clips, setting, name, dtype))
    for policy in (MaxNorm(0.5), Percentile(25, window=8, first_steps=2), ZScore(z_threshold=1.0, warmup_steps=3),
                   AGC(), AdaGC(warmup_steps=3), MaxValue(0.1)):  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{type(policy).__name__}, {str(dtype).removeprefix('torch.')}, as on the CPU"
            yield tried(name, partial(_as_on_the_cpu, setting, name, policy, dtype))


def _clips(setting: Setting, name: str, dtype: torch.dtype) -> Row:
    ours, theirs = (_clipped_norms(setting, dtype, is_ours) for is_ours in (True, False))
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    return outcome(name, worst < (1e-4 if dtype is torch.float32 else 2e-2), worst_relative_error=worst)


def _clipped_norms(setting: Setting, dtype: torch.dtype, is_ours: bool) -> list[float]:
    """Norms of the gradients that the optimizer gets, in five steps clipped at 0.01 by us or by torch."""
    torch.manual_seed(0)
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


def _as_on_the_cpu(setting: Setting, name: str, policy: ClipPolicy, dtype: torch.dtype) -> Row:
    """Twelve steps of random gradients, on the host and on the device, where nothing waits."""
    torch.manual_seed(0)
    here = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((4, 3), (5,), ())]
    there = [nn.Parameter(p.detach().to(setting.device, copy=True)) for p in here]
    clippers = [Clipper(policy, parameters, Shards(parameters)) for parameters in (here, there)]
    worst = 0.0
    for _ in range(12):
        for p, q in zip(here, there, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.to(setting.device, copy=True)
        norms = torch.tensor([float(torch.linalg.vector_norm(p.grad.double())) for p in here if p.grad is not None])
        on_device = norms.to(setting.device)
        with no_waiting():
            done = clippers[1].clip_(on_device)
        worst = max(worst, *(_gap(a, b) for a, b in zip(clippers[0].clip_(norms), done, strict=True)))
        worst = max(worst, *(_gap(p.grad, q.grad) for p, q in zip(here, there, strict=True)))
    return outcome(name, worst < (1e-4 if dtype is torch.float32 else 2e-2), worst_relative_error=worst)


def _gap(here: Tensor | None, there: Tensor | None) -> float:
    """The largest difference between two tensors, relative to the largest element; where NaN meets NaN, none."""
    if here is None or there is None:
        return math.inf
    wide, other = here.detach().double(), there.detach().cpu().double()
    is_same = (wide == other) | (wide.isnan() & other.isnan())
    scale = wide.nan_to_num(0, 0, 0).abs().max().clamp(min=1e-30)
    difference = float((wide - other).abs().masked_fill(is_same, 0).max() / scale)
    return math.inf if math.isnan(difference) else difference


# ------------------------------------------------------------------------------------------- compiled


def compiled(setting: Setting) -> Iterator[Row]:
    """torch.compile: no recompilation by us, the same weights, nothing waits; with CUDA graphs, too."""
    if (why := cannot_compile(setting)) is not None:
        yield Row("everything", "not run", note=f"torch.compile does not work here: {why}")
        return
    graphs = "reduce-overhead"
    for what, mode in (("blocks", "default"), ("whole", graphs), ("whole", "default"), ("blocks", graphs)):
        if mode != graphs or setting.is_gpu:
            yield tried(f"{what}, {mode}", partial(_compiled, setting, f"{what}, {mode}", mode, what))
    torch._dynamo.reset()


def cannot_compile(setting: Setting) -> str | None:
    """Why torch.compile does not work, as where there is no C compiler; None if it does."""
    try:
        torch.compile(torch.sin, **_backend(setting, "default"))(torch.ones(8, device=setting.device))
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}".splitlines()[0]
    return None


def _backend(setting: Setting, mode: str) -> dict[str, Any]:
    return {"mode": mode} if setting.is_gpu else {"backend": "aot_eager"}


def _compiled(setting: Setting, name: str, mode: str, what: str) -> Row:
    # each word once: the gradient of an embedding is then the same in whatever order it is summed
    tokens = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:32].view(2, 16)
    batch = place(setting, (tokens, tokens))

    def end(watch: Any) -> tuple[list[Tensor], int, Training]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        model: Any = small_gpt().to(setting.device)
        if what == "whole":
            model = torch.compile(model, **_backend(setting, mode))
        else:
            for block in model.blocks:
                block.compile(**_backend(setting, mode))
        training = Training(model, batch, watch)
        for step in range(16):
            training.guard = no_waiting if step > 5 else nullcontext
            training.step(publish=step % 5 == 0)
        training.finish()
        graphs = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return [p.detach().clone() for p in model.parameters()], graphs, training

    bare, before, _ = end(None)
    watched, after, training = end(settings(3, 4, histogram_every=1))
    troubles = [*training.troubles, *(str(alert) for alert in training.alerts)]
    if after != before:
        troubles.append(f"{after} graphs instead of {before}")
    return _compared(name, bare, watched, lambda: end(None)[0], "; ".join(troubles), graphs=f"{before} and {after}")


# ------------------------------------------------------------------------------------------- prescriptions


def prescriptions(setting: Setting) -> Iterator[Row]:
    """Remedies for a sick network are tried in the precision that is asked for, and leave it as it was."""
    for dtype in (torch.bfloat16, torch.float16) if setting.is_gpu else (torch.bfloat16,):
        name = f"mixed precision, {str(dtype).removeprefix('torch.')}"
        yield tried(name, partial(_prescribed, setting, name, dtype))


def _prescribed(setting: Setting, name: str, dtype: torch.dtype) -> Row:
    from lightning_gradwatch import prescribe

    torch.manual_seed(0)
    model = mlp(20, 64, nn.Sigmoid).to(setting.device)
    before, seen = [p.detach().clone() for p in model.parameters()], set()

    def loss_fn(output: Tensor, targets: Tensor) -> Tensor:
        seen.add((output.dtype, output.device.type))
        return nn.functional.cross_entropy(output.float(), targets)

    batch, seconds = place(setting, rows(64, 64)), 3.0 if setting.is_dry else 8.0
    found = prescribe(model, batch, loss_fn, precision=dtype, progress=False, max_seconds=seconds)
    is_kept = _equal(before, [p.detach() for p in model.parameters()])
    helpful = [trial.key for trial in found.trials if trial.effect == "helps"]
    is_right = is_kept and (dtype, setting.device) in seen and found.kind == "vanishing" and bool(found.trials)
    note = "" if is_right else f"kept {is_kept}, computed in {seen}, {found.diagnosis}"
    return outcome(name, is_right, note, tried=len(found.trials), helpful=", ".join(helpful[:3]))


# ------------------------------------------------------------------------------------------- alerts and memory


def found(setting: Setting) -> Iterator[Row]:
    """A sick network is found at the same step as on a CPU, its cured twin is left alone."""
    for name, activation, wanted in (("sigmoids", nn.Sigmoid, ["vanishing"]), ("ReLU", nn.ReLU, [])):
        yield tried(name, partial(_finds, setting, name, activation, wanted))


def _finds(setting: Setting, name: str, activation: type[nn.Module], wanted: list[str]) -> Row:
    torch.manual_seed(0)
    batch = rows(64, 64)
    here, there = (_alerts(at, activation, batch) for at in (Setting("cpu", setting.is_dry), setting))
    return outcome(name, there == here and [kind for kind, _ in there] == wanted, alerts=str(there), on_a_cpu=str(here))


def _alerts(setting: Setting, activation: type[nn.Module], batch: Batch) -> list[tuple[str, int]]:
    def make() -> nn.Module:
        net = mlp(20, 64, activation)
        for layer in net if activation is nn.ReLU else ():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        return net

    training = fresh(setting, make, batch, watch=settings(20, 10))
    for _ in range(40):
        training.step()
    training.finish()
    return training.alerts


def memory(setting: Setting) -> Iterator[Row]:
    """What is held on the device between steps: below 1 MB or 1 % of the parameters; and what a sample takes."""
    if not setting.is_gpu:
        yield Row("held between steps", "not run", note="needs a GPU")
        return
    yield tried("held between steps", partial(_held, setting))
    yield tried("at the peak of the first sample", partial(_peak, setting))


def _held(setting: Setting) -> Row:
    held: list[int] = []
    size = 0
    for watch in (None, None, settings(3, 5)):  # the first one makes torch's own workspaces
        release(setting)
        before = torch.cuda.memory_allocated()
        training = fresh(setting, lambda: mlp(20, 1024), rows(8, 1024), watch=watch)
        for step in range(20):
            training.step(publish=step % 5 == 0)
        training.optimizer.zero_grad()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated() - before)
        size = sum(p.numel() * p.element_size() for p in training.model.parameters())
        del training
    more = held[2] - held[1]
    return outcome("held between steps", more < max(2**20, size / 100), megabytes=more / 1e6, of_parameters=more / size)


def _peak(setting: Setting) -> Row:
    """Of a language model with many words, whose largest gradients are those of its logits."""
    peaks: list[int] = []
    batch = text(8, 256, 50257)
    for watch in (None, None, settings(1, NEVER)):
        release(setting)
        training = fresh(setting, lambda: GPT(2, 256, 4, 50257, 256), batch, watch=watch, dtype=torch.bfloat16)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        training.step(publish=True)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del training
    _, bare, watched = (peak / 1e6 for peak in peaks)
    figures = {"megabytes": watched, "megabytes_without": bare, "percent_more": 100 * (watched / bare - 1)}
    return Row("at the peak of the first sample", "measured", figures)


PIECES = (
    Piece("waiting", "Nothing waits for the device", 45, waiting),
    Piece("numbers", "Norms against float64 on the host", 10, numbers),
    Piece("skipped", "Steps that are not finite", 10, skipped),
    Piece("weights", "Weights with and without, bit by bit", 15, weights),
    Piece("clipping", "Clipping beside torch's, and beside the CPU", 8, clipping),
    Piece("found", "Alerts", 7, found),
    Piece("memory", "Memory", 7, memory),
    Piece("compiled", "torch.compile and CUDA graphs", 60, compiled),
    Piece("prescriptions", "Prescriptions in the run's precision", 20, prescriptions),
)
