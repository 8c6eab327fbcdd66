"""Layers without a gradient: dead (exact zeros) and detached (never any)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_gradwatch.core.detect.incident import Incident
from lightning_gradwatch.core.records import AlertLevel, Finding, Observation, Sample
from lightning_gradwatch.core.saved import Saved

DEAD_SAMPLES = 5
DETACHED_SAMPLES = 10


class SilenceRule:
    """Dead: at least half of the first third of the layers with exactly zero gradient in five samples in a row.

    Detached: a layer that ran in ten samples and never had a gradient; a mere notice if it is behind every layer that
    had one, as a head that the loss does not use.
    """

    def __init__(self) -> None:
        self._had_gradient: set[str] = set()
        self._num_runs: dict[str, int] = {}
        self.dead = Incident("dead", 0.5, persistence=DEAD_SAMPLES, release=1.0)
        self.detached = Incident("detached", 1.0, release=1.0)

    @property
    def num_dead(self) -> int:
        """Number of dead layers; 0 while there is no alert."""
        return len(self.dead.finding.layers) if self.dead.finding is not None else 0

    @property
    def num_detached(self) -> int:
        """Number of detached layers."""
        return len(self.detached.finding.layers) if self.detached.finding is not None else 0

    def update(self, observation: Observation, sample: Sample) -> list[Finding]:
        """Take in a sample; the findings that opened or ended."""
        norms, outputs = observation.last_norms, sample.output_norms
        matrices, silent, never = [], [], []
        for i, layer in enumerate(observation.layers):
            if norms[i] > 0 or outputs[i] > 0 or not math.isfinite(norms[i]):
                self._had_gradient.add(layer.name)
            if layer.name in sample.ran:
                self._num_runs[layer.name] = self._num_runs.get(layer.name, 0) + 1
            if not layer.has_matrix or not layer.parameters or layer.name not in sample.ran:
                continue  # of a layer whose parameters all belong to others, the output alone proves nothing
            if layer.name not in self._had_gradient and outputs[i] < 0:
                if self._num_runs[layer.name] >= DETACHED_SAMPLES:
                    never.append(layer.name)
                continue
            matrices.append(layer.name)
            if outputs[i] == 0 and norms[i] <= 0:  # a weight that other layers share may have a gradient from them
                silent.append(layer.name)
        if observation.losses[-1] == 0:  # nothing is left to learn from this batch
            silent = []
        first_third = matrices[: math.ceil(len(matrices) / 3)]
        share = sum(name in silent for name in first_third) / len(first_third) if first_third else 0.0
        changes = [
            self.detached.judge(sample.step, float(len(never)), tuple(never), self._level(observation, never)),
            self.dead.judge(sample.step, share, tuple(silent)),
        ]
        return [change for change in changes if change is not None]

    def _level(self, observation: Observation, detached: list[str]) -> AlertLevel:
        """A notice if all of them ran behind the last layer that has had a gradient."""
        names = [layer.name for layer in observation.layers]
        last = max((i for i, name in enumerate(names) if name in self._had_gradient), default=len(names))
        return "notice" if {*detached} <= {*names[last + 1 :]} else "alert"

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        return {
            "had_gradient": sorted(self._had_gradient),
            "num_runs": dict(self._num_runs),
            "dead": self.dead.state_dict(),
            "detached": self.detached.state_dict(),
        }

    def load_state_dict(self, state: Saved | Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        saved = Saved.of(state)
        self._had_gradient = saved.take("had_gradient", set[str], self._had_gradient)
        self._num_runs = saved.take("num_runs", dict[str, int], self._num_runs)
        self.dead.load_state_dict(saved.part("dead"))
        self.detached.load_state_dict(saved.part("detached"))
