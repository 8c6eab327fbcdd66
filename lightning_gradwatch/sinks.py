"""Where everything goes that GradWatch has to say: the console, ``alerts.jsonl``, the loggers."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from lightning_gradwatch import _lightning, alerts_file
from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.records import Alert, Publication
from lightning_gradwatch.tensorboard.writer import Writer, is_writable

_WARNING_PAUSE_STEPS = 50


class Sinks:
    """The sinks of one ``fit``. One that fails is named once and left alone; the others go on.

    Args:
        log_dir: The logger's directory, where the alerts file lies; None for no file, as on all ranks but zero.
        is_resumed: Whether the run went on from a checkpoint, so that the file may know of some alerts already.
        group_by: As :class:`~lightning_gradwatch.GradWatch` takes it.
    """

    def __init__(self, log_dir: str | None = None, is_resumed: bool = False, group_by: int | None = None) -> None:
        self._log_dir = log_dir
        self._group_by = group_by
        self._told = alerts_file.entries(log_dir) if log_dir is not None and is_resumed else frozenset()
        self._writers: dict[int, Writer] = {}
        self._broken: set[str] = set()
        self._next_warning: dict[str, int] = {}
        self._warnings: Counter[str] = Counter()

    def tell(self, event: alerts_file.Event, alert: Alert) -> None:
        """Tell what has become of an alert, unless that was told before the run was resumed."""
        if alerts_file.entry(event, alert) in self._told:
            return
        if event != "ended" and alert.level == "alert":
            self._warn(alert)
        if self._log_dir is not None:
            self._attempt("alerts file", functools.partial(alerts_file.append, self._log_dir, event, alert))

    def publish(self, loggers: Iterable[Any], publication: Publication, num_alerts: int) -> None:
        """Write numbers to the loggers."""
        for place, logger in enumerate(loggers):
            write = functools.partial(self._publish, logger, publication, num_alerts)
            self._attempt(f"{type(logger).__name__} {place}", write)

    def _warn(self, alert: Alert) -> None:
        """One warning per kind, then pauses that double: an alert that comes and goes must not flood the console."""
        if alert.step < self._next_warning.get(alert.kind, alert.step):
            return
        self._next_warning[alert.kind] = alert.step + _WARNING_PAUSE_STEPS * 2 ** self._warnings[alert.kind]
        self._warnings[alert.kind] += 1
        _lightning.warn(f"GradWatch, {alert.kind}: {alert.message}")

    def _publish(self, logger: Any, publication: Publication, num_alerts: int) -> None:
        if not is_writable(getattr(logger, "experiment", None)):
            logger.log_metrics(metrics.run_level(publication, num_alerts), publication.step)
            return
        writer = self._writers.setdefault(id(logger), Writer(logger.experiment, self._group_by))
        writer.write(publication, num_alerts)

    def _attempt(self, sink: str, write: Callable[[], None]) -> None:
        if sink in self._broken:
            return
        try:
            write()
        except Exception as failure:
            self._broken.add(sink)
            _lightning.warn(f"GradWatch: the {sink} cannot be written ({failure!r}) and is left out from now on.")
