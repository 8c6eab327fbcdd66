"""The log of a run's alerts: what opened, what rose from a notice to an alert, what ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.core.saved import Saved, State, count
from lightning_gradwatch.outputs.alerts_file import Event

MAX_ALERTS = 1000
"""Alerts that are kept; the oldest go first."""


class AlertLog:
    """The alerts of a run.

    Attributes:
        alerts: The newest, the oldest of them first; an open one has no ``until_step``.
        num_alerts: How many there were, notices left out.
    """

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.num_alerts = 0

    def record(self, alert: Alert) -> tuple[Event, Alert]:
        """Enter an alert that opened; one that rose, or ended, takes the place of what it was.

        Returns:
            What became of it, and the alert as it now stands in the log.
        """
        newest_first = range(len(self.alerts) - 1, -1, -1)
        place = next((i for i in newest_first if _is_same(self.alerts[i], alert)), None)
        known = None if place is None else self.alerts[place]
        self.num_alerts += alert.level == "alert" and (known is None or known.level == "notice")
        if place is None or known is None:
            self.alerts = [*self.alerts, alert][-MAX_ALERTS:]
            return "opened" if alert.until_step is None else "ended", alert
        is_over = alert.until_step is not None
        self.alerts[place] = replace(known, until_step=alert.until_step) if is_over else alert
        return "ended" if is_over else "escalated", self.alerts[place]

    def amend(self, alert: Alert) -> Alert:
        """Enter what was found out about an alert since; returns it as it now stands in the log."""
        for place, known in enumerate(self.alerts):
            if _is_same(known, alert):
                alert = self.alerts[place] = replace(
                    known,
                    message=alert.message,
                    evidence=alert.evidence,
                    remedies=alert.remedies,
                    prescription=alert.prescription,
                    birth=alert.birth,
                )
        return alert

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {"num_alerts": self.num_alerts, "alerts": [asdict(alert) for alert in self.alerts]}

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on with the log of a checkpoint; alerts that cannot be read are left behind."""
        saved = Saved.of(state)
        self.alerts = saved.take_each("alerts", Alert)[-MAX_ALERTS:]
        known = sum(alert.level == "alert" for alert in self.alerts)
        self.num_alerts = saved.take("num_alerts", int, known, lambda number: count(number) and number >= known)


def _is_same(one: Alert, other: Alert) -> bool:
    return one.step == other.step and (one.kind, one.optimizer) == (other.kind, other.optimizer)
