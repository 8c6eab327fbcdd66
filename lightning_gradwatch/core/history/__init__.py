"""Observations, reduced once: what rules judge and causes are found by."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from statistics import median

from lightning_gradwatch.core.history.branches import Branches, Part
from lightning_gradwatch.core.history.depth import DepthHistory
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.history.losses import LossHistory
from lightning_gradwatch.core.history.profile import Profile, depth_profile, without
from lightning_gradwatch.core.history.reach import Reach
from lightning_gradwatch.core.history.through_time import TimeHistory
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.samples import Sample
from lightning_gradwatch.core.saved import Saved, State

__all__ = ["History"]


class History:
    """What the observations of one optimizer have shown so far.

    Attributes:
        losses: What the loss has done.
        profile: The latest profile of the gradient along the depth.
        depth: What is lost, or grows, along the depth.
        branches: What is lost along each branch, where there are several.
        parts: What is judged by its depth: the whole network and its branches, or these alone if they are nearly all.
        time: What recurrent layers lose, or gain, along time.
        reach: Which layers a gradient has reached.
        largest_update: The largest relative update of any layer when last looked at; negative if it is not known.
        usual_update: That of the middle layer; 0 if it is not known.
        sample: The sample of the latest observation, None if it had none, or the step was not taken.
        is_scaled: Whether a loss scaler is at work, which skips non-finite steps by itself.
        skips: Whether non-finite steps are skipped, by whomever.
        open: The alerts that are open, as their findings by kind; kept by the detector, rule after rule.
        evidence: What tells the causes of alerts.
        starved: Layers with a gradient of exactly zero behind others that have one, as last measured.
        pooled: Decades that means and average pooling lose on the way to each layer, as last measured. A mean of n
            values divides the norm by the root of n, but n places then add up in the weights below: nothing starves.
    """

    def __init__(self) -> None:
        self.losses = LossHistory()
        self.profile = Profile((), (), True)
        self.depth = DepthHistory()
        self.branches = Branches()
        self.parts: list[Part] = [(self.depth, self.profile)]
        self.time = TimeHistory()
        self.reach = Reach()
        self.largest_update = -1.0
        self.usual_update = 0.0
        self.sample: Sample | None = None
        self.is_scaled = False
        self.skips = False
        self.open: dict[str, Finding] = {}
        self.evidence = Evidence(self.losses, self.time)
        self.pooled: dict[str, float] = {}
        self.starved: frozenset[str] = frozenset()

    @property
    def starving(self) -> DepthHistory:
        """The part that loses most with depth."""
        if not self.branches.depths:
            return self.depth
        return max((depth for depth, _ in self.parts), key=lambda depth: depth.decades)

    @property
    def growing(self) -> Part:
        """The part in which the gradient grows most towards the input."""
        return max(self.parts, key=lambda part: part[0].growth) if self.branches.depths else (self.depth, self.profile)

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers about the loss by their short name, as far as they are known."""
        progress = {"loss_lower_share": self.losses.lower_share, "loss_roughness": self.losses.roughness}
        return {name: number for name, number in progress.items() if number is not None}

    def add(self, observation: Observation, is_scaled: bool = False, skips: bool = False) -> None:
        """Take in an observation; what tells causes apart is left to ``evidence.add``, without which rules can do.

        Args:
            observation: The numbers of the steps since the last one.
            is_scaled: Whether a loss scaler is at work, which skips non-finite steps by itself.
            skips: Whether non-finite steps are skipped, by whomever.
        """
        self.is_scaled, self.skips = is_scaled, skips or is_scaled
        self.losses.add(observation.losses)
        sample = observation.sample
        self.sample = None if sample is None or sample.is_skipped else sample
        if self.sample is not None:
            self._add_sample(observation, self.sample)

    def _add_sample(self, observation: Observation, sample: Sample) -> None:
        norms = observation.last_norms
        self.profile = depth_profile(observation.layers, sample.output_norms, norms)
        if sample.thorough is not None and sample.thorough.attribution is not None:
            self.pooled = sample.thorough.attribution.lost_before("pooling")
            self.starved = sample.thorough.attribution.starved()
            self.branches.follow(sample.thorough.attribution.branches(), len(self.profile.layers))
        whole = without(self.profile, self.pooled)
        self.depth.add(whole)
        self.parts = [(self.depth, self.profile)]
        if self.branches.depths:
            self.branches.add(whole)
            self.parts = self.branches.beside(self.depth, self.profile)
        if sample.sequences:
            parts = _shares(norms, observation.total_norms[-1])
            shares = dict(zip((layer.name for layer in observation.layers), parts, strict=True))
            self.time.add({name: values.tolist() for name, values in sample.sequences}, shares)
        if sample.thorough is not None:
            known = [r for r in sample.thorough.update_ratio.tolist() if r >= 0]
            self.largest_update = max(known, default=-1.0)
            self.usual_update = median(known) if known else 0.0
        self.reach.add(observation, sample)

    def keep(self, layers: Collection[str]) -> None:
        """Forget every layer but these: the others are no more."""
        self.time.keep(layers)
        self.branches.keep(layers)
        self.pooled = {name: lost for name, lost in self.pooled.items() if name in layers}
        self.evidence.keep(layers)

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back, without the evidence; the keys are those of old."""
        return {
            "LossHistory": self.losses.state_dict(),
            "DepthRule": self.depth.state_dict(),
            "branches": self.branches.state_dict(),
            "TimeRule": self.time.state_dict(),
            "SilenceRule": self.reach.state_dict(),
            "update_ratio": self.largest_update,
            "usual_update": self.usual_update,
            "pooled": dict(self.pooled),
        }

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken; what was not there, or cannot be read, starts afresh."""
        saved = Saved.of(state)
        self.losses.load_state_dict(saved.part("LossHistory"))
        self.depth.load_state_dict(saved.part("DepthRule"))
        self.branches.load_state_dict(saved.part("branches"))
        self.time.load_state_dict(saved.part("TimeRule"))
        self.reach.load_state_dict(saved.part("SilenceRule"))
        self.largest_update = saved.take("update_ratio", float, self.largest_update)
        self.usual_update = saved.take("usual_update", float, self.usual_update)
        self.pooled = saved.take("pooled", dict[str, float], {}, lambda lost: all(map(math.isfinite, lost.values())))


def _shares(norms: list[float], total: float) -> list[float]:
    """What part each layer has in the squared total norm; 1 where that is not known."""
    return [(max(norm, 0.0) / total) ** 2 if 0 < total < math.inf else 1.0 for norm in norms]
