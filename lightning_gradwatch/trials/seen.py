"""What the watch saw of one trial."""

from __future__ import annotations

import math
from statistics import median

from lightning_gradwatch.core.history.profile import decades_lost, depth_profile, positive
from lightning_gradwatch.core.optional import Omission
from lightning_gradwatch.core.records import Alert, Observation
from lightning_gradwatch.core.reports import Report
from lightning_gradwatch.core.samples import Sample

NUM_SAMPLES = 5
"""As many as the detector takes the median of."""


class Seen:
    """Collects reports.

    Attributes:
        alerts: What was raised.
        observations: By what.
        left_out: Figures that could not be measured.
        num_time_steps: The longest sequence.
    """

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.observations: list[Observation] = []
        self.left_out: list[Omission] = []
        self.num_time_steps = 0
        self._decades: list[float] = []
        self._time_decades: list[float] = []

    def add(self, report: Report) -> None:
        """Take in a report."""
        self.alerts += report.alerts
        self.observations += report.observations
        for observation in report.observations:
            if observation.sample is not None:
                self._add_sample(observation, observation.sample)

    def lost(self, through_time: bool) -> float:
        """Decades lost at the start, the median over the first samples; NaN without a profile."""
        samples = (self._time_decades if through_time else self._decades)[:NUM_SAMPLES]
        return median(samples) if samples else math.nan

    def _add_sample(self, observation: Observation, sample: Sample) -> None:
        profile = depth_profile(observation.layers, sample.output_norms, observation.last_norms)
        with_depth = decades_lost(profile.norms)
        if with_depth is not None:
            self._decades.append(with_depth)
        sequences = [norms.tolist() for _, norms in sample.sequences]
        self.num_time_steps = max([self.num_time_steps, *map(len, sequences)])
        through_time = [lost for norms in sequences if (lost := decades_lost(positive(norms))) is not None]
        if through_time:
            self._time_decades.append(max(through_time, key=abs))
