"""Observations become alerts: what is wrong, why, and what to try."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightning_gradwatch.core.alerts.explain import explain, explain_nothing
from lightning_gradwatch.core.alerts.rule import Rule
from lightning_gradwatch.core.detector import Detector
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.records import Alert, Finding, Observation
from lightning_gradwatch.core.saved import Saved, State


class Judge:
    """Judges the observations of one optimizer.

    Args:
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` opens.
        optimizer: Name of the optimizer; ``""`` if there is only one.
        optional: Leaves out causes that cannot be told, and rules of the user that fail.
        rules: Rules of the user.

    Attributes:
        history: What the observations have shown so far.

    Raises:
        ValueError: If a rule of the user will not do.
    """

    def __init__(
        self, vanishing_threshold: float, optimizer: str, optional: OptionalFigures, rules: Sequence[Rule] = ()
    ) -> None:
        self._optimizer = optimizer
        self._take = optional.take
        self._detector = Detector(vanishing_threshold, rules, optional)
        self.history = self._detector.history

    def judge(self, observation: Observation, is_scaled: bool, skips: bool) -> tuple[Alert, ...]:
        """Take in an observation.

        Args:
            observation: The numbers of the steps since the last one.
            is_scaled: Whether a loss scaler is at work, which skips non-finite steps by itself.
            skips: Whether non-finite steps are skipped, by whomever.

        Returns:
            The alerts that opened, rose, or ended.
        """
        findings = self._detector.update(observation, is_scaled, skips)
        return tuple(self._explain(finding) for finding in findings)

    def _explain(self, finding: Finding) -> Alert:
        own = self._detector.own_kinds.get(finding.kind)
        alert = self._take("causes", None, explain, finding, self.history.evidence, self._optimizer, own)
        return explain_nothing(finding, self._optimizer, own) if alert is None else alert

    def holds(self, alert: Alert) -> bool:
        """Whether an alert of this optimizer is open still."""
        finding = self.history.open.get(alert.kind)
        return finding is not None and finding.step == alert.step

    @property
    def is_suspicious(self) -> bool:
        """Whether a few more samples at once would settle something."""
        return self._detector.is_suspicious

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name."""
        return {**self._detector.scores, **self.history.evidence.scores}

    @property
    def vanishing(self) -> float:
        """The vanishing score alone."""
        return self.history.starving.score

    @property
    def profile(self) -> dict[str, float]:
        """The latest depth profile: gradient norms at layer outputs (or of weights), the input end first."""
        return dict(zip(self.history.profile.layers, self.history.profile.norms, strict=True))

    def keep(self, layers: Collection[str]) -> None:
        """Forget every layer but these: the others are no more."""
        self.history.keep(layers)

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {"detector": self._detector.state_dict(), "evidence": self.history.evidence.state_dict()}

    def load_state_dict(self, saved: Saved) -> None:
        """Go on where ``state_dict`` was taken."""
        self._detector.load_state_dict(saved.part("detector"))
        self.history.evidence.load_state_dict(saved.part("evidence"))
