"""One policy at work on the gradients of one optimizer: what it remembers stays on the device, and bounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.clip.gradients import clamp_, clip_units_, multiply_all_, multiply_each_, settle_
from lightning_gradwatch.core.clip.policies import AGC, AdaGC, ClipPolicy, MaxNorm, MaxValue, Percentile, ZScore
from lightning_gradwatch.core.clip.thresholds import (
    clip_coefficient,
    fixed_coefficient,
    percentile_threshold,
    tensorwise_coefficients,
    total_norm,
    zscore_target,
    zscore_threshold,
)
from lightning_gradwatch.core.measure import fill_missing
from lightning_gradwatch.core.measure import norms as measure_norms
from lightning_gradwatch.core.shards import Shards, is_spread


class Clipping(NamedTuple):
    """What one call did: float32 tensors on the device.

    Attributes:
        threshold: Total norm (for :class:`MaxValue`: absolute value) above which this step was to be clipped, shape
            ``()``. ``inf`` while ZClip gathers its first statistics; NaN for policies without a common threshold.
        total_norm: Before clipping, over this clipper's parameters, unscaled; shape ``()``.
        clipped_norm: After it; shape ``()``. From the coefficients, not measured again, but for :class:`MaxValue`.
        coefficients: Norm after by norm before of each gradient, shape ``(n,)``; 1 for one untouched, zero or missing.
        coefficient: ``clipped_norm`` by ``total_norm``, shape ``()``; 1 if nothing was clipped.
    """

    threshold: Tensor
    total_norm: Tensor
    clipped_norm: Tensor
    coefficients: Tensor
    coefficient: Tensor


class ClipperState(TypedDict, total=False):
    """What a checkpoint holds of a :class:`Clipper`."""

    policy: str
    memory: dict[str, Tensor]


class _Step(NamedTuple):
    """What a rule is told about a step, besides the gradients."""

    norms: Tensor
    total: Tensor
    loss_scale: Tensor


class _Done(NamedTuple):
    """What a rule did: the threshold, the coefficients, and the one coefficient of a rule that has but one."""

    threshold: Tensor
    coefficients: Tensor
    factor: Tensor | None = None


class _Rule(ABC):
    """The arithmetic of one policy, and what it remembers between steps."""

    def __init__(self, parameters: Sequence[Tensor], **memory: Tensor) -> None:
        self.parameters = parameters
        self.memory = memory

    @abstractmethod
    def clip_(self, step: _Step) -> _Done:
        """Change the gradients."""

    def gradients(self) -> list[Tensor]:
        """The gradients there are."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def remember(self, condition: Tensor, **values: Tensor) -> None:
        """Replace what is remembered, where the condition holds."""
        for name, value in values.items():
            self.memory[name].copy_(torch.where(condition, value, self.memory[name]))


class _TotalRule(_Rule):
    """Rules that look at the total norm only, and multiply all gradients by one coefficient."""

    @abstractmethod
    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """The threshold and the coefficient for a total norm, each of shape ``()``."""

    def clip_(self, step: _Step) -> _Done:
        threshold, factor = self.judge(step.total)
        multiply_all_(self.gradients(), factor)
        return _Done(threshold, factor.expand_as(step.norms).masked_fill(step.norms <= 0, 1.0), factor)


class _MaxNormRule(_TotalRule):
    def __init__(self, policy: MaxNorm, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._max_norm = policy.max_norm
        self._threshold = _numbers(parameters, self._max_norm)

    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        return self._threshold, fixed_coefficient(total, self._max_norm)


class _PercentileRule(_TotalRule):
    """The history is a ring; a step that tells nothing leaves no gap in it."""

    def __init__(self, policy: Percentile, parameters: Sequence[Tensor]) -> None:
        history = _numbers(parameters, torch.nan, policy.window)
        super().__init__(parameters, history=history, count=_zero(parameters, torch.int64))
        self._policy = policy

    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        history, count = self.memory["history"], self.memory["count"]
        place = (count % self._policy.window).view(1)
        counts = _tells(total)
        history.scatter_(0, place, torch.where(counts, total, history.gather(0, place)))
        count += counts
        smallest, is_first = history.nan_to_num(torch.inf).amin(), count <= self._policy.first_steps
        threshold = torch.where(is_first, smallest, percentile_threshold(history, self._policy.percentile))
        return threshold, clip_coefficient(total, threshold)


class _ZScoreRule(_TotalRule):
    """Plain mean and variance during the warm-up (Welford's update), exponential ones after it."""

    def __init__(self, policy: ZScore, parameters: Sequence[Tensor]) -> None:
        mean, variance, count = (_zero(parameters, dtype) for dtype in (torch.float32, torch.float32, torch.int64))
        super().__init__(parameters, mean=mean, variance=variance, count=count)
        self._policy = policy

    def judge(self, total: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance, count = self.memory["mean"], self.memory["variance"], self.memory["count"]
        std, limit = variance.sqrt(), self._policy.z_threshold
        is_warm = count >= self._policy.warmup_steps
        threshold = zscore_threshold(mean, std, limit).masked_fill(~is_warm, torch.inf)
        target = zscore_target(total, mean, std, limit)
        factor = clip_coefficient(total, target.masked_fill(~(total > threshold), torch.inf))
        entering = factor * total
        weight = (1 / (count + 1)).masked_fill(is_warm, 1 - self._policy.alpha)
        new_mean = mean + weight * (entering - mean)
        square = (entering - new_mean) * torch.where(is_warm, entering - new_mean, entering - mean)
        new_variance = variance + weight * (square - variance)
        self.remember(_tells(total), mean=new_mean, variance=new_variance, count=count + 1)
        return threshold, factor


class _AdaGCRule(_Rule):
    def __init__(self, policy: AdaGC, parameters: Sequence[Tensor]) -> None:
        running = _numbers(parameters, torch.inf, len(parameters))
        super().__init__(parameters, running=running, count=_zero(parameters, torch.int64))
        self._policy = policy

    def clip_(self, step: _Step) -> _Done:
        coefficients = self._judge(step.norms, step.total)
        present = [c for c, p in zip(coefficients.unbind(), self.parameters, strict=True) if p.grad is not None]
        multiply_each_(self.gradients(), present)
        return _Done(torch.full_like(step.total, torch.nan), coefficients)

    def _judge(self, norms: Tensor, total: Tensor) -> Tensor:
        running, count = self.memory["running"], self.memory["count"]
        is_warm, beta = count >= self._policy.warmup_steps, self._policy.beta
        together = clip_coefficient(total, torch.full_like(total, self._policy.lambda_abs))
        each = tensorwise_coefficients(norms, running, self._policy.lambda_rel)
        counts = (total < torch.inf) & (norms > 0)
        coefficients = torch.where(is_warm, each, together).masked_fill(~counts, 1.0)
        entering = coefficients * norms
        mean, smallest = beta * running + (1 - beta) * entering, torch.minimum(running, entering)
        self.remember(counts, running=torch.where(is_warm & running.isfinite(), mean, smallest))
        self.remember(_tells(total), count=count + 1)
        return coefficients


class _AGCRule(_Rule):
    def __init__(self, policy: AGC, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._policy = policy

    def clip_(self, step: _Step) -> _Done:
        gradients, is_finite = [settle_(p) for p in self.parameters], step.total < torch.inf
        present = [g for g in gradients if g is not None]
        weights = [p for g, p in zip(gradients, self.parameters, strict=True) if g is not None]
        found = clip_units_(present, weights, self._policy, step.loss_scale, is_finite) if present else []
        coefficients = torch.stack(fill_missing(found, gradients, torch.ones_like(step.total)))
        return _Done(torch.full_like(step.total, torch.nan), coefficients)


class _MaxValueRule(_Rule):
    def __init__(self, policy: MaxValue, parameters: Sequence[Tensor], shards: Shards) -> None:
        super().__init__(parameters)
        self._max_value, self._shards = policy.max_value, shards

    def clip_(self, step: _Step) -> _Done:
        threshold = torch.full_like(step.total, self._max_value)
        limit = (threshold * step.loss_scale).masked_fill(~(step.total < torch.inf), torch.inf)
        gradients = [settle_(p) for p in self.parameters]
        present = [g for g in gradients if g is not None]
        for gradient in present:
            clamp_(gradient, limit)
        found = fill_missing(measure_norms(self._shards.local_parts(present)), gradients, -step.loss_scale)
        after = self._shards.reduce({"after": torch.stack(found) / step.loss_scale}, {"after": "norm"})["after"]
        is_changed = (step.total < torch.inf) & (step.norms > 0)
        return _Done(threshold, (after / step.norms).clamp(max=1).masked_fill(~is_changed, 1.0))


class Clipper:
    """One policy at work on the chosen parameters of one optimizer.

    Args:
        policy: What to clip by.
        parameters: The parameters whose gradients are clipped, at least one.
        shards: How these parameters (and no others) are spread over the ranks.

    Raises:
        ValueError: If the policy is none of those here, or cannot be right on parameters that are spread over ranks:
            :class:`AGC` needs whole weights, :class:`MaxValue` whole elements of gradients.
    """

    def __init__(self, policy: ClipPolicy, parameters: Sequence[Tensor], shards: Shards) -> None:
        _check_spread(policy, parameters)
        self.policy = policy
        self._unscaled = _numbers(parameters, 1.0)
        self._rule = _make_rule(policy, parameters, shards)

    @property
    def memory(self) -> dict[str, Tensor]:
        """What the policy remembers between steps, on the device."""
        return self._rule.memory

    @torch.no_grad()
    def clip_(self, norms: Tensor, loss_scale: Tensor | None = None) -> Clipping:
        """Clip the gradients in place, once they are complete. No host sync (but to add up a sparse gradient's parts).

        A total norm that is not finite changes nothing: no gradient is scaled, nothing is remembered.

        Args:
            norms: L2 norm of the whole gradient of each parameter, unscaled and not yet clipped, reduced over the
                ranks; shape ``(n,)``, float32, on the first parameter's device; ``-1`` for no gradient.
            loss_scale: Factor that is still in the gradients (fused optimizers under AMP), shape ``()``; None for none.

        Returns:
            What was done; the same on all ranks.
        """
        total = total_norm(norms)
        step = _Step(norms, total, self._unscaled if loss_scale is None else loss_scale)
        threshold, coefficients, factor = self._rule.clip_(step)
        if factor is not None:
            return Clipping(threshold, total, factor * total, coefficients, factor)
        clipped = total_norm(coefficients * norms)
        ratio = clipped / total
        is_clipped = (coefficients < 1).any() & ratio.isfinite()
        return Clipping(threshold, total, clipped, coefficients, torch.where(is_clipped, ratio, 1.0))

    def state_dict(self) -> ClipperState:
        """Tensors and primitives that :meth:`load_state_dict` takes back; loads with ``weights_only=True``."""
        memory = {name: value.cpu().clone() for name, value in self._rule.memory.items()}
        return {"policy": type(self.policy).__name__, "memory": memory}

    def load_state_dict(self, state: ClipperState) -> None:
        """Go on where :meth:`state_dict` was taken, bit by bit; afresh if the policy or the size of its memory changed.

        A history of total norms is kept when parameters join: it follows them soon.
        """
        own, saved = self._rule.memory, state.get("memory", {})
        is_same = state.get("policy") == type(self.policy).__name__
        if is_same and all(_is_like(saved.get(name), value) for name, value in own.items()):
            for name, value in own.items():
                value.copy_(saved[name])


def _make_rule(policy: ClipPolicy, parameters: Sequence[Tensor], shards: Shards) -> _Rule:
    match policy:
        case Percentile():
            return _PercentileRule(policy, parameters)
        case ZScore():
            return _ZScoreRule(policy, parameters)
        case AGC():
            return _AGCRule(policy, parameters)
        case AdaGC():
            return _AdaGCRule(policy, parameters)
        case MaxNorm():
            return _MaxNormRule(policy, parameters)
        case MaxValue():
            return _MaxValueRule(policy, parameters, shards)
        case _:
            cure = "use Percentile, ZScore, AGC, AdaGC, MaxNorm or MaxValue"
            raise refuse("auto_clip", "one of GradWatch's policies", policy, cure)


def _check_spread(policy: ClipPolicy, parameters: Sequence[Tensor]) -> None:
    if isinstance(policy, AGC) and any(map(is_spread, parameters)):
        cure = "use AdaGC, which clips each tensor by norms that can be added up over ranks"
        raise refuse("auto_clip", "a policy that works on parts of weights, where these are sharded", policy, cure)
    if isinstance(policy, MaxValue) and any(map(_is_replicated, parameters)):
        cure = "clip by the norm instead, or leave the layers out that are not sharded"
        rule = "a policy that works on partial sums, where DTensors are replicated"
        raise refuse("auto_clip", rule, policy, cure)


def _is_replicated(parameter: Any) -> bool:
    """Whether a parameter is held whole by several ranks, so that its gradient may be a partial sum on each."""
    return is_spread(parameter) and any(
        place.is_replicate() and parameter.device_mesh.size(dim) > 1 for dim, place in enumerate(parameter.placements)
    )


def _is_like(saved: Tensor | None, value: Tensor) -> bool:
    return saved is not None and (saved.shape, saved.dtype) == (value.shape, value.dtype)


def _tells(total: Tensor) -> Tensor:
    """Whether a total norm says something about the usual size of gradients."""
    return (total > 0) & (total < torch.inf)


def _numbers(parameters: Sequence[Tensor], value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float32, device=parameters[0].device)


def _zero(parameters: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype, device=parameters[0].device)
