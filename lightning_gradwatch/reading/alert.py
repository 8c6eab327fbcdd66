"""What an alert is in a log: a dictionary of a fixed shape."""

from __future__ import annotations

from typing import TypedDict


class _CheckedAlert(TypedDict):
    """What every alert has, as ``is_alert`` makes sure."""

    kind: str
    level: str
    step: int
    until_step: int | None
    layer: str
    message: str
    optimizer: str


class AlertRecord(_CheckedAlert, total=False):
    """An alert as a log has it: nobody has checked what is an ``object`` here, and old logs lack some of it."""

    value: object
    threshold: object
    cause: object
    evidence: object
    remedies: object
    prescription: object
    summary: object
    attribution: object
    birth: object
    title: object
