"""What watchers report goes to the alert log, to the sinks, to the host's metrics, and to whoever acts on alerts."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

from lightning_gradwatch.alert_log import AlertLog
from lightning_gradwatch.config import Config
from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.clip import Band
from lightning_gradwatch.core.cost import Cost
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.core.reports import Report
from lightning_gradwatch.host import Host
from lightning_gradwatch.outputs.alerts_file import Event
from lightning_gradwatch.outputs.sinks import Sinks
from lightning_gradwatch.outputs.summary import RunSummary, summarise
from lightning_gradwatch.responses import Responses
from lightning_gradwatch.watches import Watches

Changes = list[tuple[Event, Alert]]
_CHANGED = (
    "GradWatch: the gradient changes between the backward pass and the optimizer's step ({before:.3g} became "
    "{after:.3g} at step {step}), so the model's own code, or another callback, clips or edits it. All norms are those "
    "after that. To see them before: in manual optimization, clip with `self.clip_gradients(...)`; otherwise let the "
    "Trainer, or `auto_clip`, do it."
)
_ENOUGH_STEPS, _ENOUGH_AT_END = 1000, 300
"""Steps after which it is said what clipping does, and how many are enough for a warning if the run ends before."""
_TOO_OFTEN = 0.2
"""Share of steps from which on the default says that something is wrong; of most healthy trainings it is below 0.05."""
_TOO_FAST = (
    "In most healthy trainings it is less than one in twenty, so the learning rate is probably too high, or some "
    "batches are bad: lower it, lengthen the warm-up, look at the batches. If all must stay, try "
    'auto_clip="percentile".'
)


class Reporter:
    """Passes on what the watchers of one run report.

    Args:
        config: The arguments of the watch.
        host: The training loop.
        alert_log: The alerts of the run.
        sinks: Where everything goes.
        watches: The watchers, for the scores of the whole run.
        responses: What is done about alerts.
        cost: What watching costs.
    """

    def __init__(
        self,
        config: Config,
        host: Host,
        alert_log: AlertLog,
        sinks: Sinks,
        watches: Watches,
        responses: Responses,
        cost: Cost,
    ) -> None:
        self._host = host
        self._alert_log = alert_log
        self._sinks = sinks
        self._watches = watches
        self._responses = responses
        self._cost = cost
        self._summary = RunSummary()
        self._num_left_out = 0
        self._clips_rarely = all(isinstance(policy, Band) for policy in config.settings.policies)
        # the score is shown once it is half of what alerts
        self._shown_from = config.settings.vanishing_threshold / 2 if config.progress_bar else None

    def handle(self, report: Report) -> None:
        """Remember a report, and tell of it."""
        self._tell(report, self._remember(report))

    def finish(self, reports: Iterable[Report], reason: str) -> None:
        """Pass on the last reports of a run.

        The flight record comes before others hear of it: their code may fail.

        Args:
            reports: One for each watcher.
            reason: Why the run ends.
        """
        changes = [(report, self._remember(report)) for report in reports]
        self._sinks.dump(reason, self._alert_log.alerts)
        for report, changed in changes:
            self._tell(report, changed, reason)

    def sum_up(self) -> None:
        """Say what has become of the run."""
        line = self._summary.first_clipping(_ENOUGH_AT_END)
        if line is not None and self._clips_too_often:
            self._host.warn(f"{line} {_TOO_FAST}")
        about = (self._summary, self._watches.num_steps, list(self._alert_log.alerts), self._alert_log.num_alerts)
        self._sinks.conclude(functools.partial(summarise, *about, self._sinks.log_dir, self._sinks.left_out))

    @property
    def _clips_too_often(self) -> bool:
        """Whether the default, which leaves a healthy training alone, does not."""
        return self._clips_rarely and self._summary.clipped_share > _TOO_OFTEN

    def _remember(self, report: Report) -> Changes:
        """Enter what a report says; what has become of the alerts in it."""
        changes = [self._alert_log.record(change) for change in report.alerts]
        self._sinks.remember(report.observations, _opened(changes), self._alert_log.alerts)
        return changes

    def _tell(self, report: Report, changes: Changes, end: str = "") -> None:
        """Tell all who want to know; also how the run ended, if it has."""
        if report.change is not None and self._watches.compares:
            self._watches.compares = False
            self._host.warn(_CHANGED.format(**report.change._asdict()))
        # alerts, first on the console and in the file, then to whoever acts on them
        for change in changes:
            self._sinks.tell(*change)
        self._responses.note(_opened(changes))
        alarms = {alert.optimizer for alert in _opened(changes)}
        self._sinks.record(self._host.loggers, report, alarms, bool(end))
        num_alerts = self._alert_log.num_alerts
        tells = self._is_behind() or bool(changes or end) or not report.has_news
        loggers = self._host.loggers() if tells or report.publications else []
        if tells:
            self._sinks.write_alerts(loggers, self._alert_log.alerts, num_alerts, end)
        # scores
        worst = self._watches.vanishing
        self._host.set_metrics(metrics.monitored(worst, num_alerts))
        if self._shown_from is not None:
            self._host.show_in_progress_bar("vanishing", f"{worst:.2f}" if worst >= self._shown_from else None)
        # numbers for the loggers
        for publication in report.publications:
            priced = replace(publication, overhead_percent=self._cost.percent)
            self._summary.add(priced)
            self._tell_of_clipping()
            self._sinks.publish(loggers, priced, num_alerts)

    def _is_behind(self) -> bool:
        """Whether the run goes on without something of which nobody has been told since the last call."""
        before, self._num_left_out = self._num_left_out, len(self._sinks.left_out)
        return self._num_left_out > before

    def _tell_of_clipping(self) -> None:
        """Say once what clipping does; as a warning, if the default does too much."""
        line = self._summary.first_clipping(_ENOUGH_STEPS)
        if line is None:
            return
        if self._clips_too_often:
            self._host.warn(f"{line} {_TOO_FAST}")
        else:
            self._host.inform(line)


def _opened(changes: Changes) -> list[Alert]:
    """Alerts that are new, or have risen from a notice."""
    return [alert for event, alert in changes if event != "ended" and alert.level == "alert"]
