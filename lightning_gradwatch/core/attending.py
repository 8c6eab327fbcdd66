"""A rank on which the watch has failed goes on taking part in what the ranks do together, until all of them know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.engines import Access
from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.measure import NormWindow
from lightning_gradwatch.core.pending import Pending
from lightning_gradwatch.core.sampling import Sampling


class OpenStep:
    """Where a step began, so that after a failure it is gone through again, and the ranks exchange nothing twice.

    Attributes:
        is_open: Whether the step has begun and not ended.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._instruments: Instruments | None = None
        self._sampling: dict[str, object] = {}
        self._num_rows = self._num_met = 0

    def begin(self, sampling: Sampling, instruments: Instruments | None) -> None:
        """Remember where everything stands."""
        self.is_open, self._instruments = True, instruments
        self._sampling = dict(vars(sampling))
        self._num_rows = 0 if instruments is None else len(instruments.window)
        self._num_met = 0 if instruments is None else instruments.shards.num_met

    def begin_again(self, sampling: Sampling, instruments: Instruments | None, pending: Pending) -> None:
        """Go back to there; what the ranks have exchanged since is to be skipped."""
        self.is_open = False
        vars(sampling).update(self._sampling)
        pending.shorten(self._num_rows)
        if instruments is not None:
            is_same = instruments is self._instruments
            instruments.window.shorten(self._num_rows)
            instruments.shards.num_to_skip = instruments.shards.num_met - (self._num_met if is_same else 0)


@contextlib.contextmanager
def gradients_if_possible(access: Access) -> Iterator[bool]:
    """Reach the gradients; whether that has succeeded."""
    with contextlib.ExitStack() as reached:
        try:
            reached.enter_context(access.gradients())
            succeeded = True
        except Exception as failure:
            if is_the_users(failure):
                raise
            succeeded = False
        yield succeeded


def push_anyhow(window: NormWindow, are_reached: bool, loss_scale: Tensor | None, gradients_scaled: bool) -> bool:
    """Append the norms of the present gradients, or a blank row if that fails; whether there was a gradient at all."""
    try:
        if are_reached:
            return window.push(None, loss_scale, gradients_scaled)
    except Exception as failure:
        if is_the_users(failure):
            raise
    window.push_blank()
    return True
