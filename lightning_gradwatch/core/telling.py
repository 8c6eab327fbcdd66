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
    from lightning_gradwatch.core.alerts import KINDS  # which imports the records

    title = KINDS[alert.kind].title if alert.kind in KINDS else alert.kind
    until = alert.until_step
    when = f"since step {alert.step:,}" if until is None else f"steps {alert.step:,} to {until:,}, over"
    where = [f"in {alert.layer}"] if alert.layer else []
    whose = [f"with {alert.optimizer}"] if alert.optimizer else []
    return ", ".join([f"{alert.level.capitalize()}: {title}", when, *where, *whose])


def rows(alert: Alert) -> Iterator[tuple[str, str]]:
    """What is wrong, why, and what to try: a label, ``""`` where it goes on, and a sentence."""
    yield "What", alert.summary or alert.message
    evidence, cause = alert.evidence, "" if alert.cause == "unknown" else f"({alert.cause})"
    if why := " ".join(filter(None, (evidence[:1].upper() + evidence[1:], cause))):
        yield "Why", why
    for place, remedy in enumerate(alert.remedies):
        yield "" if place else "Try", f"{place + 1}. {remedy}"


def as_text(alert: Alert, width: int | None = None) -> str:
    """The alert in lines.

    Args:
        alert: The alert.
        width: Columns that a line may take; None for as many as a sentence needs.
    """
    return in_lines(heading(alert), rows(alert), width)


def in_lines(head: str, rows: Iterable[tuple[str, str]], width: int | None = None) -> str:
    """A headline, and below it sentences with their labels; what is too long goes on below itself.

    Args:
        head: The headline.
        rows: Labels of at most four letters, and sentences.
        width: Columns that a line may take, if no word is longer; None for as many as a sentence needs.
    """
    indent = " " * (_MARGIN + _LABEL)
    lines = [wrapped(head, width, "", " " * _MARGIN)]
    lines += [wrapped(text, width, f"{'':{_MARGIN}}{label:<{_LABEL}}", indent) for label, text in rows]
    return "\n".join(lines)


def columns() -> int:
    """How wide the terminal is."""
    return shutil.get_terminal_size(_NO_TERMINAL).columns


def wrapped(text: str, width: int | None, first: str = "", rest: str = "  ") -> str:
    """A text in lines of so many columns.

    Args:
        text: The text.
        width: Columns that a line may take, if no word is longer; None for as many as there are.
        first: What stands before the first line.
        rest: What stands before the others.
    """
    text = _line(text)
    if width is None:
        return first + text
    columns = max(width, len(rest) + _NARROWEST)
    # an address or a name is copied from the screen: it stays in one piece
    return textwrap.fill(
        text, columns, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


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
