"""Gradients become numbers on the device: float32, multi-tensor, without a host sync."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter, is_

import torch
from torch import Tensor

from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.groups import Groups
from lightning_gradwatch.core.norms import are_plain, fill_missing, nonzero_counts, norms, require_memory
from lightning_gradwatch.core.records import MISSING, BatchCheck, Coverage
from lightning_gradwatch.core.shards import Shards, is_spread, local

_GRADIENT = attrgetter("grad")
_NUM_FACTS = 3
"""Numbers of a row beside the norms: the loss, and the least and the greatest element of the batch."""
_WINDOW_FLOATS = 2**16
_MAX_ROWS = 1024


class NormWindow:
    """Gradient norms, loss and inputs of the steps since the last copy, one row per step, in 256 kB on the device.

    Args:
        parameters: The watched parameters; their gradients are read at each ``push``.
        shards: How they are spread over the ranks; the rows hold the norms of this rank's parts.
        num_extra: Numbers that each row holds besides, see ``extra``.

    Attributes:
        known: Whether the loss of the last row was there, one real number on the parameters' device; and how much of
            the batch was looked at.
        is_blank: Whether the last row stands for a gradient that could not be measured.
    """

    def __init__(self, parameters: Sequence[Tensor], shards: Shards | None = None, num_extra: int = 0) -> None:
        self._parameters = parameters
        self._shards = shards or Shards(())
        self._device = parameters[0].device
        self._groups = Groups([local(p) for p in parameters]) if are_plain(parameters) else None
        width = len(parameters) + _NUM_FACTS + num_extra
        rows = max(2, min(_MAX_ROWS, _WINDOW_FLOATS // width))
        self._rows = torch.empty(rows, width, dtype=torch.float32, device=self._device)
        self._missing = torch.full((), MISSING, dtype=torch.float32, device=self._device)
        self._unknown = torch.full((), torch.nan, dtype=torch.float32, device=self._device)
        self._length = 0
        self._nothing = (self._unknown, self._unknown)
        self._sound = (torch.zeros_like(self._unknown),) * 2
        self.known = (False, Coverage.NOTHING)
        self.is_blank = False

    def __len__(self) -> int:
        return self._length

    def is_due(self, num_rows: int) -> bool:
        """Whether there are so many rows, or as many as fit: copy and clear first."""
        return self._length >= num_rows or self._length == self._rows.shape[0]

    def push(
        self, loss: Tensor | None, loss_scale: Tensor | None, gradients_scaled: bool, inputs: BatchCheck | None = None
    ) -> bool:
        """Append the norms of the present gradients. No host sync.

        Args:
            loss: The loss that was differentiated, one element; None if it is not known.
            loss_scale: Factor of the AMP loss scaler that is still in ``loss``, shape ``()``; None without a scaler.
            gradients_scaled: Whether that factor is still in the gradients, too.
            inputs: What was seen of the batch; None if nothing was.

        Returns:
            Whether there was a gradient at all, on this rank or another; without one nothing is appended.
        """
        present: Sequence[Tensor] = list(map(_GRADIENT, self._parameters))  # ordinary steps are counted in calls
        if any(map(is_, present, repeat(None))):
            present = [gradient for gradient in present if gradient is not None]
        if not present and not self._shards.have_gradients():
            return False
        loss = self._entry(loss)
        ends, coverage = self._looked(inputs)
        self.known = (loss is not None, coverage)
        self.is_blank = False
        facts = (self._unknown if loss is None else loss, *ends)
        num_norms = len(self._parameters)
        row = self._rows[self._length]
        row = row if row.shape[0] == num_norms + _NUM_FACTS else row[: num_norms + _NUM_FACTS]
        if self._shards.is_spread:
            present = self._shards.local_parts(present, [p for p in self._parameters if p.grad is not None])
        self._write(row, present, facts)
        if loss_scale is not None:
            (row[: num_norms + 1] if gradients_scaled else row[num_norms : num_norms + 1]).div_(loss_scale)
        self._length += 1
        return True

    def push_blank(self) -> None:
        """Append a row without numbers, for a gradient that could not be measured."""
        self._rows[self._length] = MISSING
        self._length += 1
        self.known, self.is_blank = (False, Coverage.NOTHING), True

    def _write(self, row: Tensor, gradients: Sequence[Tensor], facts: Sequence[Tensor]) -> None:
        if self._groups is not None and len(gradients) == len(self._parameters):
            try:
                self._groups.norms(gradients, *facts, out=row)
                return
            except RuntimeError:  # sparse gradients, or parameters that are no longer what they were when grouped
                self._groups = None
        everywhere = [p.grad for p in self._parameters]
        torch.stack([*fill_missing(norms(gradients), everywhere, self._missing), *facts], out=row)

    @property
    def norms(self) -> Tensor:
        """Norms of every row, shape ``(len(self), parameters)``; a view."""
        return self._rows[: self._length, : len(self._parameters)]

    @property
    def facts(self) -> Tensor:
        """Loss of every row, and two numbers that are finite if its batch is, shape ``(len(self), 3)``; a view."""
        return self._rows[: self._length, len(self._parameters) :][:, :_NUM_FACTS]

    @property
    def extra(self) -> Tensor:
        """Numbers that others put there, shape ``(len(self), num_extra)``; a view."""
        return self._rows[: self._length, len(self._parameters) + _NUM_FACTS :]

    def _looked(self, inputs: BatchCheck | None) -> tuple[tuple[Tensor, Tensor], Coverage]:
        """Two numbers of which one is not finite if the batch is not, and how much of the batch they stand for."""
        if inputs is None or inputs.is_bad:
            return self._nothing, Coverage.NOTHING if inputs is None else Coverage.PART
        if inputs.ends is None:
            return self._sound, inputs.coverage
        low, high = inputs.ends
        if low.device != self._device:
            return self._nothing, Coverage.NOTHING
        return (low, high) if low.dtype is torch.float32 else (low.float(), high.float()), inputs.coverage

    def _entry(self, number: Tensor | None) -> Tensor | None:
        """A single real number of the parameters' device as an entry of a row; None for anything else."""
        if number is None or (type(number) is not Tensor and is_spread(number)):
            return None
        if number.numel() != 1 or number.device != self._device or number.is_complex():
            return None
        number = number.detach() if number.requires_grad else number
        return (number.reshape(()) if number.ndim else number).float()

    def rows(self) -> Tensor:
        """The rows since the last ``clear``: a norm per parameter, the facts, and what was noted besides."""
        return self._rows[: self._length]

    def restore(self, rows: Tensor | None) -> bool:
        """Put back the rows of a checkpoint, unless the number of parameters has changed; whether they are back."""
        if rows is None or rows.shape[1:] != self._rows.shape[1:] or len(rows) >= len(self._rows):
            return False
        self._rows[: len(rows)].copy_(rows)
        self._length = len(rows)
        return True

    def drop_last(self) -> None:
        """Forget the last row."""
        self._length -= 1

    def shorten(self, num_rows: int) -> None:
        """Forget what has come after so many rows."""
        self._length = min(self._length, num_rows)

    def clear(self) -> None:
        """Forget the rows; memory is kept."""
        self._length = 0


class ParameterMeter:
    """Numbers per parameter beside the gradient norms: weight norms and counts of exact zeros.

    Args:
        parameters: The watched parameters.
        shards: How they are spread over the ranks.
    """

    def __init__(self, parameters: Sequence[Tensor], shards: Shards) -> None:
        self._parameters = parameters
        self._shards = shards
        self.missing = torch.full((), MISSING, dtype=torch.float32, device=parameters[0].device)
        self._groups = Groups([local(p) for p in parameters]) if are_plain(parameters) else None

    def stack(self, values: Sequence[Tensor | None]) -> Tensor:
        """Scalars to one vector on the parameters' device, ``-1`` for None; shape ``(len(values),)``."""
        missing, device = self.missing, self.missing.device
        present = [missing if v is None else v for v in values]
        present = [v if v.device == device else v.to(device, non_blocking=need_not_wait(device)) for v in present]
        return torch.stack(present) if present else missing.new_empty(0)

    def weight_norms(self) -> Tensor:
        """L2 norm of each parameter (of this rank's part), shape ``(parameters,)``, float32.

        Raises:
            ValueError: If somebody has freed the memory of one.
        """
        with torch.no_grad():
            parts = self._shards.local_parts(self._parameters, self._parameters)
            require_memory(parts)
            if self._groups is not None:
                try:
                    return self._groups.norms(parts)
                except RuntimeError:  # they are no longer what they were when grouped
                    self._groups = None
            return self.stack(norms(parts))

    def nonzeros(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Number of elements of each gradient (of this rank's part) that are not exactly zero; ``-1`` for no gradient.

        Shape ``(parameters,)``, float32.
        """
        present = [g for g in gradients if g is not None]
        if self._groups is not None and len(present) == len(gradients) and are_plain(present):
            return self._groups.nonzeros(present)
        counts = iter([count.float() for count in nonzero_counts(present)])
        return self.stack([None if g is None else next(counts) for g in gradients])
