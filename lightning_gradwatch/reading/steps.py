"""Gradient norms of every step, put together from what was written at different times and in different widths. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.schema import Array

_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Part:
    """Bins in the order in which they were written.

    Attributes:
        bins: The bins.
        written: When each was written, in seconds since the epoch, never falling; shape ``(bins,)``.
        lines: Names of the numbers of the run in them.
    """

    bins: Bins
    written: Array
    lines: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return self.bins.num_bytes + int(self.written.nbytes)


def put_together(parts: Sequence[Part], around: Sequence[Part], lines: Sequence[str]) -> Bins:
    """What holds of all bins, by rising step.

    Whatever was written later from a step on takes the place of what was known from there on, as after a resume from an
    earlier checkpoint. Single steps around alerts take the place of the bins that cover them.

    Args:
        parts: At least one bin, in these or in those around alerts.
        around: Single steps around alerts.
        lines: The numbers of the run that are wanted; NaN where a part lacks one.
    """
    everything = [*parts, *around]
    first, last, count = (
        np.concatenate([getattr(p.bins, name) for p in everything]) for name in ("first", "last", "count")
    )
    written = np.concatenate([part.written for part in everything])
    num_coarse = sum(len(part.bins) for part in parts)
    coarse, fine = np.arange(num_coarse), np.arange(num_coarse, len(first))

    # what was written later counts
    coarse = coarse[np.argsort(written[coarse], kind="stable")]
    fine = fine[np.argsort(written[fine], kind="stable")]
    fine = fine[first[fine] < _resumed_from(first[coarse], last[coarse], written[coarse], written[fine])]
    coarse_ends, fine_ends = (_held_until(first[chosen], last[chosen]) for chosen in (coarse, fine))
    coarse, coarse_ends = _where(first[coarse] <= coarse_ends, coarse, coarse_ends)
    (fine,) = _where(first[fine] <= fine_ends, fine)

    # what is finer counts
    places, begins, ends = _spared(first[coarse], coarse_ends, first[fine])
    places = np.append(coarse[places], fine)
    begins, ends = np.append(begins, first[fine]), np.append(ends, last[fine])
    order = np.argsort(begins, kind="stable")
    places, begins, ends = places[order], begins[order], ends[order]

    found = _gathered(everything, places, lines)
    return replace(found, first=begins, last=ends, count=np.minimum(count[places], ends - begins + 1))


def _where(holds: Array, *arrays: Array) -> tuple[Array, ...]:
    return tuple(array[holds] for array in arrays)


def _held_until(first: Array, last: Array) -> Array:
    """The last step at which each bin still holds, by the bins written after it; before ``first`` if it is void."""
    later = np.minimum.accumulate(first[::-1])[::-1]
    return np.asarray(np.minimum(last, np.append(later[1:], _END) - 1))


def _resumed_from(first: Array, last: Array, written: Array, times: Array) -> Array:
    """The earliest step from which the run was resumed after each of these times; far away if it was not."""
    before = np.maximum.accumulate(np.append(-1, last))[:-1]
    resumed = np.flatnonzero(first <= before)
    earliest = np.minimum.accumulate(np.append(first[resumed], _END)[::-1])[::-1]
    return np.asarray(earliest[np.searchsorted(written[resumed], times, side="right")])


def _spared(first: Array, last: Array, single: Array) -> tuple[Array, Array, Array]:
    """What is left of the spans of bins if single steps are taken out: places of the bins, first and last steps."""
    breaks = np.flatnonzero(np.diff(single) > 1)
    window_starts = single[np.append(0, breaks + 1)] if len(single) else single
    window_ends = single[np.append(breaks, len(single) - 1)] if len(single) else single
    # between the windows lie gaps, the first and the last of them open; a bin keeps what of it lies in gaps
    gap_starts, gap_ends = np.append(-_END, window_ends + 1), np.append(window_starts - 1, _END)
    lowest = np.searchsorted(gap_ends, first, side="left")
    counts = np.searchsorted(gap_starts, last, side="right") - lowest
    places = np.repeat(np.arange(len(first)), counts)
    nth = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    gaps = lowest[places] + nth
    return places, np.maximum(first[places], gap_starts[gaps]), np.minimum(last[places], gap_ends[gaps])


def _gathered(parts: Sequence[Part], places: Array, lines: Sequence[str]) -> Bins:
    """The bins at these places of all parts; field by field, so that no more than one of them is in memory twice."""
    is_whole = len(places) == sum(len(part.bins) for part in parts) and bool((np.diff(places) == 1).all())

    def joined(arrays: Sequence[Array]) -> Array:
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return array if is_whole else array[places]

    return Bins.made([_field(parts, field.name, lines) for field in fields(Bins)], joined)


def _field(parts: Sequence[Part], name: str, lines: Sequence[str]) -> list[Array]:
    return [_aligned(part, lines) if name == "lines" else getattr(part.bins, name) for part in parts]


def _aligned(part: Part, lines: Sequence[str]) -> Array:
    """The numbers of the run in the order that is wanted, shape ``(bins, lines, 3)``."""
    if part.lines == tuple(lines):
        return part.bins.lines
    found = np.full((len(part.bins), len(lines), 3), np.nan, np.float32)
    for place, name in enumerate(lines):
        if name in part.lines:
            found[:, place] = part.bins.lines[:, part.lines.index(name)]
    return found
