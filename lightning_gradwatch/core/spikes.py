"""Steps that stand out of those before, so that they can be left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_gradwatch.core.clip.transform import is_informative, total_norm

WINDOW = 128
"""Steps that are remembered."""
LEAST = 64
"""How many of them must be known before anything is judged."""
DEVIATIONS = 6.0
"""How many robust standard deviations above the median a step stands out."""
_TO_DEVIATION = 1.4826
"""Standard deviation by median absolute deviation, of normally distributed numbers."""
_LEAST_SHARE = 0.01
"""What a deviation is at least, as a share of the number itself: numbers may not scatter at all."""


class SpikeGuard:
    """Tells whether the norm or the loss of a step stands out of the last 128; nothing is read by the host.

    What stands out is remembered like any other step, so that a level that has changed for good is the usual one after
    64 steps.

    Args:
        parameters: The optimizer's parameters, at least one.
        sees_loss: Whether the loss is judged, too. Not where each of several ranks knows the loss of its own batches
            only: all must come to the same decision.

    Attributes:
        memory: Norms and losses of the last steps, how many steps there were, and how many were left out.

    Source:
        SkipStepOptimizer of OLMo-core: window 128, at least 64 steps, 6 standard deviations. Here these are robust
        (median and median absolute deviation), and of logarithms.
    """

    def __init__(self, parameters: Sequence[Tensor], sees_loss: bool) -> None:
        device = parameters[0].device
        self._unknown = None if sees_loss else torch.full((), torch.nan, dtype=torch.float32, device=device)
        self.memory = {
            "seen": torch.full((2, WINDOW), torch.nan, dtype=torch.float32, device=device),
            "count": torch.zeros((), dtype=torch.int64, device=device),
            "num_skipped": torch.zeros((), dtype=torch.float32, device=device),
        }

    def judge(self, norms: Tensor, loss: Tensor) -> Tensor:
        """Whether a step stands out; it is counted, and remembered. No host sync.

        Args:
            norms: L2 norm of each gradient, unscaled, reduced over the ranks; shape ``(n,)``, negative for none. A
                step whose total norm is zero or not finite is neither judged nor remembered.
            loss: The loss, shape ``()``; NaN if it is not known.

        Returns:
            Shape ``()``, bool, on the device.
        """
        seen, count = self.memory["seen"], self.memory["count"]
        total = total_norm(norms)
        now = torch.stack([total, loss if self._unknown is None else self._unknown])
        counts = is_informative(total)
        is_spike = stands_out(now, seen).any() & counts

        # the oldest step makes room for this one
        place = (count % WINDOW).expand(2, 1)
        seen.scatter_(1, place, torch.where(counts, now[:, None], seen.gather(1, place)))
        count += counts
        self.memory["num_skipped"] += is_spike
        return is_spike

    @contextmanager
    def without_memory(self) -> Iterator[None]:
        """Leave what is remembered as it is, whatever is judged meanwhile. No host sync."""
        before = {name: value.clone() for name, value in self.memory.items()}
        try:
            yield
        finally:
            for name, value in before.items():
                self.memory[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that ``load_state_dict`` takes back."""
        return {name: value.cpu().clone() for name, value in self.memory.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state_dict`` was taken; afresh if that is of another kind."""
        kinds = {name: (value.shape, value.dtype) for name, value in self.memory.items()}
        if {name: (value.shape, value.dtype) for name, value in state.items()} == kinds:
            for name, value in self.memory.items():
                value.copy_(state[name])


def stands_out(now: Tensor, seen: Tensor) -> Tensor:
    """Whether numbers lie more than six robust standard deviations above those seen before.

    Logarithms are compared, since norms and losses of a healthy training scatter by factors; the numbers themselves
    where a row is not positive throughout.

    Args:
        now: Shape ``(rows,)``; NaN never stands out.
        seen: Those before, shape ``(rows, steps)``; what is not finite is not counted.

    Returns:
        Shape ``(rows,)``, bool. False where fewer than ``LEAST`` numbers are known.
    """
    is_positive = ((seen > 0) | seen.isnan()).all(1) & (now > 0)
    now = torch.where(is_positive, now.log(), now)
    seen = torch.where(is_positive[:, None], seen.log(), seen)

    known = seen.isfinite().sum(1)
    middle = _middle(seen, known)
    scatter = _TO_DEVIATION * _middle((seen - middle[:, None]).abs(), known)
    least = _LEAST_SHARE * middle.abs().masked_fill(is_positive, 1.0)
    deviation = torch.maximum(scatter, least)
    # of nothing but zeros there is no deviation that could be exceeded
    return (now > middle + DEVIATIONS * deviation) & (deviation > 0) & (known >= LEAST)


def _middle(numbers: Tensor, known: Tensor) -> Tensor:
    """The (lower) median of each row, of which so many are finite; those come first when sorted."""
    ordered = numbers.masked_fill(~numbers.isfinite(), torch.inf).sort(dim=1).values
    return ordered.gather(1, ((known[:, None] - 1) // 2).clamp(min=0)).squeeze(1)
