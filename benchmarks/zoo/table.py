"""What is counted over the runs of the zoo, as plain text."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from lightning_gradwatch.core.records import AlertKind

from .baselines import BASELINES
from .run import Outcome, Verdict, judge

Outcomes = Sequence[Outcome]


def report(outcomes: Outcomes) -> str:
    """All tables, first for the part of the zoo that thresholds were tuned on and then for the held-out part."""
    parts = {
        "Tuning part": [outcome for outcome in outcomes if not outcome.case.held_out],
        "Held-out part": [outcome for outcome in outcomes if outcome.case.held_out],
    }
    blocks = []
    for title, part in parts.items():
        if part:
            tables = (kinds(part), totals(part), rules(part))
            blocks += [f"{title}: {len(part)} cases", *tables]
    return "\n\n".join([*blocks, wrong(outcomes)])


def kinds(part: Outcomes) -> str:
    """Per kind of alert: the cases in which it is one of those required, and those in which it was wrong."""
    rows = []
    for kind in get_args(AlertKind):
        sick = [outcome.verdict for outcome in part if kind in outcome.case.required]
        own = [verdict.first_steps[kind] for verdict in sick if kind in verdict.first_steps]
        missed = sum(verdict.first_step is None for verdict in sick)
        wrongly = sum(kind in outcome.verdict.false_kinds for outcome in part)
        rows.append((kind, len(sick), len(own), len(sick) - len(own) - missed, missed, wrongly, _median(own)))
    header = ("kind", "required", "found", "by another kind", "missed", "false alarms", "median first step")
    return layout(header, rows)


def totals(part: Outcomes) -> str:
    """The totals of GradWatch."""
    healthy = [outcome for outcome in part if outcome.case.label == "healthy"]
    sick = [outcome for outcome in part if outcome.case.required]
    causes = [outcome.is_cause_right for outcome in part if outcome.is_cause_right is not None]
    vanishing = [outcome.verdict.first_step for outcome in sick if "vanishing" in outcome.case.required]
    rows = (
        ("healthy cases with an alert", f"{sum(bool(outcome.loud) for outcome in healthy)} / {len(healthy)}"),
        ("sick cases found", f"{sum(outcome.verdict.first_step is not None for outcome in sick)} / {len(sick)}"),
        ("cause right, where known and found", f"{sum(causes)} / {len(causes)}"),
        ("median first step, vanishing required", _median(step for step in vanishing if step is not None)),
    )
    return layout(("total", ""), rows)


def rules(part: Outcomes) -> str:
    """GradWatch beside the baselines, on healthy cases and on those of which the label asks for ``vanishing``."""
    watchers: dict[str, Callable[[Outcome], Verdict]] = {
        "GradWatch, all kinds": lambda outcome: outcome.verdict,
        "GradWatch, vanishing alone": _vanishing_alone,
    }
    for baseline in BASELINES:
        watchers[baseline.title] = functools.partial(Outcome.verdict_on, baseline=baseline.title)
    rows = []
    for title, verdict_on in watchers.items():
        healthy = [verdict_on(outcome) for outcome in part if outcome.case.label == "healthy"]
        sick = [verdict_on(outcome) for outcome in part if "vanishing" in outcome.case.required]
        found = [verdict.first_step for verdict in sick if verdict.first_step is not None]
        alarmed = sum(bool(verdict.false_kinds) for verdict in healthy)
        early = sum(verdict.came_early for verdict in sick)
        rows.append(
            (title, f"{alarmed} / {len(healthy)}", f"{len(found)} / {len(sick)}", f"{early}", _median(found)),
        )
    return layout(("rule", "healthy alarmed", "vanishing found", "before onset", "median first step"), rows)


def wrong(outcomes: Outcomes) -> str:
    """Every case that was judged wrong: what came, as kind@step (cause), and what was wanted."""
    rows = []
    for outcome in outcomes:
        if outcome.objections:
            case = outcome.case
            came = ", ".join(f"{alert.kind}@{alert.step} ({alert.cause})" for alert in outcome.loud)
            onset = f" from step {case.onset}" if case.onset else ""
            wanted = "|".join(sorted(case.required)) + onset if case.required else "silence"
            also = f", or {'|'.join(sorted(case.acceptable))}" if case.acceptable else ""
            causes = f" ({'|'.join(sorted(case.causes))})" if case.causes else ""
            rows += [
                f"{case.name} ({case.label}): {'; '.join(outcome.objections)}",
                f"    came:   {came or 'silence'}",
                f"    wanted: {wanted}{also}{causes}",
            ]
    count = sum(bool(outcome.objections) for outcome in outcomes)
    return "\n".join([f"Judged wrong: {count} of {len(outcomes)} cases", *rows])


def layout(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under a rule: the first to the left, the others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *numbers)).rstrip())
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def _vanishing_alone(outcome: Outcome) -> Verdict:
    alerts = [alert for alert in outcome.loud if alert.kind == "vanishing"]
    return judge(outcome.case, ((alert.kind, alert.step) for alert in alerts))


def _median(steps: Iterable[int]) -> str:
    known = list(steps)
    return f"{statistics.median(known):g}" if known else "-"
