"""Clipping: each policy against torch, numpy or its paper written down a second time; and the laws that all keep."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from lightning_gradwatch.core.clip.agc import unitwise_norms
from lightning_gradwatch.core.clip.gradients import multiply_half_
from lightning_gradwatch.core.clip.percentile import percentile_threshold
from lightning_gradwatch.core.shards import Shards
from tests.setups.processes import run_ranks

GLOBAL: list[ClipPolicy] = [
    MaxNorm(0.5),
    Percentile(25, window=8, first_steps=2),
    ZScore(z_threshold=1.0, warmup_steps=3),
]
POLICIES: list[ClipPolicy] = [*GLOBAL, AGC(), AdaGC(warmup_steps=3), MaxValue(0.1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


def name_of(policy: object) -> str:
    return type(policy).__name__ if isinstance(policy, ClipPolicy) else str(policy)


def dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def norms_of(parameters: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """What the clipper is given, computed in double precision."""
    wide = [
        p.grad if p.grad is None else dense(p.grad).to(torch.promote_types(p.dtype, torch.double)) for p in parameters
    ]
    return torch.tensor([-1.0 if g is None else float(torch.linalg.vector_norm(g)) / scale for g in wide])


def one_rounding(dtype: torch.dtype) -> dict[str, Any]:
    """Tolerances for one rounding to a dtype, of numbers computed in single precision."""
    limits = torch.finfo(dtype)
    return {"rtol": max(limits.eps, 2e-6), "atol": limits.smallest_normal * limits.eps}


def clip(clipper: Clipper, parameters: Sequence[Tensor], scale: float | None = None) -> Clipping:
    norms = norms_of(parameters, scale or 1.0)
    return clipper.clip_(norms, None if scale is None else torch.tensor(scale))


def with_gradients(*gradients: Tensor | None) -> list[nn.Parameter]:
    parameters = []
    for gradient in gradients:
        like = torch.zeros(2) if gradient is None else gradient
        parameters.append(nn.Parameter(torch.ones(like.shape, dtype=like.dtype)))
        parameters[-1].grad = gradient
    return parameters


def make_clipper(policy: ClipPolicy, parameters: Sequence[Tensor]) -> Clipper:
    return Clipper(policy, parameters, Shards(parameters))


class Training:
    """Parameters whose gradients are drawn anew at each step, of sizes that wander and sometimes leap."""

    def __init__(self, policy: ClipPolicy, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.parameters = [nn.Parameter(torch.randn(s, generator=self.random)) for s in ((4, 3), (5,), (2, 3, 2), ())]
        self.clipper = make_clipper(policy, self.parameters)

    def draw(self) -> list[Tensor]:
        size = float(torch.rand((), generator=self.random)) + (20 if torch.rand((), generator=self.random) < 0.1 else 1)
        for p in self.parameters:
            p.grad = size * torch.randn(p.shape, generator=self.random)
        return [p.grad.clone() for p in self.parameters if p.grad is not None]

    def step(self) -> tuple[list[Tensor], Clipping]:
        """The gradients before clipping, and what was done to them."""
        before = self.draw()
        return before, clip(self.clipper, self.parameters)

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]


# --- fixed norm and fixed value, as torch clips ----------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fixed_norm_is_torchs_own_in_every_dtype(dtype: torch.dtype, max_norm: float) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(30, 7, dtype=torch.promote_types(dtype, torch.float32)) for _ in range(3)]
    parameters = with_gradients(*[g.to(dtype) for g in gradients])
    others = with_gradients(*[g.to(dtype).to(g.dtype).clone() for g in gradients])
    clipping = clip(make_clipper(MaxNorm(max_norm), parameters), parameters)
    total = torch.nn.utils.clip_grad_norm_(others, max_norm)
    assert clipping.total_norm.item() == pytest.approx(total.item(), rel=1e-6)
    for ours, torchs in zip(parameters, others, strict=True):
        assert ours.grad is not None
        assert torchs.grad is not None
        torch.testing.assert_close(ours.grad.to(torchs.grad.dtype), torchs.grad, **one_rounding(dtype))


def many_kinds() -> list[Tensor | None]:
    torch.manual_seed(1)
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 3, 0]]), torch.randn(3, 2), (5, 2))
    conjugate = torch.randn(4, dtype=torch.complex64).conj()
    return [
        torch.randn(3, 3),
        None,
        twice,
        conjugate,
        torch.randn(2).double(),
        torch.randn(4).bfloat16(),
        torch.empty(0),
    ]


@pytest.mark.parametrize("policy", [MaxNorm(0.3), AdaGC(lambda_abs=0.3), MaxValue(0.2)], ids=name_of)
def test_every_container_is_clipped_as_if_it_were_dense(policy: ClipPolicy) -> None:
    parameters = with_gradients(*many_kinds())
    others = [
        g if g is None else dense(g).resolve_conj().to(torch.promote_types(g.dtype, torch.double)) for g in many_kinds()
    ]
    norms = norms_of(parameters)
    before = float(norms.clamp(min=0).norm())
    clipping = clip(make_clipper(policy, parameters), parameters)
    limit = 0.3 / (before + 1e-6)
    if not isinstance(policy, MaxValue):
        expected = [g if g is None else g * limit for g in others]
    else:
        limit = 0.2
        expected = [
            g if g is None
            else torch.complex(g.real.clamp(-limit, limit), g.imag.clamp(-limit, limit)) if g.is_complex()
            else g.clamp(-limit, limit)
            for g in others
        ]  # fmt: skip
    for ours, right in zip(parameters, expected, strict=True):
        if right is None:
            assert ours.grad is None
            continue
        assert ours.grad is not None
        torch.testing.assert_close(dense(ours.grad).to(right.dtype), right, **one_rounding(ours.dtype))
    after = norms_of(parameters)
    assert clipping.total_norm.item() == pytest.approx(before, rel=1e-6)
    assert clipping.clipped_norm.item() == pytest.approx(float(after.clamp(min=0).norm()), rel=1e-3)
    total = clipping.total_norm.item()
    assert clipping.coefficient.item() == pytest.approx(
        clipping.clipped_norm.item() / total if total else 1.0, rel=1e-5
    )
    ratios = torch.where(norms > 0, after / norms, 1.0)
    torch.testing.assert_close(clipping.coefficients, ratios, rtol=5e-3, atol=0)


def test_a_fixed_value_is_torchs_own() -> None:
    training, other = Training(MaxValue(0.4)), Training(MaxValue(0.4))
    other.draw()
    torch.nn.utils.clip_grad_value_(other.parameters, 0.4)
    _, clipping = training.step()
    assert all(torch.equal(a, b) for a, b in zip(training.gradients(), other.gradients(), strict=True))
    assert clipping.threshold.item() == pytest.approx(0.4)


def test_half_precision_is_multiplied_by_a_number_of_single_precision() -> None:
    """0.999 is 1 in bfloat16: with a rounded coefficient nothing would be clipped at all."""
    tensor, factor = torch.linspace(-3, 3, 1001).bfloat16(), torch.tensor(0.999)
    expected = (tensor.double() * 0.999).bfloat16()
    multiply_half_([tensor], factor)
    assert torch.equal(tensor, expected)


# --- AutoClip --------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(2.0**-10, 2.0**10, width=32) | st.just(math.nan), min_size=1, max_size=30),
    st.floats(0.125, 100, width=32),
)
def test_the_percentile_is_numpys_and_ignores_skipped_steps(history: list[float], percentile: float) -> None:
    found = percentile_threshold(torch.tensor(history), percentile).item()
    known = [value for value in history if not math.isnan(value)]
    assert found == pytest.approx(np.percentile(known, percentile) if known else math.inf, rel=1e-4)


@pytest.mark.parametrize(("history", "percentile"), [(torch.ones(3), 0), (torch.ones(3), 101), (torch.ones(0), 10)])
def test_a_percentile_of_nothing_is_refused(history: Tensor, percentile: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        percentile_threshold(history, percentile)


@pytest.mark.parametrize("percentile", [10.0, 62.5, 100.0])
def test_autoclip_clips_at_the_percentile_of_its_window(percentile: float) -> None:
    training, totals = Training(Percentile(percentile, window=7, first_steps=3)), []
    for step in range(40):
        before, clipping = training.step()
        totals.append(math.hypot(*(float(g.norm()) for g in before)))
        threshold = np.percentile(totals[-7:], percentile) if step >= 3 else min(totals)
        assert clipping.threshold.item() == pytest.approx(threshold, rel=1e-5)
        factor = min(1.0, threshold / totals[-1])
        for was, now in zip(before, training.gradients(), strict=True):
            torch.testing.assert_close(now, was * factor, rtol=1e-5, atol=0)
        assert clipping.clipped_norm.item() == pytest.approx(min(threshold, totals[-1]), rel=1e-5)


def test_tiny_gradients_are_clipped_by_the_same_share() -> None:
    """An absolute epsilon as in torch's clipping would shrink norms of 1e-8 a hundredfold."""
    factors = []
    for size in (1.0, 1e-8):
        parameters = with_gradients(torch.ones(1))
        clipper = make_clipper(Percentile(50, first_steps=0), parameters)
        for value in (1.0, 2.0, 4.0):
            parameters[0].grad = torch.tensor([value * size])
            clipping = clip(clipper, parameters)
        factors.append(clipping.coefficients.item())
    assert factors == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("policy", GLOBAL[1:], ids=name_of)
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


# --- ZClip -----------------------------------------------------------------------------------------------------------


class PaperZClip:
    """Kumar et al. 2025, section 3, on Python floats."""

    def __init__(self, z_threshold: float, alpha: float, warmup_steps: int) -> None:
        self.limit, self.alpha, self.warmup_steps = z_threshold, alpha, warmup_steps
        self.seen: list[float] = []

    def target(self, norm: float) -> float:
        if len(self.seen) < self.warmup_steps:
            self.seen.append(norm)
            self.mean, self.variance = float(np.mean(self.seen)), float(np.var(self.seen))
            return norm
        z = (norm - self.mean) / (math.sqrt(self.variance) + 1e-6 * self.mean)
        if z > self.limit:
            norm = self.mean + self.limit**2 * math.sqrt(self.variance) / z
        self.mean = self.alpha * self.mean + (1 - self.alpha) * norm
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (norm - self.mean) ** 2
        return norm


def test_zclip_is_the_papers() -> None:
    training, paper, num_clipped = Training(ZScore(2.0, 0.9, 10)), PaperZClip(2.0, 0.9, 10), 0
    for _ in range(150):
        before, clipping = training.step()
        total = math.hypot(*(float(g.norm()) for g in before))
        target = paper.target(total)
        num_clipped += target < total
        for was, now in zip(before, training.gradients(), strict=True):
            torch.testing.assert_close(now, was * (target / total), rtol=1e-3, atol=0)
        assert (clipping.total_norm > clipping.threshold).item() == (target < total)
    assert 5 < num_clipped < 50


# --- AdaGC -----------------------------------------------------------------------------------------------------------


class PaperAdaGC:
    """Wang et al. 2025, algorithm 1 without Adam, on Python floats."""

    def __init__(self, policy: AdaGC) -> None:
        self.policy, self.steps = policy, 0
        self.running: list[float] = []

    def factors(self, norms: list[float]) -> list[float]:
        policy, self.steps = self.policy, self.steps + 1
        if self.steps <= policy.warmup_steps:
            factor = min(policy.lambda_abs / math.hypot(*norms), 1.0)
            clipped = [factor * n for n in norms]
            self.running = [min(g, n) for g, n in zip(self.running, clipped, strict=True)] if self.running else clipped
            return [factor] * len(norms)
        factors = [min(policy.lambda_rel * g / n, 1.0) for g, n in zip(self.running, norms, strict=True)]
        for i, factor in enumerate(factors):
            self.running[i] = policy.beta * self.running[i] + (1 - policy.beta) * factor * norms[i]
        return factors


def test_adagc_is_the_papers() -> None:
    policy = AdaGC(lambda_rel=1.1, beta=0.9, lambda_abs=2.0, warmup_steps=10)
    training, paper = Training(policy), PaperAdaGC(policy)
    for _ in range(100):
        before, clipping = training.step()
        factors = paper.factors([float(g.norm()) for g in before])
        assert clipping.coefficients.tolist() == pytest.approx(factors, rel=1e-4)
        for was, now, factor in zip(before, training.gradients(), factors, strict=True):
            torch.testing.assert_close(now, was * factor, rtol=1e-4, atol=0)
    assert len({round(f, 6) for f in factors}) > 1


def test_adagc_frees_a_tensor_whose_gradients_begin_with_zero_or_late() -> None:
    parameters = with_gradients(torch.ones(1), torch.zeros(1), None)
    clipper = make_clipper(AdaGC(warmup_steps=2, lambda_abs=10.0), parameters)
    for _ in range(5):
        clip(clipper, parameters)
    for p in parameters:
        p.grad = torch.full_like(p, 2.0)
    assert clip(clipper, parameters).coefficients.tolist() == pytest.approx([1.05 / 2, 1.0, 1.0])
    for p in parameters:
        p.grad = torch.full_like(p, 4.0)
    assert clip(clipper, parameters).coefficients.tolist()[1:] == pytest.approx([1.05 * 2 / 4] * 2)


# --- AGC -------------------------------------------------------------------------------------------------------------


def paper_agc(weight: Any, gradient: Any, clip_factor: float, floor: float) -> Any:
    """Brock et al. 2021, equation 3, on numpy arrays, unit by unit."""
    if weight.ndim > 1:
        return np.stack([paper_agc(w.ravel(), g.ravel(), clip_factor, floor).reshape(w.shape)
                         for w, g in zip(weight, gradient, strict=True)])  # fmt: skip
    allowed, norm = clip_factor * max(float(np.linalg.norm(weight)), floor), float(np.linalg.norm(gradient))
    return gradient * (allowed / norm) if norm > allowed else gradient


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64], ids=str
)
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0])
def test_agc_is_the_papers_unit_by_unit(size: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.double)
    parameters = [nn.Parameter(torch.randn(s, dtype=wide).to(dtype)) for s in ((6, 4), (4,), (3, 2, 2, 2), ())]
    with torch.no_grad():
        parameters[0][2].zero_()
    for p in parameters:
        p.grad = (size * torch.randn(p.shape, dtype=wide)).to(dtype)
    assert parameters[0].grad is not None
    parameters[0].grad[1] = 0
    before = [p.grad.to(wide).clone().numpy() for p in parameters if p.grad is not None]
    clipping = clip(make_clipper(AGC(0.05, 1e-2), parameters), parameters)
    for p, was, factor in zip(parameters, before, clipping.coefficients.tolist(), strict=True):
        assert p.grad is not None
        expected = paper_agc(p.detach().to(wide).numpy(), was, 0.05, 1e-2)
        np.testing.assert_allclose(p.grad.to(wide).numpy(), expected, **one_rounding(dtype))
        assert factor == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(was), rel=1e-4)


def test_agc_lets_weights_leave_zero() -> None:
    parameter = nn.Parameter(torch.zeros(3, 4))
    parameter.grad = torch.ones(3, 4)
    clip(make_clipper(AGC(), [parameter]), [parameter])
    assert unitwise_norms(parameter.grad).flatten().tolist() == pytest.approx([0.01 * 1e-3] * 3)


def test_agc_takes_the_rows_of_a_sparse_gradient_as_units() -> None:
    torch.manual_seed(0)
    weight = torch.randn(9, 4)
    sparse = torch.sparse_coo_tensor(torch.tensor([[5, 1, 5, 7]]), torch.randn(4, 4), (9, 4))
    outcomes = []
    for gradient in (sparse, sparse.to_dense()):
        parameter = nn.Parameter(weight.clone())
        parameter.grad = gradient
        clipping = clip(make_clipper(AGC(), [parameter]), [parameter])
        outcomes.append((parameter.grad, clipping.coefficients))
    assert outcomes[0][0].is_sparse
    torch.testing.assert_close(outcomes[0][0].to_dense(), outcomes[1][0])
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1])


# --- laws ------------------------------------------------------------------------------------------------------------

values = st.floats(-100, 100, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
vectors = st.lists(st.lists(values, min_size=1, max_size=4), min_size=2, max_size=2)
histories = st.lists(vectors, min_size=1, max_size=8)
STARTS = {name_of(policy): policy for policy in POLICIES}


def play(policy: ClipPolicy, history: list[list[list[float]]]) -> tuple[Clipper, list[nn.Parameter], list[Clipping]]:
    """Clip one step after another, of vectors padded to four elements."""
    parameters = with_gradients(torch.ones(4), torch.ones(4))
    clipper, clippings = make_clipper(policy, parameters), []
    for step in history:
        for parameter, vector in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(vector + [0.0] * (4 - len(vector)))
        clippings.append(clip(clipper, parameters))
    return clipper, parameters, clippings


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
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


@pytest.mark.parametrize("policy", GLOBAL, ids=name_of)
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


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
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


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
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
@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
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


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
def test_memory_does_not_grow(policy: ClipPolicy) -> None:
    training = Training(policy)

    def num_bytes() -> int:
        return sum(value.untyped_storage().nbytes() for value in training.clipper.memory.values())

    before, tensors = num_bytes(), dict(training.clipper.memory)
    for _ in range(30):
        training.step()
    assert num_bytes() == before <= 64
    assert all(training.clipper.memory[name] is value for name, value in tensors.items())


class Count(TorchDispatchMode):
    """The names of the torch operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func._schema.name)
        return func(*args, **(kwargs or {}))


READS = {f"aten::{name}" for name in ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select")}


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
def test_nothing_is_read_from_the_device(policy: ClipPolicy) -> None:
    training = Training(policy)
    for _ in range(6):
        training.draw()
        norms, scale = norms_of(training.parameters), torch.tensor(1.0)
        with Count() as count:
            training.clipper.clip_(norms, scale)
        assert not READS & set(count.operators)


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
def test_numbers_that_do_not_exist_are_not_missed(policy: ClipPolicy) -> None:
    """On the meta device there are shapes only: to read a number, or to copy one to the host, is an error."""
    parameters = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((4, 3), (5,), ())]
    for p in parameters:
        p.grad = torch.empty_like(p)
    clipper, norms = make_clipper(policy, parameters), torch.empty(3, device="meta")
    clippings = [clipper.clip_(norms, scale) for scale in (None, torch.empty((), device="meta"))]
    assert [[tuple(number.shape) for number in clipping] for clipping in clippings] == [[(), (), (), (3,), ()]] * 2


@pytest.mark.parametrize("policy", [*GLOBAL, AdaGC(lambda_abs=0.5)], ids=name_of)
def test_parameters_may_live_on_several_devices(policy: ClipPolicy) -> None:
    alone, mixed = with_gradients(torch.ones(3)), with_gradients(torch.ones(3))
    mixed.append(nn.Parameter(torch.empty(2, device="meta")))
    mixed[1].grad = torch.empty(2, device="meta")
    one, two = make_clipper(policy, alone), make_clipper(policy, mixed)
    for _ in range(6):
        one.clip_(torch.tensor([2.0]))
        two.clip_(torch.tensor([2.0, 0.0]))
    assert alone[0].grad is not None
    assert mixed[0].grad is not None
    assert torch.equal(alone[0].grad, mixed[0].grad)


def test_the_count_of_reads_can_fail() -> None:
    with Count() as count:
        torch.ones(1).item()
    assert "aten::_local_scalar_dense" in count.operators


@pytest.mark.parametrize("policy", GLOBAL, ids=name_of)
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
@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
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
from lightning_gradwatch.core.measure import ParameterMeter, norms
from lightning_gradwatch.core.shards import Shards
from tests.core.test_clip import RANK_STEPS, rank_gradients
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
        measured = torch.stack(norms(shards.local_parts([p.grad for p in parameters])))
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
torch.distributed.destroy_process_group()
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


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "argument", "value", "rule"),
    [
        (Percentile, "percentile", 0, r"a number, in \(0, 100\]"),
        (Percentile, "percentile", 100.5, r"a number, in \(0, 100\]"),
        (Percentile, "percentile", math.nan, r"a number, in \(0, 100\]"),
        (Percentile, "percentile", "high", r"a number, in \(0, 100\]"),
        (Percentile, "window", 1, "an integer of 2 or more"),
        (Percentile, "window", 2.5, "an integer of 2 or more"),
        (Percentile, "first_steps", -1, "an integer of 0 or more"),
        (ZScore, "z_threshold", -2.5, "a number, positive and finite"),
        (ZScore, "alpha", 1.0, r"a number, in \(0, 1\)"),
        (ZScore, "warmup_steps", 1, "an integer of 2 or more"),
        (AGC, "clip_factor", 0.0, "a number, positive and finite"),
        (AGC, "min_weight_norm", 0.0, "a number, positive and finite"),
        (AdaGC, "lambda_rel", math.inf, "a number, positive and finite"),
        (AdaGC, "lambda_abs", -1.0, "a number, positive and finite"),
        (AdaGC, "beta", 0.0, r"a number, in \(0, 1\)"),
        (AdaGC, "warmup_steps", 0, "an integer of 1 or more"),
        (MaxNorm, "max_norm", -1.0, "a number, positive and finite"),
        (MaxNorm, "max_norm", True, "a number, positive and finite"),
        (MaxValue, "max_value", 0, "a number, positive and finite"),
        (MaxNorm, "include", [3], "a glob or a list of globs"),
        (MaxNorm, "exclude", [""], "a glob or a list of globs"),
        (MaxNorm, "optimizer", 0, "the name of an optimizer"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(policy: Any, argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        policy(**{argument: value})


def test_a_foreign_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="one of GradWatch's policies"):
        make_clipper(ClipPolicy(), with_gradients(torch.ones(1)))


def test_globs_become_tuples_and_policies_stay_frozen() -> None:
    policy = MaxNorm(2.0, include="net.*", exclude=["net.0", "net.1"], optimizer="generator")
    assert (policy.include, policy.exclude, policy.optimizer) == (("net.*",), ("net.0", "net.1"), "generator")
    assert hash(policy) == hash(MaxNorm(2.0, include=["net.*"], exclude=("net.0", "net.1"), optimizer="generator"))
    with pytest.raises(AttributeError):
        policy.max_norm = 3.0  # type: ignore[misc]
