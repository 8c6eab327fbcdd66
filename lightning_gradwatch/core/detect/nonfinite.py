"""NaN or inf in a gradient or in the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_gradwatch.core.detect.incident import finding_state, take_finding
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.saved import Saved

FINITE_STEPS_TO_CLOSE = 20
SKIPS_IN_A_ROW = 3
"""Under a loss scaler a skipped step is routine; this many in a row are not."""
SKIPS_AT_THE_START = 20
"""Unless it is still looking for its level: from its usual 2**16 it halves sixteen times down to 1."""


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

    def update(self, observation: Observation, is_scaled: bool, skips: bool) -> list[Finding]:
        """Take in every step of an observation; the findings that opened or ended."""
        changes: list[Finding] = []
        steps = zip(observation.steps, observation.total_norms, observation.losses, strict=True)
        for i, (step, norm, loss) in enumerate(steps):
            is_finite, is_loss_finite = math.isfinite(norm), loss is None or math.isfinite(loss)
            if is_finite and is_loss_finite:
                changes += self._count_finite()
                continue
            self._count_bad(step, is_skipped=skips and not is_finite)
            is_looking = is_loss_finite and not self._has_worked
            threshold = (SKIPS_AT_THE_START if is_looking else SKIPS_IN_A_ROW) if is_scaled else 1
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

    def state_dict(self) -> dict[str, Any]:
        """Primitives that :meth:`load_state_dict` takes back."""
        return {**self.__dict__, "finding": finding_state(self.finding)}

    def load_state_dict(self, state: Saved | Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        saved = Saved.of(state)
        for name in ("num_steps", "num_skipped", "_in_a_row", "_finite_in_a_row", "_opened_at", "_last_step"):
            setattr(self, name, saved.take(name, int, getattr(self, name)))
        self._has_worked = saved.take("_has_worked", bool, self._has_worked)
        self.finding = take_finding(saved, "nonfinite")
