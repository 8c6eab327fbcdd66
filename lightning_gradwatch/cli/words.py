"""Numbers, times and texts from a log, as words that are safe to show. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

from lightning_gradwatch.cli.logs import Run
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.status import symptom

_LIMITS = ((60, 1, "second"), (3600, 60, "minute"), (86_400, 3600, "hour"), (math.inf, 86_400, "day"))
_MAX_DAMAGE = 3
_PLACEHOLDER = "\N{REPLACEMENT CHARACTER}"


def safe(text: str) -> str:
    """A text in one line and without control characters: what a log says must not steer a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else _PLACEHOLDER for c in text)


def since(alert: AlertRecord) -> str:
    """From when to when an alert held."""
    until = alert["until_step"]
    return f"since step {alert['step']:,}" if until is None else f"steps {alert['step']:,} to {until:,}, over"


def title(alert: AlertRecord) -> str:
    """What is wrong, in a few words."""
    return safe(symptom(alert))


def explanation(alert: AlertRecord) -> str:
    """What is wrong, in a sentence; all that an alert of an older version says."""
    return safe(str(alert.get("summary") or alert["message"]))


def remedies(alert: AlertRecord) -> list[str]:
    """What to try, the cheapest first."""
    found = alert.get("remedies")
    return [safe(str(remedy)) for remedy in found] if isinstance(found, (list, tuple)) else []


def reason(alert: AlertRecord) -> str:
    """Why, in one line: the measurement that names the cause, and the cause as programs know it."""
    cause, evidence = str(alert.get("cause") or "unknown"), str(alert.get("evidence") or "")
    name = "" if cause == "unknown" else f"({cause})"
    return safe(" ".join(filter(None, (evidence[:1].upper() + evidence[1:], name))))


def heading(alert: AlertRecord) -> str:
    """What is wrong in a few words, since when, and where."""
    where = [f"in {alert['layer']}"] if alert["layer"] else []
    whose = [f"with {alert['optimizer']}"] if alert["optimizer"] else []
    return safe(", ".join([f"{alert['level'].capitalize()}: {title(alert)}", since(alert), *where, *whose]))


def rows(alert: AlertRecord) -> Iterator[tuple[str, str]]:
    """What is wrong, why, and what to try: a label, ``""`` where it goes on, and a sentence."""
    yield "What", explanation(alert)
    if why := reason(alert):
        yield "Why", why
    for place, remedy in enumerate(remedies(alert)):
        yield "" if place else "Try", f"{place + 1}. {remedy}"


def untold(run: Run) -> list[str]:
    """What of a run cannot be read, and what it went on without, where its headline does not tell."""
    lines = [part["message"] for part in (*run.left_out, *run.damage) if part["message"] != run.verdict.headline]
    more = [f"and {len(lines) - _MAX_DAMAGE:,} more; --json lists them"] if len(lines) > _MAX_DAMAGE else []
    return [safe(line) for line in lines[:_MAX_DAMAGE]] + more


def clock(seconds: float) -> str:
    """A time of day, with its date."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def age(seconds: float) -> str:
    """How long ago."""
    for limit, unit, word in _LIMITS:
        if seconds < limit:
            count = max(int(seconds // unit), 0)
            return f"{count} {word}{'' if count == 1 else 's'} ago"
    raise ValueError(f"`seconds` must be a number, but {seconds!r} came. To cure it: give a finite one.")


def short(value: float) -> str:
    """A number with three digits."""
    return f"{value:.3g}"
