"""Every step's norms between two publications, on the host: so that a one-step spike is never lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_gradwatch.core.records import Window
from lightning_gradwatch.core.saved import Saved, State, count

_MAX_STEPS = 1024


class PublicationWindow:
    """Collects the norms of every observed step, in bounded memory, until they are summarised."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._pieces: list[Tensor] = []
        self._num_waiting = 0
        self._norms: Tensor | None = None
        self._is_sound = True
        self._min: Tensor | None = None
        self._max: Tensor | None = None

    def add(self, norms: Tensor) -> None:
        """Append steps.

        Args:
            norms: Shape ``(steps, columns)``, float32; negative for "no gradient". A change of the
                number of columns (layers were added) starts the window anew.
        """
        num_steps, num_columns = norms.shape
        known = self._pieces[-1] if self._pieces else self._norms
        if known is not None and known.shape[1] != num_columns:
            self.clear()
        if num_steps == 0:
            return
        self._pieces.append(norms)
        self._num_steps += num_steps
        self._num_waiting += num_steps
        if self._num_waiting > _MAX_STEPS:
            self._settle()

    def _settle(self) -> None:
        """Take in what waits; statistics are computed here, and not for every step that is added."""
        if not self._pieces:
            return
        norms = torch.cat(self._pieces)
        self._pieces, self._num_waiting = [], 0
        low, high = torch.aminmax(norms, dim=0)
        is_sound = _is_sound(low, high)
        if not is_sound:
            finite = norms.isfinite() & (norms >= 0)
            low = norms.masked_fill(~finite, torch.inf).amin(0)
            high = norms.masked_fill(~finite, -torch.inf).amax(0)
        self._is_sound &= is_sound
        self._min = low if self._min is None else torch.minimum(self._min, low)
        self._max = high if self._max is None else torch.maximum(self._max, high)
        self._norms = (norms if self._norms is None else torch.cat([self._norms, norms]))[-_MAX_STEPS:]

    def summary(self) -> Window | None:
        """Last, min, median and max since the last ``clear``; None if nothing was added."""
        self._settle()
        if self._norms is None or self._min is None or self._max is None:
            return None
        norms, last = self._norms, self._norms[-1]
        if self._is_sound:
            return Window(self._num_steps, last, self._min, _median(norms), self._max)
        counted = norms.masked_fill(~norms.isfinite() | (norms < 0), torch.nan)
        return Window(
            num_steps=self._num_steps,
            last=last,
            min=self._min.masked_fill(self._min.isinf(), torch.nan),
            median=torch.nanquantile(counted, 0.5, dim=0),
            max=self._max.masked_fill(self._max.isinf(), torch.nan),
        )

    def rearrange(self, columns: Sequence[int | None]) -> None:
        """Put the columns into a new order, given for each new column the old one; None for one without a past."""
        self._settle()
        if self._norms is not None and self._min is not None and self._max is not None:
            order = [-1 if column is None else column for column in columns]
            self._is_sound &= -1 not in order
            self._norms = pad(self._norms, (0, 1), value=-1.0)[:, order]
            self._min = pad(self._min, (0, 1), value=torch.inf)[order]
            self._max = pad(self._max, (0, 1), value=-torch.inf)[order]

    def clear(self) -> None:
        """Start a new window."""
        self._num_steps = self._num_waiting = 0
        self._pieces = []
        self._norms = self._min = self._max = None
        self._is_sound = True

    def state_dict(self) -> State:
        """Tensors and primitives that ``load_state_dict`` takes back."""
        self._settle()
        return {"num_steps": self._num_steps, "norms": self._norms, "min": self._min, "max": self._max}

    def load_state_dict(self, state: Saved | Mapping[str, object], num_columns: int | None = None) -> None:
        """Go on where ``state_dict`` was taken; with a new window if its columns are not as many as they should."""
        self.clear()
        saved = Saved.of(state)
        num_steps = saved.take("num_steps", int, 0, count)
        norms = saved.find("norms", Tensor, lambda norms: _has_dims(norms, 2))
        low, high = (saved.find(name, Tensor, lambda norms: _has_dims(norms, 1)) for name in ("min", "max"))
        if norms is None or low is None or high is None or not len(norms) or num_steps < len(norms):
            return
        if norms.shape[1:] == low.shape == high.shape and num_columns in (None, norms.shape[1]):
            self._num_steps, self._norms, self._min, self._max = num_steps, norms, low, high
            self._is_sound = _is_sound(*torch.aminmax(norms, dim=0))


def _has_dims(tensor: Tensor, num_dims: int) -> bool:
    return tensor.dtype is torch.float32 and tensor.layout is torch.strided and tensor.ndim == num_dims


def _is_sound(low: Tensor, high: Tensor) -> bool:
    """Whether all norms between these are there and finite, as nearly always; NaN is in both."""
    return low.amin().item() >= 0 and high.amax().item() < torch.inf


def _median(norms: Tensor) -> Tensor:
    """What ``torch.quantile`` says of the middle, in a quarter of its time."""
    ordered, last = norms.sort(0).values, len(norms) - 1
    return torch.lerp(ordered[last // 2], ordered[last - last // 2], 0.5)
