"""What many tests are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.reading.alert import AlertRecord


def alert(step: int = 9, until: int | None = None, **changes: Any) -> Alert:
    """An alert of a layer ``net.0`` whose gradient vanishes, with other fields where they are given."""
    fields: Mapping[str, Any] = {
        "kind": "vanishing",
        "level": "alert",
        "layer": "net.0",
        "value": 3.0,
        "threshold": 2.0,
        "message": f"Gradients vanish (step {step}).",
        **changes,
    }
    return Alert(step=step, until_step=until, **fields)


def as_logged(alert: Alert, **changes: Any) -> AlertRecord:
    """An alert as it is read from a log, with other fields where they are given."""
    record: AlertRecord = json.loads(json.dumps({**asdict(alert), **changes}))
    return record
