"""What was measured of the learning rate's headroom."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal

from lightning_gradwatch.trials.headroom.critical import MAX_MULTIPLE

_SEVERAL, _MARGIN = 3, 2.0


@dataclass(frozen=True)
class Headroom:
    """By which multiple of the present update the loss on the batch stops falling.

    2.5 says that the rate could be 2.5 times as high on this batch, 0.8 that the step leads past the edge. Single
    measurements scatter, so the median of several is what counts.

    Attributes:
        multiples: One for each measurement, in their order: infinity beyond 16, 0 where the loss falls nowhere along
            the update, NaN where it cannot be told.
        rates: Learning rates of the optimizer's groups.
        over: Whether the measurements are of several batches, or of several steps of a training.
    """

    multiples: tuple[float, ...]
    rates: tuple[float, ...] = ()
    over: Literal["batches", "steps"] = "batches"

    @property
    def known(self) -> tuple[float, ...]:
        """The multiples that could be told, in ascending order."""
        return tuple(sorted(m for m in self.multiples if not math.isnan(m)))

    @property
    def median(self) -> float:
        """Of the multiples that could be told; NaN if there are none."""
        return statistics.median_low(self.known) if self.known else math.nan

    @property
    def is_sure(self) -> bool:
        """Whether it tells a rate past the edge from one before it: by several batches, or by a wide margin."""
        return len(self.known) >= _SEVERAL or not 1 / _MARGIN <= self.median <= _MARGIN

    @property
    def num_uphill(self) -> int:
        """Measurements whose update does not lead downhill."""
        return sum(m == 0 for m in self.multiples)

    def __str__(self) -> str:
        """A sentence or two."""
        count = len(self.multiples)
        where = f"on {count} batches" if self.over == "batches" else f"at {count} of the first steps"
        if not self.known:
            return "The headroom of the learning rate cannot be told: the loss is not finite, or does not move."
        if 2 * self.num_uphill > len(self.known):
            return (
                f"The update does not lead downhill {where.replace(str(count), f'{self.num_uphill} of {count}', 1)}, "
                "not even a small part of it: that is the direction, and not the learning rate."
            )
        single = "on one batch: single ones scatter" if self.over == "batches" else "at the first step"
        between = f"{_plain(self.known[0])} to {_plain(self.known[-1])} {where}"
        told = f"Headroom of the learning rate {_plain(self.median)} ({between if count > 1 else single})"
        if self.median < 1:
            return f"{told}: past the edge, a step makes the loss on its own batch rise."
        multiple = f"{'more than ' if math.isinf(self.median) else ''}{min(self.median, MAX_MULTIPLE):.2g}"
        return (
            f"{told}: one step at {multiple} times the rate would still leave the loss on its batch where it is. That "
            "says nothing of the steps after it."
        )

    def as_dict(self) -> dict[str, Any]:
        """Numbers, texts and lists, for JSON: infinity is the text ``"Infinity"``, and NaN null."""
        multiples = [None if math.isnan(m) else "Infinity" if math.isinf(m) else m for m in self.multiples]
        return {"multiples": multiples, "rates": list(self.rates), "text": str(self)}


def _plain(multiple: float) -> str:
    return f">{MAX_MULTIPLE:.0f}" if math.isinf(multiple) else f"{multiple:.2g}"
