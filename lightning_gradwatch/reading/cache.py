"""What was decoded is kept between requests, within a number of bytes."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from lightning_gradwatch.reading.samples import Samples, Shared
from lightning_gradwatch.reading.steps import Part

MAX_BYTES = 512 * 2**20
"""Enough for 10 million steps of 200 layers, in 60,000 bins: 144 MB as they were written, and as much put together."""
MAX_AGE_SECONDS = 1.0
Listing = TypeVar("Listing")
Kept = Samples | Part | Shared


class Cache:
    """Keeps what was decoded, what was used last the longest, within a number of bytes. Safe between threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock, self._listing = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, Kept]] = OrderedDict()
        self._listings: dict[Hashable, tuple[float, object]] = {}
        self.num_bytes = 0

    def get(self, key: Hashable, state: Hashable) -> Kept | None:
        """What was kept under a key in this state."""
        with self._lock:
            kept_state, samples = self._kept.get(key, (None, None))
            if samples is None or kept_state != state:
                return None
            self._kept.move_to_end(key)
            return samples

    def put(self, key: Hashable, state: Hashable, samples: Kept) -> None:
        """Keep it, instead of what was kept under this key."""
        with self._lock:
            self._drop(key)
            self._kept[key] = (state, samples)
            self.num_bytes += samples.num_bytes
            while self.num_bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))

    def recent(self, key: Hashable, make: Callable[[], Listing]) -> Listing:
        """A listing, made anew if it is older than a second: a page asks for much at once."""
        with self._listing:
            made_at, listing = self._listings.get(key, (-math.inf, None))
            if time.monotonic() - made_at > MAX_AGE_SECONDS:
                listing = make()
                self._listings = {key: (time.monotonic(), listing)}
            return cast("Listing", listing)

    def _drop(self, key: Hashable) -> None:
        if key in self._kept:
            self.num_bytes -= self._kept.pop(key)[1].num_bytes
