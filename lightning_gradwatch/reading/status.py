"""How a run is, in one word and one line. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from lightning_gradwatch.core.metrics import is_own
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.tables import KINDS, STATUSES, Status

SICKEST_FIRST = tuple(STATUSES)
_NOT_TRAINING = frozenset({"val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev", "holdout"})


State = Literal["live", "ended", "crashed", "silent", "unknown"]
"""Whether a run goes on; unknown where its log does not tell: that of an older version, or of no GradWatch at all."""
SILENT_AFTER_S = 600.0
"""Seconds without a word after which a run that has not ended is taken for one that was killed."""
GAVE_UP = "GradWatch failed"
"""The end of a run, as its log has it, whose training went on without a watch."""
_BY_HAND = ("KeyboardInterrupt", "SIGTERMException", "SystemExit")


def state_of(end: str | None, written: float, now: float) -> tuple[State, str]:
    """Whether a run goes on, in one word and in a few.

    Args:
        end: How it ended, see ``AlertDocument``.
        written: When anything was last written, in seconds since the epoch.
        now: The present time.
    """
    if end == "end":
        return "ended", "ended"
    if end in _BY_HAND:
        return "ended", f"ended by {end}"
    if end == GAVE_UP:
        return "unknown", "not watched to its end"
    if end:
        return "crashed", f"crashed with {end}"
    if now - written < SILENT_AFTER_S:
        return "live", "live"
    return ("unknown", "not live") if end is None else ("silent", "stopped without a word")


def gave_up(end: str | None) -> str:
    """Why a run cannot be called healthy though all of its log can be read; ``""`` if nothing speaks against it."""
    return "GradWatch failed in this run, and watched it no more: see the console's output." if end == GAVE_UP else ""


class Verdict(NamedTuple):
    """How a run is.

    Attributes:
        status: In one word.
        headline: In one line.
        num_open: Open alerts and notices.
    """

    status: Status
    headline: str
    num_open: int


def judge(alerts: Sequence[AlertRecord] | None, is_watched: bool, problem: str, last_step: int | None) -> Verdict:
    """Judge a run by its alerts.

    Args:
        alerts: Its alerts as dictionaries, the oldest first; None if there is no document of them.
        is_watched: Whether GradWatch has written anything.
        problem: Why something cannot be read; ``""`` if all is well.
        last_step: The last step known of it.
    """
    open_ones = [alert for alert in alerts or () if alert["until_step"] is None]
    first = min(open_ones, key=urgency, default=None)
    # an open alert is one, whatever else cannot be read; a notice may have become one
    if problem and (first is None or first["level"] != "alert"):
        return Verdict("unreadable", problem, len(open_ones))
    if not is_watched:
        return Verdict("not_watched", "GradWatch does not watch this run.", 0)
    if first is not None:
        more = f", and {len(open_ones) - 1} more" if len(open_ones) > 1 else ""
        return Verdict("sick" if first["level"] == "alert" else "notice", f"{_since(first)}{more}.", len(open_ones))
    if alerts is None:
        return Verdict("unreadable", "The document of this run's alerts is missing.", 0)
    if alerts:
        last = max(alerts, key=lambda alert: alert["until_step"] or 0)
        return Verdict("recovered", f"{symptom(last)} until step {last['until_step']}; well since.", 0)
    return Verdict("healthy", "No alert." if last_step is None else f"No alert up to step {last_step}.", 0)


def urgency(alert: AlertRecord) -> tuple[bool, bool, int]:
    """What alerts are sorted by, the worst first: everywhere the same.

    Open before ended, alerts before notices, then the earliest; of those that ended the latest.
    """
    until = alert["until_step"]
    return until is not None, alert["level"] != "alert", alert["step"] if until is None else -until


def symptom(alert: AlertRecord) -> str:
    """What is wrong, in a few words; of a kind that is not known, as in the log of a newer version, its name."""
    kind = str(alert["kind"])
    return KINDS[kind].title if kind in KINDS else str(alert.get("title") or kind)


def _since(alert: AlertRecord) -> str:
    where = f", in {alert['layer']}" if alert["layer"] else ""
    whose = f", with {alert['optimizer']}" if alert["optimizer"] else ""
    return f"{symptom(alert)} since step {alert['step']}{where}{whose}"


def loss_tag(tags: Iterable[str]) -> str | None:
    """Which scalar is the training loss, by its name; None if none sounds like it. The order of the tags is no matter.

    The word loss must be in it; rather training than validation, step than epoch, and short than long.
    """
    candidates = [tag for tag in tags if "loss" in _words(tag) and not is_own(tag)]
    return min(candidates, key=_strangeness, default=None)


def _words(tag: str) -> set[str]:
    return set("".join(c if c.isalnum() else " " for c in tag.lower()).split())


def _strangeness(tag: str) -> tuple[bool, bool, bool, int, str]:
    words = _words(tag)
    is_training = bool(words & {"train", "training"}) or words <= {"loss", "step"}
    return bool(words & _NOT_TRAINING), not is_training, "epoch" in words, len(tag), tag
