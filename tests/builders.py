"""What many tests are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning_gradwatch.births.records import Birth
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


def attribution(label: str = "2 sigmoids", layer: str = "net.0") -> dict[str, Any]:
    """Where three orders of magnitude are lost on the way back through two layers, as an alert holds it."""
    shares = [("sigmoid", label, 2, 2.5), ("weights", "2 layers' weights", 2, 1.0), ("softmax", "1 softmax", 1, 0.0)]
    shares += [("normalisation", "1 normalisation layer", 1, -0.2), ("joins", "1 join of branches", 1, -0.3)]
    return {
        "layer": layer,
        "lost": 3.0,
        "shares": [{"group": g, "label": text, "count": n, "lost": lost} for g, text, n, lost in shares],
        "stages": [
            {"layer": "net.4", "lost": {"sigmoid": 1.5, "weights": 0.6, "joins": -0.3}},
            {"layer": "net.2", "lost": {"sigmoid": 1.0, "weights": 0.4, "normalisation": -0.2}},
        ],
    }


def birth() -> dict[str, Any]:
    """Where NaN was born, as an alert holds it."""
    born = Birth(
        "forward", "net.spread", "mynet.py", 6, "return x / y", "div", "0 / 0 in 16 of 256 elements", 16, 256, (27,)
    )
    return born.as_dict()


def as_logged(alert: Alert, **changes: Any) -> AlertRecord:
    """An alert as it is read from a log, with other fields where they are given."""
    record: AlertRecord = json.loads(json.dumps({**asdict(alert), **changes}))
    return record
