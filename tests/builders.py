"""What many tests are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradwatch.core.records import Alert


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
