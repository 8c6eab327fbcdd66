"""``max_overhead``: samples are taken less often where watching costs more than it may."""

from __future__ import annotations

from lightning_gradwatch.core.cost import Cost
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.host import Host
from lightning_gradwatch.watches import Watches, num_log_points

DECISION_STEPS = 50
"""Least number of steps between two decisions."""
_THINNED = (
    "Watching has cost {:.1f} % of the steps' time. To hold max_overhead={:g}, GradWatch takes a sample about "
    "every {} steps instead of every {}; the norms of every step stay."
)


class Budget:
    """Decides, alike and together on all ranks, how far apart samples lie.

    Args:
        limit: What watching may cost, as a fraction of the time of the steps.
        schedule: When samples are taken as long as they cost less.
        log_every_n_steps: Steps between two publications; None for the host's own.
        host: The training loop.
    """

    def __init__(self, limit: float, schedule: Schedule, log_every_n_steps: int | None, host: Host) -> None:
        self._limit = limit
        self._every_n_steps = schedule.every_n_steps
        self._log_every_n_steps = log_every_n_steps
        self._host = host
        self._num_decisions: int | None = None
        self._has_thinned = False

    def hold(self, cost: Cost, watches: Watches) -> None:
        """Call after every batch: decides at steps that are published, and not often.

        Ranks on which the watch has failed take part, so that the others do not wait for them.

        Args:
            cost: What watching has cost on this rank.
            watches: Whose samples may lie farther apart from now on.
        """
        if not self._is_due():
            return
        # rank zero decides by its own cost
        thinning = cost.thinning(self._limit, self._every_n_steps, watches.thinning)
        watches.thinning = thinning = self._host.broadcast(thinning)
        if thinning > 1 and not self._has_thinned:
            self._has_thinned = True
            every = self._every_n_steps
            self._host.inform(_THINNED.format(cost.percent or 0.0, self._limit, every * thinning, every))

    def _is_due(self) -> bool:
        """Whether a point of decision was passed since the last call; all ranks know it by the step alone."""
        every = self._log_every_n_steps or self._host.log_every_n_steps() or DECISION_STEPS
        every *= -(-DECISION_STEPS // every)
        before, self._num_decisions = self._num_decisions, num_log_points(self._host.step(), every)
        return before is not None and self._num_decisions != before
