"""Where everything goes that GradWatch has to say: ``alerts.jsonl``, the console, messages to people, the loggers."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning_gradwatch.core import metrics, telling
from lightning_gradwatch.core.records import Alert, Observation, Publication
from lightning_gradwatch.core.reports import Report
from lightning_gradwatch.host import Host
from lightning_gradwatch.outputs import page
from lightning_gradwatch.outputs.alerts_file import AlertsFile, Event
from lightning_gradwatch.outputs.announcing import Pauses, report_of, where_to_look
from lightning_gradwatch.outputs.attempts import Attempts
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.flight import FlightRecorder
from lightning_gradwatch.outputs.loggers.delivery import Delivery
from lightning_gradwatch.outputs.memory import MemoryRecord
from lightning_gradwatch.outputs.notify import Notifier
from lightning_gradwatch.outputs.patience import explained
from lightning_gradwatch.outputs.record import Record, appends_at_url
from lightning_gradwatch.outputs.recorder import RunRecorder
from lightning_gradwatch.outputs.tensorboard import Writer, is_writable
from lightning_gradwatch.outputs.thinning import Thinning
from lightning_gradwatch.outputs.writers import Writers
from lightning_gradwatch.reading.left_out import LeftOut
from lightning_gradwatch.reading.status import GAVE_UP

CLOSE_S = 30.0
"""How long the end of training waits for what is on its way to a URL, the time for the last page counted in."""
_LAST_PAGE = f"GradWatch: the last page for the loggers is being made; it has {page.CLOSE_S:.0f} seconds."
_SLOW_NETWORK = f"GradWatch: what was written is still on its way over a slow network; it has {CLOSE_S:.0f} seconds."
SIGNAL_S = 10.0
"""How long a signal that ends the process does so; schedulers grant 30 seconds."""


class Sinks:
    """The sinks of one ``fit``. One that fails is named once and left alone; the others go on.

    They belong to the process that made them: from a forked child nothing goes out.

    Args:
        host: The training loop.
        log_dir: The logger's directory, or its URL, where the alerts file lies; None for no file, as on all ranks but
            zero.
        is_resumed: Whether the run went on from a checkpoint, so that the file may know of some alerts already.
        cards: What TensorBoard's standard dashboards show of the layers; None for nothing.
        run: Name of the run.
        notifier: Sends messages; None for no messages.
        flight: Remembers the last steps; None for no record.
        record: An event file of our own; None for none.
        recorder: Says what tab and report are to be given; None for nothing.
        in_loggers: Whether loggers that are TensorBoard's get what tab and report show, beside the run-level numbers.
        memory: What tab and report show, in memory; None for nothing.
        left_out: What the run goes on without; grows as long as it goes on.

    Attributes:
        log_dir: The directory, as given.
        flight: The recorder of the last steps, as given.
        recorder: The recorder of the run, as given.
        left_out: What the run goes on without, as given.
    """

    def __init__(
        self,
        host: Host,
        log_dir: str | None = None,
        is_resumed: bool = False,
        cards: Cards | None = None,
        run: str = "",
        notifier: Notifier | None = None,
        flight: FlightRecorder | None = None,
        record: Record | None = None,
        recorder: RunRecorder | None = None,
        in_loggers: bool = True,
        memory: MemoryRecord | None = None,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self._host = host
        self.log_dir = log_dir
        self._notifier = notifier
        self.flight = flight
        self._record = record
        self.recorder = recorder
        self._in_loggers = in_loggers
        self._alerts = None if log_dir is None else AlertsFile(log_dir, run, is_resumed)
        self._attempt = Attempts(host.warn)
        cards = cards or Cards(0)
        self._writers = Writers(cards, host.tag_prefix)
        self._delivery = Delivery(self._attempt, cards, log_dir, self._writers.flushed)
        self._memory = memory
        self.left_out = left_out
        self._thinnings: defaultdict[str, Thinning] = defaultdict(Thinning)
        self._pauses = Pauses()
        self._announced: list[Alert] = []
        self._deadline: float | None = None

    def tell(self, event: Event, alert: Alert) -> None:
        """Tell what has become of an alert, unless that was told before the run was resumed.

        It is in the file before anybody hears of it: what was announced is there, whatever comes next.
        """
        if self._alerts is not None and self._alerts.has(event, alert):
            return
        self._append(event, alert)
        if event in ("opened", "escalated") and alert.level == "alert" and self._pauses.passes(alert):
            self._host.warn(telling.announcement(alert, report_of(self._writers.directory or self.log_dir)))
            self._announced.append(alert)
        if self._notifier is not None:
            self._attempt("notification", functools.partial(self._notifier.tell, event, alert))
            self._report_troubles()

    def prescribed(self, alert: Alert) -> Alert | None:
        """The alert with what was tried for it before the run was resumed; None if nothing was."""
        return None if self._alerts is None else self._alerts.prescribed(alert)

    def repeat(self, alerts: Iterable[Alert]) -> None:
        """Enter alerts that are still open into a file that does not know of them: that of a run resumed elsewhere."""
        for alert in alerts:
            if alert.until_step is None and self._alerts is not None and not self._alerts.knows(alert):
                self._append("continued", alert)

    def publish(self, loggers: Iterable[Any], publication: Publication, num_alerts: int) -> None:
        """Write numbers to the loggers."""

        def write(logger: Any) -> None:
            if not self._holds_all(logger):
                numbers = {**metrics.run_level(publication, num_alerts), **self._delivery.norms(logger, publication)}
                logger.log_metrics(numbers, publication.step)
                return
            # the record's own file must stay small; what a user logs to is written at every point
            thinning = self._thinnings[publication.optimizer] if logger is self._record else None
            if thinning is None or thinning.passes(publication.step):
                self._writers.of(logger).publish(publication, num_alerts)

        for name, logger in self._named(loggers):
            self._attempt(name, functools.partial(write, logger))
        self._delivery.go_on(publication.step)
        self._report_troubles()

    def record(
        self, loggers: Callable[[], Sequence[Any]], report: Report, alarms: Iterable[str], is_last: bool
    ) -> None:
        """Write what tab and report show, as far as the record wants it now.

        Args:
            loggers: Gives the loggers, which are asked for only if there is something to write.
            report: What a watcher has reported.
            alarms: Names of the optimizers of which an alert has just opened.
            is_last: Whether the run ends.
        """
        if self.recorder is not None:
            self._attempt("record of the run", functools.partial(self._write_record, loggers, report, alarms, is_last))

    def _write_record(
        self, loggers: Callable[[], Sequence[Any]], report: Report, alarms: Iterable[str], is_last: bool
    ) -> None:
        assert self.recorder is not None
        events = self.recorder.take(report.observations, report.snapshots, alarms)
        events += self.recorder.drain() if is_last else []
        shown = [snapshot for snapshot in report.snapshots if snapshot.histogram is not None]
        if not events and not shown:
            return
        if self._memory is not None:
            self._attempt("record in memory", functools.partial(self._memory.add, events))

        def write(writer: Writer) -> None:
            writer.record(events)
            for snapshot in shown:
                writer.show(snapshot)

        self._to_tensorboard(loggers(), write)
        for snapshot in shown:
            self._delivery.show_histograms(snapshot)

    def remember(self, observations: Iterable[Observation], opened: list[Alert], known: list[Alert]) -> None:
        """Keep steps in the flight recorder, and its record if alerts have opened."""
        flight = self.flight
        if flight is None:
            return
        for observation in observations:
            self._attempt("flight record", functools.partial(flight.add, observation))
        self._attempt("flight record", functools.partial(flight.alert, opened, known))

    def dump(self, reason: str, known: Sequence[Alert], may_wait: bool = True) -> None:
        """Keep the flight record; what is watched no more must not pass for healthy."""
        if reason == GAVE_UP:
            num_alerts = sum(alert.level == "alert" for alert in known)
            self._attempt("log of alerts", lambda: self.write_alerts(self._host.loggers(), known, num_alerts, reason))
        flight = self.flight
        if flight is not None:
            self._attempt("flight record", lambda: flight.dump(reason, known, may_wait))
        if not may_wait:  # there may be no later chance
            self._settle(SIGNAL_S)

    def conclude(self, summary: Callable[[], str]) -> None:
        """Give loggers the last page, and say what has become of the run."""
        # meanwhile threads write to URLs
        self._deadline = time.monotonic() + CLOSE_S
        with explained(self._host.inform, _LAST_PAGE):
            self._delivery.finish()
        self._attempt("closing summary", lambda: self._host.inform(summary()))

    def close(self) -> None:
        """Close the record; wait, but not for ever, for messages that are under way, and for slow networks."""
        self._attempt("page of the run", self._delivery.close)
        left = CLOSE_S if self._deadline is None else self._deadline - time.monotonic()
        with explained(self._host.inform, _SLOW_NETWORK):
            self._close(left)

    def _close(self, seconds: float) -> None:
        self._settle(seconds)
        for part in (self._alerts, self.flight):
            if part is not None:
                part.close()
        if self._record is not None:
            self._attempt("record", self._record.close)
        if self._notifier is not None:
            self._attempt("notification", self._notifier.close)
            self._report_troubles()

    def _append(self, event: Event, alert: Alert) -> None:
        if self._alerts is not None:
            self._attempt("alerts file", functools.partial(self._alerts.append, event, alert))

    def _settle(self, seconds: float) -> None:
        """Wait until what goes to a URL is there, but not for ever."""
        end = time.monotonic() + seconds
        parts = {"alerts file": self._alerts, "flight record": self.flight, "record": self._record}
        for name, part in parts.items():
            if part is not None:
                self._attempt(name, functools.partial(part.settle, end - time.monotonic()))

    def _report_troubles(self) -> None:
        troubles = self._notifier.troubles() if self._notifier is not None else []
        if troubles:
            self._host.warn(f"GradWatch: {'; '.join(troubles)}; the training itself is not affected.")

    def open(self, loggers: Sequence[Any], optimizers: Sequence[str]) -> None:
        """Before the first step: prepare TensorBoard's dashboards, and say where the run is to be seen."""
        self._delivery.join(self._named(loggers))
        self._to_tensorboard(loggers, lambda writer: writer.write_layout(optimizers))
        directory = self._writers.directory
        if directory is not None:
            say = functools.partial(self._host.inform, where_to_look(directory))
            self._attempt("address of the run", say)

    def write_alerts(self, loggers: Iterable[Any], alerts: Sequence[Alert], num_alerts: int, end: str = "") -> None:
        """Let the loggers know of all alerts and how the run ended, and TensorBoard's of a run that has none."""
        left_out = tuple(self.left_out)
        if self._memory is not None:
            set_alerts = functools.partial(self._memory.set_alerts, alerts, num_alerts, end, left_out)
            self._attempt("record in memory", set_alerts)
        self._to_tensorboard(loggers, lambda writer: writer.write_alerts(alerts, num_alerts, end, left_out))
        opened, self._announced = self._announced, []
        self._delivery.tell(opened, alerts)

    def _to_tensorboard(self, loggers: Iterable[Any], write: Callable[[Writer], None]) -> None:
        def write_if_possible(logger: Any) -> None:
            if self._holds_all(logger):
                write(self._writers.of(logger))

        for name, logger in self._named(loggers):
            self._attempt(name, functools.partial(write_if_possible, logger))

    def _named(self, loggers: Iterable[Any]) -> list[tuple[str, Any]]:
        """The loggers, and our own record behind them, each with a name of its own."""
        named = [(f"{type(logger).__name__} {place}", logger) for place, logger in enumerate(loggers)]
        if self._record is None:
            return named
        # it stands in for TensorBoard's writer at a URL
        return [*(one for one in named if not appends_at_url(one[1])), ("record", self._record)]

    def _holds_all(self, logger: Any) -> bool:
        """Whether it can hold, and is to hold, what tab and report show."""
        is_meant = logger is self._record or self._in_loggers
        return is_meant and is_writable(getattr(logger, "experiment", None)) and not appends_at_url(logger)
