"""Host numbers over time become findings: what is wrong, where, since when, how much. No words, no output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradwatch.core.alerts import ALERTS
from lightning_gradwatch.core.alerts.hysteresis import SteadyRule
from lightning_gradwatch.core.alerts.kind import BuiltInRule
from lightning_gradwatch.core.alerts.own_rules import OwnKind, OwnRules
from lightning_gradwatch.core.alerts.rule import Rule
from lightning_gradwatch.core.alerts.vanishing import VANISHING, VanishingRule
from lightning_gradwatch.core.alerts.vanishing_through_time import VANISHING_THROUGH_TIME, ThroughTimeRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.records import Finding, Observation
from lightning_gradwatch.core.saved import Saved, State


class Detector:
    """Every rule, over the observations of one optimizer.

    Args:
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` opens.
        rules: Rules of the user, asked after the built-in ones.
        optional: What leaves out a rule of the user that fails, or the evidence; None for a warning.

    Attributes:
        history: What the observations have shown so far.

    Raises:
        ValueError: If a rule of the user will not do.
    """

    def __init__(
        self, vanishing_threshold: float, rules: Sequence[Rule] = (), optional: OptionalFigures | None = None
    ) -> None:
        self.history = History()
        self._optional = optional or OptionalFigures()
        self._vanishing, self._through_time = VanishingRule(vanishing_threshold), ThroughTimeRule()
        self._rules: dict[str, BuiltInRule] = {kind.name: kind.rule() for kind in ALERTS}
        self._rules |= {VANISHING.name: self._vanishing, VANISHING_THROUGH_TIME.name: self._through_time}
        self._waiting = [rule.hysteresis for rule in self._rules.values() if isinstance(rule, SteadyRule)]
        self._own = OwnRules(rules, self._rules, self._optional)

    @property
    def is_suspicious(self) -> bool:
        """Whether a few more samples at once would settle something."""
        for waiting in self._waiting:
            if waiting.is_in_doubt:
                return True
        history = self.history
        if history.time.recent and self._through_time.is_suspicious(history):
            return True
        return self._vanishing.is_suspicious(history)

    @property
    def own_kinds(self) -> Mapping[str, OwnKind]:
        """The words of the user's rules, by kind."""
        return self._own.kinds

    def update(self, observation: Observation, is_scaled: bool, skips: bool = False) -> list[Finding]:
        """Take in an observation.

        Args:
            observation: The numbers of the steps since the last one.
            is_scaled: Whether a loss scaler is at work, which skips non-finite steps by itself.
            skips: Whether non-finite steps are skipped, by whomever.

        Returns:
            The findings that opened, rose to an alert, or ended, oldest first.
        """
        history = self.history
        history.add(observation, is_scaled, skips)
        self._optional.take("evidence", None, history.evidence.add, observation)
        changes: list[Finding] = []
        for rule in self._rules.values():
            found = rule.update(observation, history)
            if found:
                changes += self._note([found] if isinstance(found, Finding) else found)
        if self._own.kinds:
            for found in self._own.update(observation, history):
                changes += self._note(found)
        return changes

    def _note(self, findings: Sequence[Finding]) -> Sequence[Finding]:
        """Tell the rules that come after this one what is open."""
        for finding in findings:
            if finding.until_step is None:
                self.history.open[finding.kind] = finding
            else:
                self.history.open.pop(finding.kind, None)
        return findings

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name."""
        scores: dict[str, float] = {}
        for rule in self._rules.values():
            scores.update(rule.scores(self.history))
        return {**scores, **self.history.scores}

    def state_dict(self) -> State:
        """Primitives and tensors that ``load_state_dict`` takes back, without the evidence."""
        state = self.history.state_dict()
        for kind in ALERTS:
            part: dict[str, Any] = state
            for key in _keys(kind.name, kind.saved_at):
                part = part.setdefault(key, {})
            part.update(self._rules[kind.name].state_dict())
        return {**state, "rules": self._own.state_dict(self.history)} if self._own.kinds else state

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken; a rule that was not there, or cannot be read, starts afresh."""
        saved = Saved.of(state)
        self.history.load_state_dict(saved)
        self.history.open.clear()
        for kind in ALERTS:
            part, rule = saved, self._rules[kind.name]
            for key in _keys(kind.name, kind.saved_at):
                part = part.part(key)
            rule.load_state_dict(part)
            if rule.finding is not None:
                self.history.open[kind.name] = rule.finding
        self._own.load_state_dict(saved.part("rules"), self.history)


def _keys(name: str, saved_at: tuple[str, ...] | None) -> tuple[str, ...]:
    return (name,) if saved_at is None else saved_at
