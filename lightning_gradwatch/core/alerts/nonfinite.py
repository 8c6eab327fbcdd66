"""NaN or inf in a gradient or in the loss."""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_gradwatch.core.alerts.causes import (
    decades_grown,
    divergence,
    growing_recurrence,
    half_precision,
    rate_jump,
    weights_too_large,
)
from lightning_gradwatch.core.alerts.hysteresis import finding_state, take_finding
from lightning_gradwatch.core.alerts.kind import Diagnosis, Kind, first_of, named
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.saved import Saved, State

FINITE_STEPS_TO_CLOSE = 20
SKIPS_IN_A_ROW = 3
"""Under a loss scaler a skipped step is routine; this many in a row are not."""
SKIPS_AT_THE_START = 20
"""Unless it is still looking for its level: from its usual 2**16 it halves sixteen times down to 1."""

IF_UNKNOWN = (
    "an operation that is safe at the edge: log(x + eps), sqrt(x + eps), a fused loss on logits",
    'GradWatch(on_nonfinite="trace") for one run, which names the line of code and the samples',
)
"""Remedies against an operation of which nobody knows which one it is."""


class NonfiniteRule:
    """At once, or under a loss scaler after three steps in a row.

    After twenty as long as no step has worked yet and only the gradient is not finite, which the scale may have done.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_skipped = 0
        self._has_worked = False
        self._in_a_row = 0
        self._finite_in_a_row = 0
        self._opened_at = 0
        self._last_step = 0
        self.finding: Finding | None = None

    def update(self, observation: Observation, history: History) -> list[Finding]:
        """Take in every step of an observation; the findings that opened or ended."""
        changes: list[Finding] = []
        steps = zip(observation.steps, observation.total_norms, observation.losses, strict=True)
        for i, (step, norm, loss) in enumerate(steps):
            is_finite, is_loss_finite = math.isfinite(norm), loss is None or math.isfinite(loss)
            if is_finite and is_loss_finite:
                changes += self._count_finite()
                continue
            self._count_bad(step, is_skipped=history.skips and not is_finite)
            is_looking = is_loss_finite and not self._has_worked
            threshold = (SKIPS_AT_THE_START if is_looking else SKIPS_IN_A_ROW) if history.is_scaled else 1
            if self.finding is None and self._in_a_row >= threshold:
                bad = (~observation.norms[i, 1:].isfinite()).nonzero().flatten().tolist()
                layers = tuple(observation.layers[j].name for j in reversed(bad))  # the nearest to the loss first
                self.finding = Finding(
                    "nonfinite", "alert", self._opened_at, None, layers, float(self._in_a_row), float(threshold)
                )
                changes.append(self.finding)
        return changes

    def _count_finite(self) -> list[Finding]:
        self._has_worked = True
        self._in_a_row = 0
        self._finite_in_a_row += 1
        if self.finding is None or self._finite_in_a_row < FINITE_STEPS_TO_CLOSE:
            return []
        ended, self.finding = replace(self.finding, until_step=self._last_step), None
        return [ended]

    def _count_bad(self, step: int, is_skipped: bool) -> None:
        if self._in_a_row == 0:
            self._opened_at = step
        self._in_a_row += 1
        self._finite_in_a_row = 0
        self._last_step = step
        if is_skipped:
            self.num_skipped += 1
        else:
            self.num_steps += 1

    def scores(self, history: History) -> dict[str, float]:
        """Steps that were not finite so far, and of those whose gradient was not, how many were skipped."""
        return {"nonfinite_steps": float(self.num_steps), "skipped_steps": float(self.num_skipped)}

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {**self.__dict__, "finding": finding_state(self.finding)}

    def load_state_dict(self, state: Saved) -> None:
        """Go on where ``state_dict`` was taken."""
        for name in ("num_steps", "num_skipped", "_in_a_row", "_finite_in_a_row", "_opened_at", "_last_step"):
            setattr(self, name, state.take(name, int, getattr(self, name)))
        self._has_worked = state.take("_has_worked", bool, self._has_worked)
        self.finding = take_finding(state, "nonfinite")


def describe(finding: Finding, _: Evidence) -> str:
    """What is wrong, in a sentence."""
    seen = f"in {named(finding.layers)}" if finding.layers else "in the loss or the total norm"
    return f"NaN or infinite values since step {finding.step}, {seen}."


def diagnose(finding: Finding, evidence: Evidence) -> Diagnosis:
    """The batch itself, a divergence that came to its end, another rank, or an operation at its edge."""
    steps = evidence.steps
    if finding.step in steps.bad_inputs and not steps.takes_bad_inputs:
        return Diagnosis(
            "bad_data",
            f"the batch of step {finding.step} itself holds NaN or infinite values",
            ("find that batch and clean the data", "check the data for NaN when loading it"),
        )
    starts_too_large = bool(weights_too_large(evidence) or growing_recurrence(evidence))
    is_diverging = decades_grown(evidence) >= 2 or max(steps.early_norms[:3], default=0.0) > 1e6
    return first_of(
        half_precision(evidence),
        rate_jump(evidence),
        divergence(evidence) if is_diverging or (finding.step <= 1 and starts_too_large) else None,
        _other_rank(finding, evidence),
        _unstable(finding, evidence),
    )


def _other_rank(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    steps = evidence.steps
    if steps.num_ranks == 1 or finding.step not in steps.sound_losses:
        return None
    here = "batch and loss of this rank were" if finding.step in steps.sound_inputs else "the loss of this rank was"
    return Diagnosis(
        "unknown",
        f"{here} finite, so it comes from another of the {steps.num_ranks} ranks, or from the backward pass",
        (
            "print `alerts` of GradWatch on every rank: the one whose batch or loss was not finite says so",
            "torch.autograd.set_detect_anomaly(True) for one run, which names an operation",
        ),
    )


def _unstable(finding: Finding, evidence: Evidence) -> Diagnosis:
    near = f", first in {finding.layers[0]}, the nearest to the loss," if finding.layers else ""
    if finding.step in evidence.steps.bad_losses:
        where = f"the loss was not finite before any gradient was, while {_sound_before(finding, evidence)}"
    elif finding.step in evidence.steps.sound_losses:
        where = f"the loss was finite and only the backward pass{near} was not"
    else:
        where = f"the backward pass{near} was not finite; of the loss nothing is known"
    return Diagnosis(
        "unstable_op",
        where,
        IF_UNKNOWN,
    )


def _sound_before(finding: Finding, evidence: Evidence) -> str:
    """What is known to have been finite when the loss was not."""
    if finding.step in evidence.steps.sound_inputs:
        return "the batch and the steps before were"
    if finding.step in evidence.steps.bad_inputs:
        return "the steps before were, though their batches, too, held NaN or infinite values"
    return "the steps before were; not all of the batch could be looked at"


NONFINITE = Kind(
    name="nonfinite",
    title="NaN or infinite values",
    label="NaN or Inf",
    unit="steps in a row",
    rule=NonfiniteRule,
    describe=describe,
    diagnose=diagnose,
    saved_at=("NonfiniteRule",),
)
