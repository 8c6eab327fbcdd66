"""What is said about a run at its end, in a few lines."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_gradwatch.core.records import Alert, Publication
from lightning_gradwatch.outputs import alerts_file, flight
from lightning_gradwatch.paths import is_url
from lightning_gradwatch.reading.left_out import LeftOut

DEAR_PERCENT = 10.0
"""Own time in percent of the rest from which on it is said what helps."""
_MAX_NAMED = 5
_MAX_RECORDS = 3
"""Flight records that are named: that of the end, and those of the latest alerts."""


@dataclass
class RunSummary:
    """What is counted while a run goes on."""

    num_layers: dict[str, int] = field(default_factory=dict)
    num_steps: int = 0
    num_clipped: int = 0
    cost_percent: float | None = None
    has_told: bool = False

    def add(self, publication: Publication) -> None:
        """Count what was published."""
        self.num_layers[publication.optimizer] = len(publication.layers)
        self.num_steps += sum(clip.num_steps for clip in publication.clips)
        self.num_clipped += sum(clip.num_clipped for clip in publication.clips)
        if publication.overhead_percent is not None:
            self.cost_percent = publication.overhead_percent

    @property
    def clipped_share(self) -> float:
        """Share of the steps that were clipped, in [0, 1]."""
        return self.num_clipped / max(self.num_steps, 1)

    def first_clipping(self, least_steps: int) -> str | None:
        """What clipping has done, once so many steps are counted; None before, and when that has been said."""
        if self.has_told or self.num_steps < least_steps:
            return None
        self.has_told = True
        return f"GradWatch: auto_clip held {self.num_clipped:,} of the first {self.num_steps:,} steps."


def summarise(
    counted: RunSummary,
    num_steps: int,
    alerts: Sequence[Alert],
    num_alerts: int,
    log_dir: str | None,
    left_out: Sequence[LeftOut] = (),
) -> str:
    """Say what was watched, what was found, what was done, what it cost, and where the files are.

    Args:
        counted: What was counted.
        num_steps: Number of steps observed in the run, of the optimizer that took most.
        alerts: The alerts of the run, oldest first.
        num_alerts: How many there were, notices left out.
        log_dir: Where the files are, a directory or a URL; None for no files.
        left_out: What the run went on without.
    """
    num_layers = sum(counted.num_layers.values())
    lines = [f"GradWatch watched {f'{num_layers} layers' if num_layers else 'the gradients'} for {num_steps:,} steps."]
    lines.append(_of_alerts(alerts, num_alerts))
    lines += [one["message"] for one in left_out]
    if counted.num_steps:
        lines.append(f"Clipped the gradient in {counted.clipped_share:.1%} of {counted.num_steps:,} steps.")
    if counted.cost_percent is not None:
        is_dear = counted.cost_percent > DEAR_PERCENT
        hint = " That much only where steps are short; max_overhead=0.05 takes fewer samples." if is_dear else ""
        lines.append(f"Watching added {counted.cost_percent:.1f}% to the time of the last steps.{hint}")
    names = [] if log_dir is None else ["what it wrote"] if is_url(log_dir) else _names_of_files(Path(log_dir))
    if log_dir is not None and names:
        lines.append(f"See {', '.join(names)} in {log_dir}.")
        if num_alerts:
            lines.append(f"Causes, remedies and pictures: gradwatch report {shlex.quote(log_dir)}")
    return "\n  ".join(lines)


def _of_alerts(alerts: Sequence[Alert], num_alerts: int) -> str:
    notices = [alert for alert in alerts if alert.level != "alert"]
    alerts = [alert for alert in alerts if alert.level == "alert"]
    if not num_alerts:
        kinds = ", ".join(dict.fromkeys(notice.kind for notice in notices))
        return f"No alerts; notices, worth knowing: {kinds}." if notices else "No alerts."
    open_ones = [f"{alert.kind} since step {alert.step}" for alert in alerts if alert.until_step is None]
    ended: dict[str, list[Alert]] = {}
    for alert in alerts:
        if alert.until_step is not None:
            ended.setdefault(alert.kind, []).append(alert)
    over = [f"{kind} ({_when(those)})" for kind, those in ended.items()]
    parts = [f"still open: {', '.join(open_ones[:_MAX_NAMED])}"] if open_ones else []
    parts += [f"over: {', '.join(over)}"] if over else []
    return f"Alerts: {num_alerts:,}; {'; '.join(parts)}."


def _when(alerts: Sequence[Alert]) -> str:
    return f"{len(alerts)} times" if len(alerts) > 1 else f"steps {alerts[0].step} to {alerts[0].until_step}"


def _names_of_files(directory: Path) -> list[str]:
    names = [alerts_file.NAME] if os.path.exists(directory / alerts_file.NAME) else []
    return names + [path.name for path in flight.files(directory)[-_MAX_RECORDS:]]
