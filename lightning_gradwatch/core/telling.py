"""An alert as people read it: What, Why, Try, as text and as HTML. Needs no torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gradwatch.core.records import Alert

_COLOURS = {"alert": "#c62828", "notice": "#b26a00"}
_OVER = "#5f6b76"
_MARGIN, _LABEL, _NARROWEST = 2, 5, 24
"""Columns before a label, of a label, and of a sentence in the narrowest of windows."""
_NO_TERMINAL = (100, 24)
"""What is taken for the size where nobody knows it, as in a notebook, a file or a pipe."""


def heading(alert: Alert) -> str:
    """What is wrong in a few words, since when, and where."""
    return f"{alert.level.capitalize()}: {', '.join([_title(alert) or alert.kind, *_circumstances(alert)])}"


def announcement(alert: Alert, where: str) -> str:
    """What the console says of an alert that has opened: a headline, and in lines What, Why, Try and Look.

    Args:
        alert: The alert.
        where: Where there is more to be seen.
    """
    title = _title(alert)
    kind = f"GradWatch, {alert.kind}{': ' if title else ''}{title}"
    return in_lines(", ".join([kind, *_circumstances(alert)]), [*rows(alert), ("Look", where)])


def _title(alert: Alert) -> str:
    """What is wrong in a few words; nothing of a kind that is not known here."""
    from lightning_gradwatch.core.alerts import KINDS  # which imports the records

    return KINDS[alert.kind].title if alert.kind in KINDS else alert.title


def _circumstances(alert: Alert) -> list[str]:
    """Since when, where, and with which optimizer."""
    until = alert.until_step
    when = f"since step {alert.step:,}" if until is None else f"steps {alert.step:,} to {until:,}, over"
    where = [f"in {alert.layer}"] if alert.layer else []
    whose = [f"with {alert.optimizer}"] if alert.optimizer else []
    return [when, *where, *whose]


def rows(alert: Alert) -> Iterator[tuple[str, str]]:
    """What is wrong, why, and what to try: a label, ``""`` where it goes on, and a sentence."""
    yield "What", alert.summary or alert.message
    evidence, cause = alert.evidence, "" if alert.cause == "unknown" else f"({alert.cause})"
    if why := " ".join(filter(None, (evidence[:1].upper() + evidence[1:], cause))):
        yield "Why", why
    for place, remedy in enumerate(alert.remedies):
        yield "" if place else "Try", f"{place + 1}. {remedy}"


def as_text(alert: Alert) -> str:
    """The alert in lines, one for each sentence."""
    return in_lines(heading(alert), rows(alert))


def in_lines(head: str, rows: Iterable[tuple[str, str]]) -> str:
    """A headline, and below it sentences with their labels of at most four letters; a line for each."""
    indent = " " * _MARGIN
    return "\n".join([_line(head), *(f"{indent}{label:<{_LABEL}}{_line(text)}" for label, text in rows)])


def fitted(text: str, width: int) -> str:
    """A text in lines of so many columns; what is too long goes on below itself.

    Args:
        text: As from ``in_lines``, or any other.
        width: Columns that a line may take, if no word is longer.
    """
    return "\n".join(_wrapped(line, width) for line in text.splitlines())


def _wrapped(line: str, width: int) -> str:
    indent = " " * (_MARGIN + _LABEL if line.startswith(" " * _MARGIN) else _MARGIN)
    # an address or a name is copied from the screen: it stays in one piece
    return textwrap.fill(
        line,
        max(width, len(indent) + _NARROWEST),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def columns() -> int:
    """How wide the terminal is."""
    return shutil.get_terminal_size(_NO_TERMINAL).columns


def as_html(alert: Alert) -> str:
    """The alert as a table; every text in it stands for itself."""
    colour = _COLOURS[alert.level] if alert.until_step is None else _OVER
    head = (
        f'<div style="font-weight:600;border-left:4px solid {colour};padding-left:8px">{escape(heading(alert))}</div>'
    )
    top = "text-align:left;vertical-align:top;padding:2px 8px;border:none"
    lines = [
        f'<tr style="background:none"><th style="{top}">{label}</th><td style="{top}">{escape(text)}</td></tr>'
        for label, text in rows(alert)
    ]
    return f'<div>{head}<table style="border:none;margin:4px 0 8px">{"".join(lines)}</table></div>'


def _line(text: str) -> str:
    """A text in one line and without control characters: a name must not steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
