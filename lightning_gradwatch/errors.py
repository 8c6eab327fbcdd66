"""What GradWatch raises when it has been asked to, and what it warns by."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.core.records import Alert


class GradWatchWarning(UserWarning):
    """What GradWatch says about a run: an alert, or trouble of its own."""


class GradientAlertError(RuntimeError):
    """Ends a training whose gradients ail, as ``on_nonfinite="raise"`` asks for.

    Attributes:
        alerts: The alerts that are the reason; none if the watch had failed before.
    """

    def __init__(self, alerts: Sequence[Alert]) -> None:
        super().__init__(tuple(alerts))
        self.alerts = tuple(alerts)

    def __str__(self) -> str:
        return "GradWatch: " + (" ".join(alert.message for alert in self.alerts) or "the gradient is not finite.")
