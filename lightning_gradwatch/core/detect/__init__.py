"""Host numbers over time become findings: what is wrong, where, since when, how much. No words, no output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from lightning_gradwatch.core.detect.depth import DepthRule, TimeRule
from lightning_gradwatch.core.detect.growth import ExplodingRule
from lightning_gradwatch.core.detect.losses import LossHistory
from lightning_gradwatch.core.detect.nonfinite import NonfiniteRule
from lightning_gradwatch.core.detect.profile import Profile, depth_profile, outer_ends
from lightning_gradwatch.core.detect.progress import StalledRule, UnderflowRule
from lightning_gradwatch.core.detect.silence import SilenceRule
from lightning_gradwatch.core.records import Finding, Observation, Sample
from lightning_gradwatch.core.saved import Saved

__all__ = ["DepthRule", "Detector"]


class Detector:
    """Every rule, over the observations of one optimizer.

    Args:
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` opens.
    """

    def __init__(self, vanishing_threshold: float) -> None:
        self.losses = LossHistory()
        self.profile = Profile((), (), True)
        self.depth = DepthRule(vanishing_threshold)
        self.time = TimeRule()
        self.nonfinite = NonfiniteRule()
        self.exploding = ExplodingRule()
        self.silence = SilenceRule()
        self.stalled = StalledRule()
        self.underflow = UnderflowRule()
        self._update_ratio = -1.0
        self._usual_update = 0.0

    @property
    def is_suspicious(self) -> bool:
        """Whether a few more samples at once would settle something."""
        return self.depth.is_suspicious

    def update(self, observation: Observation, is_scaled: bool, skips: bool = False) -> list[Finding]:
        """Take in an observation.

        Args:
            observation: The numbers of the steps since the last one.
            is_scaled: Whether a loss scaler is at work, which skips non-finite steps by itself.
            skips: Whether non-finite steps are skipped, by whomever.

        Returns:
            The findings that opened, rose to an alert, or ended, oldest first.
        """
        self.losses.add(observation.losses)
        changes = self.nonfinite.update(observation, is_scaled, skips or is_scaled)
        sample = observation.sample
        if sample is not None and not sample.is_skipped:
            changes += self._update_sample(observation, sample, is_scaled)
        ends = outer_ends(self.profile) if len(self.profile.norms) >= 3 else ()
        if self.nonfinite.finding is None:
            changes += self.exploding.update(
                observation, self.losses, self._usual_update, self.depth.growth, self.time.growth, ends
            )
        return changes

    def _update_sample(self, observation: Observation, sample: Sample, is_scaled: bool) -> list[Finding]:
        norms = observation.last_norms
        self.profile = depth_profile(observation.layers, sample.output_norms, norms)
        sequences = {name: values.tolist() for name, values in sample.sequences}
        changes: list[Finding] = []
        if sample.checkup is not None:
            known = [r for r in sample.checkup.update_ratio.tolist() if r >= 0]
            self._update_ratio = max(known, default=-1.0)
            self._usual_update = median(known) if known else 0.0
        changes += self.depth.update(sample.step, self.profile, lambda: self.losses.patience)
        if sequences or self.time.horizons:
            parts = _shares(norms, observation.total_norms[-1])
            shares = dict(zip((layer.name for layer in observation.layers), parts, strict=True))
            levels = self.losses.concern, self.losses.concern_regardless
            changes += self.time.update(sample.step, sequences, levels[0], shares, levels[1])
        if sample.checkup is not None and self.depth.incident.finding is None:
            changes += self.underflow.update(observation, sample, sample.checkup, is_scaled)
        if self.underflow.incident.finding is None:
            changes += self.silence.update(observation, sample)
        if not self._others_open:
            changes += self.stalled.update(observation, sample, self.losses, self._update_ratio)
        return changes

    @property
    def _others_open(self) -> bool:
        """Whether an alert is open that explains why nothing moves, so that ``stalled`` would say it twice."""
        incidents = (self.depth.incident, self.time.incident, self.silence.dead, self.underflow.incident)
        findings = [incident.finding for incident in incidents]
        is_open = any(finding is not None and finding.level == "alert" for finding in findings)
        return is_open or self.nonfinite.finding is not None or self.exploding.finding is not None

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name."""
        scores = {
            "vanishing": self.depth.score,
            "decades_lost": self.depth.decades,
            "nonfinite_steps": float(self.nonfinite.num_steps),
            "skipped_steps": float(self.nonfinite.num_skipped),
            "exploding": max(self.depth.growth, self.time.growth[1]),
            "dead_layers": float(self.silence.num_dead),
            "detached_layers": float(self.silence.num_detached),
            "stalled": float(self.stalled.incident.finding is not None),
            "underflow": self.underflow.share,
        }
        if self.time.horizons:
            scores["vanishing_through_time"] = max(self.time.worst[1], 0.0)
        progress = {"loss_lower_share": self.losses.lower_share, "loss_roughness": self.losses.roughness}
        scores.update({name: number for name, number in progress.items() if number is not None})
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        rules = (self.losses, self.depth, self.time, self.nonfinite, self.exploding, self.silence)
        state: dict[str, Any] = {type(rule).__name__: rule.state_dict() for rule in rules}
        return {
            **state,
            "stalled": self.stalled.incident.state_dict(),
            "underflow": self.underflow.incident.state_dict(),
            "shares": dict(self.underflow.shares),
            "update_ratio": self._update_ratio,
            "usual_update": self._usual_update,
        }

    def load_state_dict(self, state: Saved | Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; a rule that was not there, or cannot be read, starts afresh."""
        saved = Saved.of(state)
        for rule in (self.losses, self.depth, self.time, self.nonfinite, self.exploding, self.silence):
            rule.load_state_dict(saved.part(type(rule).__name__))
        self.stalled.incident.load_state_dict(saved.part("stalled"))
        self.underflow.incident.load_state_dict(saved.part("underflow"))
        shares = saved.take("shares", dict[str, float], {})
        self.underflow.shares = {name: shares.get(name, share) for name, share in self.underflow.shares.items()}
        self._update_ratio = saved.take("update_ratio", float, self._update_ratio)
        self._usual_update = saved.take("usual_update", float, self._usual_update)


def _shares(norms: list[float], total: float) -> list[float]:
    """What part each layer has in the squared total norm; 1 where that is not known."""
    return [(max(norm, 0.0) / total) ** 2 if 0 < total < math.inf else 1.0 for norm in norms]
