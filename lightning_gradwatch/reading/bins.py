"""Gradient norms of every step, as an event file holds them: one step a bin at first, several later. Knows no torch.

A bin keeps the smallest and the largest norm of each layer and the mean of the logarithm, which bins merge without
loss: a spike of one step is never lost. A norm is 16 bits of its logarithm: good to 0.15 % for a single step, and to
1.2 % for several.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from lightning_gradwatch.core.records import HIGHEST, LOWEST, MISSING
from lightning_gradwatch.reading.schema import Array, UnreadableError

_HEAD = struct.Struct("<IIII")
"""Number of bins, of layers and of lines, and whether each bin is a single step."""
_NO_GRADIENT, _ZERO, _INFINITE, _NAN = 0, 1, 65534, 65535
_FIRST_CODE, _LAST_CODE = 2, 65533
_PER_DECADE = (_LAST_CODE - _FIRST_CODE) / (HIGHEST - LOWEST)
_COARSE = 8
"""Bins of several steps take one code in so many: rounder numbers pack better, and nobody reads the third digit."""
_MAX_BYTES = 2**28
"""More than a block of many steps and layers; what is larger was not written by us."""


@dataclass(frozen=True)
class Bins:
    """Stretches of steps, in order. Norms are those of complete, unscaled gradients before clipping.

    Attributes:
        first: First step of each, shape ``(bins,)``, int64.
        last: Last step of each, shape ``(bins,)``, int64.
        count: Steps observed in each, shape ``(bins,)``, int64.
        low: Smallest finite norm of each layer, -1 for no gradient, shape ``(bins, layers)``, float32.
        mean: Mean norm of each layer in the logarithm, over the finite ones that are not zero; same shape and dtype.
        high: Largest norm of each layer, where NaN is larger than infinity; same shape and dtype.
        lines: Numbers of the run, such as its loss: smallest, mean and largest finite one, NaN where there is none.
            Shape ``(bins, lines, 3)``, float32.
    """

    first: Array
    last: Array
    count: Array
    low: Array
    mean: Array
    high: Array
    lines: Array

    def __len__(self) -> int:
        return len(self.first)

    @property
    def num_bytes(self) -> int:
        """Size in memory; norms of single steps are low, mean and high at once, and there but once."""
        return sum({id(array): array.nbytes for array in self._arrays()}.values())

    def _arrays(self) -> list[Array]:
        return [getattr(self, field.name) for field in fields(self)]

    def __getitem__(self, chosen: Array | slice) -> Bins:
        """Some of them, by a mask, by places or by a slice."""
        return Bins.made([[array] for array in self._arrays()], lambda arrays: arrays[0][chosen])

    @classmethod
    def of_steps(cls, steps: Array, norms: Array, lines: Array) -> Bins:
        """One bin a step.

        Args:
            steps: Shape ``(steps,)``.
            norms: Shape ``(steps, layers)``, float32.
            lines: Shape ``(steps, lines)``, float32.
        """
        steps = np.asarray(steps, np.int64)
        ends = np.where(np.isfinite(lines), lines, np.nan).astype(np.float32)[..., None].repeat(3, 2)
        return cls(steps, steps, np.ones_like(steps), norms, norms, norms, ends)

    @classmethod
    def joined(cls, parts: Sequence[Bins]) -> Bins:
        """Those of several, one after the other; there must be at least one."""
        return cls.made(zip(*(part._arrays() for part in parts), strict=True), np.concatenate)

    @classmethod
    def made(cls, fields_of_parts: Iterable[Sequence[Array]], make: Callable[[Sequence[Array]], Array]) -> Bins:
        """Each field made from that of several parts; where two fields are the same arrays, they are made once."""
        made, found = dict[tuple[int, ...], Array](), list[Array]()
        for arrays in fields_of_parts:
            key = tuple(map(id, arrays))
            if key not in made:
                made[key] = make(arrays)
            found.append(made[key])
        return cls(*found)

    def merged(self, starts: Array) -> Bins:
        """Neighbours as one, without loss but for the mean, which takes all steps of a bin for finite.

        Args:
            starts: Where each of the new bins begins, the first at 0; rising.
        """
        if not len(self) or len(starts) == len(self):
            return self
        ends = np.append(starts[1:], len(self)) - 1
        weights = np.where((self.mean > 0) & (self.mean < np.inf), self.count[:, None], 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            sums = np.add.reduceat(np.where(weights > 0, weights * np.log(self.mean, dtype=np.float64), 0), starts)
            means = np.exp(sums / np.add.reduceat(weights, starts))
        # of a layer without such a gradient there is what there was: zero, infinity, NaN, or none at all
        others = np.maximum.reduceat(self.mean, starts)
        return Bins(
            first=self.first[starts],
            last=self.last[ends],
            count=np.add.reduceat(self.count, starts),
            low=_lowest(self.low, starts),
            mean=np.where(np.add.reduceat(weights, starts) > 0, means, others).astype(np.float32),
            high=np.maximum.reduceat(self.high, starts),
            lines=_merged_lines(self.lines, self.count, starts),
        )

    def starts(self) -> Array:
        """Where a step begins that was not observed before: others are of the same step, as of several backward passes.

        Returns:
            Places for ``merged``, shape ``(steps,)``.
        """
        is_same = (self.first[1:] == self.last[:-1]) & (self.first[1:] == self.last[1:])
        return np.flatnonzero(np.append(True, ~is_same))

    def encode(self) -> bytes:
        """As the content of an event; ``decode`` is the inverse, but for the precision of the norms."""
        is_single = bool((self.count == 1).all() and np.array_equal(self.low, self.high, equal_nan=True))
        head = _HEAD.pack(len(self), self.low.shape[1], self.lines.shape[1], is_single)
        spans = np.stack([self.first, self.last, self.count]).astype("<i8").tobytes()
        kept = (self.high,) if is_single else (self.low, self.mean, self.high)
        codes = np.stack([_encode(norms, 1 if is_single else _COARSE) for norms in kept]).astype("<u2")
        # the upper bytes of neighbours are alike: apart from the lower ones they pack well
        planes = codes.view(np.uint8).reshape(-1, 2).T.tobytes()
        return zlib.compress(head + spans + self.lines.astype("<f4").tobytes() + planes, 1)

    @staticmethod
    def number_in(content: bytes) -> int:
        """How many bins there are in what ``encode`` made, which costs less than to decode it."""
        return int(_HEAD.unpack(zlib.decompressobj().decompress(content, _HEAD.size))[0])

    @classmethod
    def decode(cls, content: bytes, num_layers: int, num_lines: int) -> Bins:
        """The inverse of ``encode``.

        A run that goes on in another way, say with clipping, may know more lines than the description of its tag, or
        fewer: those at the end are left out, or NaN.

        Raises:
            UnreadableError: If it is damaged, or of other layers.
        """
        try:
            packed = _unpacked(content)
            num, layers, lines, is_single = _HEAD.unpack_from(packed)
            if layers != num_layers or not num:
                raise ValueError(f"{num} bins of {layers} layers")
            num_planes, place = 1 if is_single else 3, _HEAD.size
            spans = np.frombuffer(packed, "<i8", 3 * num, place).reshape(3, num).astype(np.int64)
            place += spans.nbytes
            if (spans[0] > spans[1]).any() or (spans[2] < 1).any():
                raise ValueError("bins without any step")
            known = np.frombuffer(packed, "<f4", 3 * num * lines, place).reshape(num, lines, 3)
            place += known.nbytes
            ends = np.full((num, num_lines, 3), np.nan, np.float32)
            ends[:, :lines] = known[:, :num_lines]
            planes = np.frombuffer(packed, np.uint8, 2 * num_planes * num * layers, place)
            lower, upper = planes.reshape(2, num_planes, num, layers)
            codes = upper.astype(np.uint16) << 8 | lower
        except (ValueError, struct.error, zlib.error) as failure:
            raise UnreadableError(f"A stretch of gradient norms is damaged: {failure}.") from None
        norms = _NORMS.take(codes)
        low, mean, high = norms if num_planes == 3 else (norms[0],) * 3
        first, last, count = spans
        return cls(first, last, count, low, mean, high, ends)


def reduce_steps(steps: Array, norms: Array, lines: Array, width: int) -> Bins:
    """Bins of so many steps each, from every step; the last one may have fewer.

    Args:
        steps: Shape ``(steps,)``; at least one.
        norms: Shape ``(steps, layers)``, float32: -1 for no gradient, NaN and inf as they were.
        lines: Shape ``(steps, lines)``, float32; NaN where a number is not known.
        width: Steps in a bin.
    """
    single = Bins.of_steps(steps, norms, lines)
    return single if width == 1 else single.merged(np.arange(0, len(steps), width))


def _lowest(low: Array, starts: Array) -> Array:
    """The smallest of what is finite and there; else -1, or what was there."""
    counted = np.where(np.isfinite(low) & (low >= 0), low, np.inf)
    found = np.minimum.reduceat(counted, starts)
    return np.where(np.isinf(found), np.maximum.reduceat(low, starts), found).astype(np.float32)


def _merged_lines(lines: Array, count: Array, starts: Array) -> Array:
    """Smallest, mean and largest of what is there."""
    is_there = np.isfinite(lines[..., 1])
    weights = np.where(is_there, count[:, None], 0)
    total = np.add.reduceat(weights, starts)
    sums = np.add.reduceat(np.where(is_there, lines[..., 1], 0) * weights, starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(total > 0, sums / total, np.nan)
    low, high = np.fmin.reduceat(lines[..., 0], starts), np.fmax.reduceat(lines[..., 2], starts)
    return np.stack([low, means, high], axis=2).astype(np.float32)


def _encode(norms: Array, quantum: int) -> Array:
    """16 bits for each norm, on a grid of so many; what is no positive finite number has a code of its own."""
    is_number = (norms > 0) & (norms < np.inf)
    logs = np.log10(np.where(is_number, norms, 1.0), dtype=np.float64)
    codes = np.rint((logs - LOWEST) * _PER_DECADE / quantum) * quantum + _FIRST_CODE
    codes = np.clip(codes, _FIRST_CODE, _LAST_CODE)
    special = ((_NO_GRADIENT, norms < 0), (_ZERO, norms == 0), (_INFINITE, norms == np.inf), (_NAN, np.isnan(norms)))
    for code, is_it in special:
        codes[is_it] = code
    return np.asarray(codes.astype(np.uint16))


def _all_norms() -> Array:
    """What each code means, shape ``(65536,)``, float32."""
    norms = 10.0 ** (LOWEST + (np.arange(2**16) - _FIRST_CODE) / _PER_DECADE)
    norms = norms.clip(max=np.finfo(np.float32).max)
    norms[[_NO_GRADIENT, _ZERO, _INFINITE, _NAN]] = MISSING, 0.0, np.inf, np.nan
    return norms.astype(np.float32)


def _unpacked(content: bytes) -> bytes:
    """What was packed, unless it is more than anybody would pack."""
    reader = zlib.decompressobj()
    packed = reader.decompress(content, _MAX_BYTES)
    if not reader.eof:
        raise ValueError(f"it is torn, or larger than {_MAX_BYTES} bytes")
    return packed


_NORMS = _all_norms()
