"""The laws that all policies keep: what they do to norms, remember, cost, and do over ranks."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.core.clip import (
    AGC,
    AdaGC,
    Clipper,
    Clipping,
    ClipPolicy,
    MaxNorm,
    MaxValue,
    Percentile,
    ZScore,
)
from tests.core.clip.training import (
    EXAMPLES,
    OF_THE_TOTAL,
    Training,
    clip,
    make_clipper,
    name_of,
    norms_of,
)
from tests.setups.processes import run_ranks
from tests.tasks import with_gradients

values = st.floats(-100, 100, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
vectors = st.lists(st.lists(values, min_size=1, max_size=4), min_size=2, max_size=2)
histories = st.lists(vectors, min_size=1, max_size=8)


def play(policy: ClipPolicy, history: list[list[list[float]]]) -> tuple[Clipper, list[nn.Parameter], list[Clipping]]:
    """Clip one step after another, of vectors padded to four elements."""
    parameters = with_gradients(torch.ones(4), torch.ones(4))
    clipper, clippings = make_clipper(policy, parameters), []
    for step in history:
        for parameter, vector in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(vector + [0.0] * (4 - len(vector)))
        clippings.append(clip(clipper, parameters))
    return clipper, parameters, clippings


@pytest.mark.parametrize("policy", EXAMPLES, ids=name_of)
@settings(max_examples=40, deadline=None)
@given(history=histories)
def test_no_norm_ever_grows(policy: ClipPolicy, history: list[list[list[float]]]) -> None:
    _, parameters, clippings = play(policy, history)
    last = clippings[-1]
    assert (last.coefficients <= 1).all()
    assert (last.coefficients >= 0).all()
    assert last.clipped_norm <= last.total_norm * (1 + 1e-6)
    after = norms_of(parameters)
    before = torch.tensor([math.hypot(*vector) for vector in history[-1]])
    assert (after <= before * (1 + 1e-6)).all()
    assert last.clipped_norm.item() == pytest.approx(float(after.norm()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("policy", OF_THE_TOTAL, ids=name_of)
@settings(max_examples=40, deadline=None)
@given(history=histories)
def test_a_global_policy_keeps_the_direction(policy: ClipPolicy, history: list[list[list[float]]]) -> None:
    _, parameters, clippings = play(policy, history)
    coefficients = clippings[-1].coefficients
    factor = coefficients.min().item()
    assert all(c == (factor if any(v) else 1) for c, v in zip(coefficients.tolist(), history[-1], strict=True))
    for parameter, vector in zip(parameters, history[-1], strict=True):
        assert parameter.grad is not None
        assert parameter.grad[: len(vector)].tolist() == pytest.approx([factor * v for v in vector], rel=1e-5)


@pytest.mark.parametrize("policy", [MaxNorm(0.5), AGC(), MaxValue(0.1)], ids=name_of)
@settings(max_examples=40, deadline=None)
@given(step=vectors)
def test_at_a_fixed_threshold_the_second_time_changes_nothing(policy: ClipPolicy, step: list[list[float]]) -> None:
    clipper, parameters, _ = play(policy, [step])
    once = [p.grad.clone() for p in parameters if p.grad is not None]
    clip(clipper, parameters)
    for parameter, before in zip(parameters, once, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, before, rtol=3e-6, atol=0)


@pytest.mark.parametrize("policy", [Percentile(30, window=5, first_steps=2), ZScore(1.0, 0.9, 3)], ids=name_of)
@settings(max_examples=40, deadline=None)
@given(history=histories, exponent=st.integers(-20, 20))
def test_the_unit_of_the_loss_does_not_matter(
    policy: ClipPolicy, history: list[list[list[float]]], exponent: int
) -> None:
    scaled = [[[v * 2.0**exponent for v in vector] for vector in step] for step in history]
    plain, other = play(policy, history)[2], play(policy, scaled)[2]
    for one, two in zip(plain, other, strict=True):
        assert one.coefficients.tolist() == pytest.approx(two.coefficients.tolist(), rel=1e-5)


@pytest.mark.parametrize("policy", EXAMPLES, ids=name_of)
@settings(max_examples=20, deadline=None)
@given(history=histories, bad=st.sampled_from([math.nan, math.inf, -math.inf]), warm=st.booleans())
def test_a_norm_that_is_not_finite_changes_no_bit_and_is_forgotten(
    policy: ClipPolicy, history: list[list[list[float]]], bad: float, warm: bool
) -> None:
    clipper, parameters, _ = play(policy, history if warm else [])
    before = clipper.state_dict()["memory"]
    gradients = [torch.tensor([1e9, bad, -0.0, 1e-40]), torch.tensor([3.0, -5e5, 7.0, 0.1])]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    clipping = clip(clipper, parameters)
    assert clipping.coefficients.tolist() == [1.0, 1.0]
    assert not clipping.total_norm.isfinite()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad.view(torch.int32), gradient.view(torch.int32))
    for name, value in clipper.state_dict()["memory"].items():
        assert torch.equal(value.nan_to_num(-1), before[name].nan_to_num(-1))


@pytest.mark.parametrize("policy", [policy for policy in OF_THE_TOTAL if not isinstance(policy, MaxNorm)], ids=name_of)
def test_steps_without_any_gradient_say_nothing_about_the_usual_size(policy: ClipPolicy) -> None:
    training, quiet = Training(policy), with_gradients(None)
    for _ in range(12):
        training.step()
    saved = {name: value.clone() for name, value in training.clipper.state_dict()["memory"].items()}
    for p in training.parameters:
        p.grad = torch.zeros_like(p)
    clip(training.clipper, training.parameters)
    assert all(torch.equal(value, training.clipper.state_dict()["memory"][name]) for name, value in saved.items())
    assert clip(make_clipper(policy, quiet), quiet).coefficients.tolist() == [1.0]


@pytest.mark.parametrize("policy", EXAMPLES, ids=name_of)
def test_a_loss_scale_that_is_still_in_the_gradients_changes_nothing_else(policy: ClipPolicy) -> None:
    plain, scaled = Training(policy), Training(policy)
    for _ in range(10):
        _, expected = plain.step()
        scaled.draw()
        for p in scaled.parameters:
            assert p.grad is not None
            p.grad *= 1024
        clipping = clip(scaled.clipper, scaled.parameters, 1024.0)
        for one, two in zip(clipping, expected, strict=True):
            torch.testing.assert_close(one, two, equal_nan=True)
        for one, two in zip(scaled.gradients(), plain.gradients(), strict=True):
            torch.testing.assert_close(one / 1024, two)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 5, 20])
@pytest.mark.parametrize("policy", EXAMPLES, ids=name_of)
def test_a_resumed_run_goes_on_bit_by_bit(policy: ClipPolicy, cut: int) -> None:
    whole, first = Training(policy), Training(policy)
    for _ in range(cut):
        whole.step()
        first.step()
    file = io.BytesIO()
    torch.save(first.clipper.state_dict(), file)
    file.seek(0)
    second = Training(policy)
    second.random.set_state(first.random.get_state())
    second.clipper.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(20):
        expected, found = whole.step()[1], second.step()[1]
        assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(expected, found, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(whole.gradients(), second.gradients(), strict=True))


def memory_after(policy: ClipPolicy, other: ClipPolicy, num_parameters: int | None = None) -> tuple[Any, Any, Any]:
    """Memory of a clipper in training, of one that was given its state, and of a fresh one."""
    training = Training(policy)
    for _ in range(10):
        training.step()
    parameters = training.parameters[:num_parameters]
    heir, fresh = make_clipper(other, parameters), make_clipper(other, parameters)
    heir.load_state_dict(training.clipper.state_dict())
    clippers = (training.clipper, heir, fresh)
    return tuple({n: v.nan_to_num(-1).tolist() for n, v in c.state_dict()["memory"].items()} for c in clippers)  # type: ignore[return-value]


@pytest.mark.parametrize("other", [Percentile(window=9), ZScore(), MaxNorm()], ids=name_of)
def test_a_state_that_no_longer_fits_starts_afresh(other: ClipPolicy) -> None:
    _, heir, fresh = memory_after(Percentile(window=8), other)
    assert heir == fresh


def test_a_memory_of_each_tensor_starts_afresh_when_these_are_others_and_one_of_total_norms_goes_on() -> None:
    _, heir, fresh = memory_after(AdaGC(), AdaGC(), num_parameters=2)
    assert heir == fresh
    before, heir, fresh = memory_after(Percentile(window=8), Percentile(percentile=50, window=8), num_parameters=2)
    assert heir == before != fresh


@pytest.mark.parametrize("policy", EXAMPLES, ids=name_of)
def test_memory_does_not_grow(policy: ClipPolicy) -> None:
    training = Training(policy)

    def num_bytes() -> int:
        return sum(value.untyped_storage().nbytes() for value in training.clipper.memory.values())

    before, tensors = num_bytes(), dict(training.clipper.memory)
    for _ in range(30):
        training.step()
    assert num_bytes() == before <= 64
    assert all(training.clipper.memory[name] is value for name, value in tensors.items())


# --- cost ------------------------------------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """The names of the torch operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func._schema.name)
        return func(*args, **(kwargs or {}))


READS = {f"aten::{name}" for name in ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select")}


@pytest.mark.parametrize("policy", EXAMPLES, ids=name_of)
def test_at_most_the_one_coefficient_is_read_and_from_a_cpu_alone(policy: ClipPolicy) -> None:
    training = Training(policy)
    for _ in range(6):
        training.draw()
        norms, scale = norms_of(training.parameters), torch.tensor(1.0)
        with Count() as count:
            training.clipper.clip_(norms, scale)
        assert sum(operator in READS for operator in count.operators) == (policy in OF_THE_TOTAL)


@pytest.mark.parametrize("policy", EXAMPLES, ids=name_of)
def test_numbers_that_do_not_exist_are_not_missed(policy: ClipPolicy) -> None:
    """On the meta device there are shapes only: to read a number, or to copy one to the host, is an error."""
    parameters = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((4, 3), (5,), ())]
    for p in parameters:
        p.grad = torch.empty_like(p)
    clipper, norms = make_clipper(policy, parameters), torch.empty(3, device="meta")
    clippings = [clipper.clip_(norms, scale) for scale in (None, torch.empty((), device="meta"))]
    assert [[tuple(number.shape) for number in clipping] for clipping in clippings] == [[(), (), (), (3,), ()]] * 2


def test_the_count_of_reads_can_fail() -> None:
    with Count() as count:
        torch.ones(1).item()
    assert "aten::_local_scalar_dense" in count.operators


@pytest.mark.parametrize("policy", OF_THE_TOTAL, ids=name_of)
def test_the_number_of_operators_does_not_grow_with_the_parameters(policy: ClipPolicy) -> None:
    lengths = []
    for num in (3, 300):
        parameters = with_gradients(*[torch.ones(2)] * num)
        clipper, norms = make_clipper(policy, parameters), norms_of(parameters)
        with Count() as count:
            clipper.clip_(norms)
        lengths.append(len([name for name in count.operators if name != "aten::detach"]))
    assert lengths[0] == lengths[1] < 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("policy", EXAMPLES, ids=name_of)
def test_on_a_gpu_no_step_waits_and_all_are_as_on_the_cpu(policy: ClipPolicy, dtype: torch.dtype) -> None:
    here = [nn.Parameter(torch.randn(s, dtype=dtype)) for s in ((4, 3), (5,), ())]
    there = [nn.Parameter(p.detach().cuda()) for p in here]
    clippers = make_clipper(policy, here), make_clipper(policy, there)
    for _ in range(12):
        for p, q in zip(here, there, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.cuda()
        norms = norms_of(here)
        on_device = norms.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            clipping = clippers[1].clip_(on_device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one, two in zip(clipping, clippers[0].clip_(norms), strict=True):
            torch.testing.assert_close(one.cpu(), two, equal_nan=True, rtol=1e-3, atol=1e-5)
        for p, q in zip(here, there, strict=True):
            assert q.grad is not None
            torch.testing.assert_close(q.grad.cpu(), p.grad)


# --- ranks -----------------------------------------------------------------------------------------------------------


ON_RANKS = """
import os
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from lightning_gradwatch.core.clip import AGC, AdaGC, Clipper, MaxNorm, MaxValue, Percentile, ZScore
from lightning_gradwatch.core.measure import ParameterMeter
from lightning_gradwatch.core.norms import norms
from lightning_gradwatch.core.shards import Shards
from tests.core.clip.test_clipper import RANK_STEPS, rank_gradients
from tests.setups.processes import tell

rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))

def spread(kinds):
    parameters = []
    for gradient, kind in zip(rank_gradients(0), kinds):
        whole = torch.ones_like(gradient)
        places = {"shard": [Shard(0)], "replicate": [Replicate()], "partial": [Replicate()]}
        parameters.append(nn.Parameter(whole if kind == "plain" else distribute_tensor(whole, mesh, places[kind])))
    return parameters

def give(parameters, kinds, step):
    for p, gradient, kind in zip(parameters, rank_gradients(step), kinds):
        if kind == "plain":
            p.grad = gradient
        elif kind == "partial":
            part = gradient * (0.25 if rank == 0 else 0.75)
            p.grad = DTensor.from_local(part, mesh, [Partial()], run_check=False)
        else:
            p.grad = distribute_tensor(gradient, mesh, p.placements)

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

told = {}
mixed = ["shard", "plain", "partial", "shard"]
for policy, kinds in [
    (MaxNorm(0.5), mixed), (Percentile(30, window=5, first_steps=2), mixed), (ZScore(1.0, 0.9, 3), mixed),
    (AdaGC(warmup_steps=3), mixed), (MaxValue(0.3), ["shard", "plain", "shard", "shard"]),
]:
    parameters = spread(kinds)
    shards = Shards(parameters)
    clipper = Clipper(policy, parameters, shards)
    steps = []
    for step in range(RANK_STEPS):
        give(parameters, kinds, step)
        measured = torch.stack(norms(shards.local_parts([p.grad for p in parameters], parameters)))
        clipping = clipper.clip_(shards.reduce({"norms": measured}, {"norms": "norm"})["norms"])
        told_now = [whole(p.grad).flatten().tolist() for p in parameters]
        steps.append({"gradients": told_now, "clipping": [t.nan_to_num(-1).tolist() for t in clipping]})
    told[type(policy).__name__] = steps

refused = []
for policy, kinds in [(AGC(), mixed), (MaxValue(1.0), mixed)]:
    parameters = spread(kinds)
    try:
        Clipper(policy, parameters, Shards(parameters))
    except ValueError as error:
        refused.append(str(error))
tell({"told": told, "refused": refused})
"""
RANK_STEPS = 8


def rank_gradients(step: int) -> list[Tensor]:
    """Whole gradients of one step: even and uneven rows, one row (an empty shard on the second rank)."""
    random = torch.Generator().manual_seed(step)
    size = 5.0 if step == 5 else 1.0
    return [size * torch.randn(s, generator=random) for s in ((4, 3), (5,), (3, 2), (1, 2))]


@pytest.mark.slow
def test_gradients_spread_over_ranks_are_clipped_as_a_whole_and_alike(tmp_path: Path) -> None:
    first, second = run_ranks(ON_RANKS, tmp_path)
    assert first == second
    policies: list[ClipPolicy] = [
        MaxNorm(0.5), Percentile(30, window=5, first_steps=2), ZScore(1.0, 0.9, 3), AdaGC(warmup_steps=3), MaxValue(0.3)
    ]  # fmt: skip
    assert sorted(first["told"]) == sorted(map(name_of, policies))
    for policy in policies:
        parameters = with_gradients(*rank_gradients(0))
        clipper = make_clipper(policy, parameters)
        for step, told in enumerate(first["told"][name_of(policy)]):
            for p, gradient in zip(parameters, rank_gradients(step), strict=True):
                p.grad = gradient
            clipping = clip(clipper, parameters)
            for p, found in zip(parameters, told["gradients"], strict=True):
                assert p.grad is not None
                assert found == pytest.approx(p.grad.flatten().tolist(), rel=1e-4)
            for expected, found in zip(clipping, told["clipping"], strict=True):
                assert found == pytest.approx(expected.nan_to_num(-1).tolist(), rel=1e-4)
    assert "parts of weights" in first["refused"][0]
    assert "partial sums" in first["refused"][1]
    assert all("To cure it: " in message for message in first["refused"])
