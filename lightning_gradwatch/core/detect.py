"""Host numbers over time become findings: what is wrong, where, since when, how much. No words, no output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from lightning_gradwatch.core.records import Finding, Layer, Observation

FULL_SCORE_DECADES = 4.0
"""Decades lost between the loss end and the input end at which the vanishing score reaches 1."""
FALLBACK_FULL_SCORE_DECADES = 5.0
"""The same where only parameter gradients are known: they separate sick from healthy less sharply."""
RELEASE = 0.75
"""An incident ends when its score falls below this share of the threshold at which it opened."""
WARM_UP_SAMPLES = 5
MEDIAN_SAMPLES = 5
FINITE_STEPS_TO_CLOSE = 20
SKIPS_IN_A_ROW = 3
"""Under a loss scaler a skipped step is routine; this many in a row are not."""


@dataclass(frozen=True)
class Profile:
    """Gradient norms along the depth of the network, the input end first.

    Attributes:
        layers: Layer names in the order in which they ran.
        norms: One norm per layer, each finite and above zero.
        at_outputs: Whether the norms were taken at layer outputs; otherwise they are those of the weights' gradients.
    """

    layers: tuple[str, ...]
    norms: tuple[float, ...]
    at_outputs: bool


def depth_profile(layers: Sequence[Layer], output_norms: Sequence[float], gradient_norms: Sequence[float]) -> Profile:
    """The layers that own a matrix, without those that did not run, got no gradient, or an exact zero.

    Args:
        layers: The watched layers, in the order in which they ran.
        output_norms: Gradient norm at each layer's output; negative where it was not observed.
        gradient_norms: Gradient norm of each layer's parameters, the fallback if fewer than three outputs were seen.

    Returns:
        The profile; it may be empty.
    """
    for at_outputs, norms in ((True, output_norms), (False, gradient_norms)):
        kept = [
            (layer.name, norm)
            for layer, norm in zip(layers, norms, strict=True)
            if layer.has_matrix and norm > 0 and math.isfinite(norm)
        ]
        if len(kept) >= 3 or not at_outputs:
            break
    return Profile(tuple(name for name, _ in kept), tuple(norm for _, norm in kept), at_outputs)


def decades_lost(norms: Sequence[float]) -> float | None:
    """Decades by which the gradient shrinks from the loss end to the input end of the network.

    The difference between the medians of log10 of the last third and of the first third, so that no single layer
    decides.

    Args:
        norms: Gradient norms in the order in which the layers ran, each above zero.

    Returns:
        Decades; negative if the gradient grows towards the input; None for fewer than three layers.
    """
    if len(norms) < 3:
        return None
    third = math.ceil(len(norms) / 3)
    logs = [math.log10(norm) for norm in norms]
    return median(logs[-third:]) - median(logs[:third])


class DepthRule:
    """Vanishing gradients: the median of the last five values of :func:`decades_lost`, after five warm-up samples.

    It depends on neither the loss scale nor the learning rate nor the optimizer. Opens at the threshold on the score
    ``decades / 4`` and ends below three quarters of it.

    Args:
        threshold: Score in (0, 1] at which the alert opens; 0.5 is a loss of two decades.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._num_samples = 0
        self._recent: list[float] = []
        self._full_score = FULL_SCORE_DECADES
        self._ends: tuple[str, str] = ("", "")
        self.finding: Finding | None = None

    @property
    def decades(self) -> float:
        """Decades lost, 0 until there are enough samples."""
        enough = self._num_samples >= WARM_UP_SAMPLES + MEDIAN_SAMPLES
        return median(self._recent) if enough else 0.0

    @property
    def score(self) -> float:
        """Decades lost as a score in [0, 1]."""
        return min(max(self.decades / self._full_score, 0.0), 1.0)

    def update(self, step: int, profile: Profile) -> Finding | None:
        """Take in a sample; the finding if it opened or ended just now."""
        decades = decades_lost(profile.norms)
        if decades is None:
            return None
        self._num_samples += 1
        self._recent = [*self._recent, decades][-MEDIAN_SAMPLES:]
        self._full_score = FULL_SCORE_DECADES if profile.at_outputs else FALLBACK_FULL_SCORE_DECADES
        self._ends = _ends(profile)
        return self._judge(step)

    def _judge(self, step: int) -> Finding | None:
        if self.finding is None and self.score >= self._threshold:
            self.finding = Finding(
                kind="vanishing",
                level="alert",
                step=step,
                until_step=None,
                layers=self._ends,
                value=self.decades,
                threshold=self._threshold * self._full_score,
            )
            return self.finding
        if self.finding is not None and self.score < RELEASE * self._threshold:
            ended = replace(self.finding, until_step=step)
            self.finding = None
            return ended
        return None

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        return {
            "num_samples": self._num_samples,
            "recent": list(self._recent),
            "full_score": self._full_score,
            "finding": _finding_state(self.finding),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._num_samples = state["num_samples"]
        self._recent = list(state["recent"])
        self._full_score = state["full_score"]
        self.finding = _finding_from(state["finding"])


def _ends(profile: Profile) -> tuple[str, str]:
    """The layer with the least gradient in the first third, and the one with the most in the last."""
    third = math.ceil(len(profile.norms) / 3)
    first = min(range(third), key=profile.norms.__getitem__)
    last = max(range(len(profile.norms) - third, len(profile.norms)), key=profile.norms.__getitem__)
    return profile.layers[first], profile.layers[last]


class NonfiniteRule:
    """NaN or inf in a gradient: at once, or under a loss scaler after three skipped steps in a row."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_skipped = 0
        self._in_a_row = 0
        self._finite_in_a_row = 0
        self._opened_at = 0
        self._last_step = 0
        self.finding: Finding | None = None

    def update(self, observation: Observation, is_scaled: bool) -> list[Finding]:
        """Take in every step of an observation; the findings that opened or ended."""
        changes: list[Finding] = []
        for step, finite, row in zip(
            observation.steps, observation.norms[:, 0].isfinite().tolist(), observation.norms, strict=True
        ):
            if finite:
                self._in_a_row = 0
                self._finite_in_a_row += 1
                if self.finding is not None and self._finite_in_a_row >= FINITE_STEPS_TO_CLOSE:
                    changes.append(replace(self.finding, until_step=self._last_step))
                    self.finding = None
                continue
            self._count(step, is_scaled)
            threshold = SKIPS_IN_A_ROW if is_scaled else 1
            if self.finding is None and self._in_a_row >= threshold:
                bad = (~row[1:].isfinite()).nonzero().flatten().tolist()
                layers = tuple(observation.layers[i].name for i in bad)
                self.finding = Finding(
                    "nonfinite", "alert", self._opened_at, None, layers, float(self._in_a_row), float(threshold)
                )
                changes.append(self.finding)
        return changes

    def _count(self, step: int, is_scaled: bool) -> None:
        if self._in_a_row == 0:
            self._opened_at = step
        self._in_a_row += 1
        self._finite_in_a_row = 0
        self._last_step = step
        if is_scaled:
            self.num_skipped += 1
        else:
            self.num_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        return {**self.__dict__, "finding": _finding_state(self.finding)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.__dict__.update({**state, "finding": _finding_from(state["finding"])})


def _finding_state(finding: Finding | None) -> dict[str, Any] | None:
    return None if finding is None else asdict(finding)


def _finding_from(state: dict[str, Any] | None) -> Finding | None:
    return None if state is None else Finding(**{**state, "layers": tuple(state["layers"])})


class Detector:
    """Every rule, over the observations of one optimizer.

    Args:
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` opens.
    """

    def __init__(self, vanishing_threshold: float) -> None:
        self._depth = DepthRule(vanishing_threshold)
        self._nonfinite = NonfiniteRule()
        self.profile = Profile((), (), True)

    def update(self, observation: Observation, is_scaled: bool) -> list[Finding]:
        """Take in an observation.

        Args:
            observation: The numbers of the steps since the last one.
            is_scaled: Whether a loss scaler is at work, which skips non-finite steps by itself.

        Returns:
            The findings that opened or ended, oldest first.
        """
        changes = self._nonfinite.update(observation, is_scaled)
        sample = observation.sample
        if sample is not None:
            norms = observation.norms[-1, 1:].tolist()
            self.profile = depth_profile(observation.layers, sample.output_grad_norm.tolist(), norms)
            change = self._depth.update(sample.step, self.profile)
            changes += [] if change is None else [change]
        return changes

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name."""
        return {
            "vanishing": self._depth.score,
            "decades_lost": self._depth.decades,
            "nonfinite_steps": float(self._nonfinite.num_steps),
            "skipped_steps": float(self._nonfinite.num_skipped),
        }

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        return {"depth": self._depth.state_dict(), "nonfinite": self._nonfinite.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._depth.load_state_dict(state["depth"])
        self._nonfinite.load_state_dict(state["nonfinite"])
