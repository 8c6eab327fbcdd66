"""The arithmetic of the policies: pure functions of tensors, without a host sync or a branch on a value.

Constants enter by ``masked_fill``, never by ``torch.where``, which may copy them from the host and wait.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TORCH_EPS = 1e-6
_RELATIVE_EPS = 1e-6


def total_norm(norms: Tensor) -> Tensor:
    """L2 norm over all gradients, from the norms of each.

    Args:
        norms: L2 norm of each gradient, shape ``(n,)``; negative for "no gradient". Unit: loss per unit of parameter.

    Returns:
        Shape ``()``, same unit, dtype and device; 0 if there is no gradient. Not finite if one of the norms is not, or
        their squares leave the range of the dtype (1.8e19 in float32, as in torch).
    """
    total: Tensor = torch.linalg.vector_norm(norms.clamp(min=0))
    return total


def fixed_coefficient(total: Tensor, max_norm: float) -> Tensor:
    """What brings a total norm down to a fixed maximum.

    Args:
        total: Total norm before clipping, shape ``()``.
        max_norm: Largest total norm, same unit.

    Returns:
        ``min(1, max_norm / (total + 1e-6))``, exactly as torch computes it; exactly 1 if ``total`` is not finite.

    Source:
        ``torch.nn.utils.clip_grad_norm_``; Pascanu et al., "On the difficulty of training recurrent neural networks",
        ICML 2013.
    """
    return torch.where(total < torch.inf, (max_norm / (total + _TORCH_EPS)).clamp(max=1), 1.0)


def clip_coefficient(total: Tensor, target: Tensor) -> Tensor:
    """What brings a total norm down to a target.

    There is no epsilon as in torch's clipping: where the target adapts to norms of any scale, an absolute epsilon would
    shrink small ones for no reason.

    Args:
        total: Total norm before clipping, shape ``()``.
        target: Largest total norm afterwards, same shape and unit; positive, ``inf`` for any.

    Returns:
        ``min(1, target / total)``; exactly 1 if ``total`` is not finite.
    """
    return torch.where(total < torch.inf, (target / total).clamp(max=1), 1.0)


def percentile_threshold(norm_history: Tensor, percentile: float) -> Tensor:
    """Clip threshold at a percentile of recent total gradient norms (AutoClip).

    Args:
        norm_history: Total L2 norms of the last ``n`` optimizer steps, before clipping and after AMP unscaling.
            Shape ``(n,)``, ``n >= 1``, any order. Unit: loss per unit of parameter. NaN marks a skipped step and is
            ignored.
        percentile: Position in the sorted history, in percent: ``0 < percentile <= 100``. Between two entries it is
            interpolated linearly, as numpy does.

    Returns:
        The threshold, shape ``()``, same unit, dtype and device. ``inf`` (never clips) if every entry is NaN.

    Raises:
        ValueError: If ``percentile`` is outside ``(0, 100]`` or the history is empty or not one-dimensional.

    Source:
        Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation Networks", MLSP 2020.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"`percentile` must be in (0, 100], but {percentile!r} came.")
    if norm_history.ndim != 1 or len(norm_history) == 0:
        raise ValueError(f"`norm_history` must be of shape (n,), n >= 1, but {tuple(norm_history.shape)} came.")
    ordered = norm_history.sort().values  # NaN comes last
    last = (ordered < torch.inf).sum() - 1
    place = last * (percentile / 100)
    low, high = ordered.gather(0, torch.stack([place.floor(), place.ceil()]).long().clamp(min=0))
    return torch.lerp(low, high, place.frac().to(low.dtype)).masked_fill(last < 0, torch.inf)


def zscore_threshold(mean: Tensor, std: Tensor, z_threshold: float) -> Tensor:
    """Total norm from which on ZClip calls a step an outlier.

    Args:
        mean: Running mean of the total norms of earlier steps, as clipped; shape ``()``. Unit: loss per unit of
            parameter.
        std: Their standard deviation, same shape and unit.
        z_threshold: Distance from the mean in standard deviations.

    Returns:
        ``mean + z_threshold * (std + 1e-6 mean)``, same shape and unit. The paper's epsilon is absolute.

    Source:
        Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv:2504.02507, 2025.
    """
    return mean + z_threshold * (std + _RELATIVE_EPS * mean)


def zscore_target(total: Tensor, mean: Tensor, std: Tensor, z_threshold: float) -> Tensor:
    """Total norm to which ZClip clips an outlier: the farther out, the closer to the mean.

    Args:
        total: Total norm of this step, shape ``()``; above :func:`zscore_threshold`.
        mean: As there.
        std: As there.
        z_threshold: As there.

    Returns:
        ``mean + z_threshold**2 * std / z`` with the step's own ``z = (total - mean) / (std + 1e-6 mean)``, same shape
        and unit.

    Source:
        Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv:2504.02507, 2025.
    """
    z = (total - mean) / (std + _RELATIVE_EPS * mean)
    return mean + z_threshold**2 * std / z


def tensorwise_coefficients(norms: Tensor, running: Tensor, lambda_rel: float) -> Tensor:
    """What brings each tensor's norm down to a multiple of its own running mean (AdaGC after its warm-up).

    Args:
        norms: L2 norm of each gradient, shape ``(n,)``; negative for "no gradient".
        running: Running mean of each tensor's clipped norms, same shape and unit; ``inf`` where there was none yet.
        lambda_rel: Largest allowed ratio.

    Returns:
        ``min(1, lambda_rel * running / norms)``, shape ``(n,)``; 1 where there is no gradient or it is zero.

    Source:
        Wang et al., "AdaGC: Improving Training Stability for Large Language Model Pretraining", arXiv:2502.11034, 2025.
    """
    return (lambda_rel * running / norms).clamp(max=1).masked_fill(norms <= 0, 1.0)


def unitwise_norms(tensor: Tensor) -> Tensor:
    """L2 norm of each unit of a weight or its gradient (AGC), accumulated in float32 whatever the dtype.

    Args:
        tensor: Strided, any dtype and shape. With two dimensions or more each entry of the first is a unit (an output
            of a linear layer, a filter of a convolution, a row of an embedding); with fewer the whole tensor is one.

    Returns:
        Float32, of as many dimensions as ``tensor``: ``(units, 1, ...)``, ``(1,)`` or ``()``.

    Source:
        Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021.
    """
    dims = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True, dtype=wide)
    return norms.float()


def unitwise_coefficients(
    gradient_norms: Tensor, weight_norms: Tensor, clip_factor: float, min_weight_norm: float
) -> Tensor:
    """What brings each unit's gradient norm down to a share of its weight norm (AGC).

    Args:
        gradient_norms: :func:`unitwise_norms` of the gradient, any shape.
        weight_norms: The same of the weight, same shape.
        clip_factor: Largest allowed ratio.
        min_weight_norm: Floor of the weight norm, so that weights of zero can leave it.

    Returns:
        ``min(1, clip_factor * max(weight_norms, min_weight_norm) / gradient_norms)``, same shape; 1 for a unit without
        gradient.

    Source:
        Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021.
    """
    largest = clip_factor * weight_norms.clamp(min=min_weight_norm)
    return (largest / gradient_norms).masked_fill(~(gradient_norms > largest), 1.0)
