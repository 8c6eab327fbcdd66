"""What a run says of itself: its alerts, what it goes on without, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.left_out import LeftOut, unjudged
from lightning_gradwatch.reading.schema import Array, UnreadableError, decode_alerts
from lightning_gradwatch.reading.status import gave_up


@dataclass(frozen=True)
class Document:
    """The alerts of a run, and how it ended, as ``AlertDocument`` has them.

    Attributes:
        problem: Why they cannot be read; ``""`` if all is well.
    """

    alerts: Sequence[AlertRecord] = ()
    num_dropped: int = 0
    end: str | None = None
    left_out: Sequence[LeftOut] = ()
    problem: str = ""

    @property
    def doubt(self) -> str:
        """Why a run without an alert cannot be called healthy, though all can be read; ``""`` if nothing says so."""
        return gave_up(self.end) or unjudged(self.left_out)


def document_of(values: Array) -> Document:
    """The document that was written as this text."""
    text = values.reshape(-1)[:1].tolist()
    try:
        if not text or not isinstance(text[0], (bytes, str)):
            raise UnreadableError("The document of the alerts is damaged: it is no text.")
        return Document(**decode_alerts(text[0]))
    except UnreadableError as problem:
        return Document(problem=str(problem))
