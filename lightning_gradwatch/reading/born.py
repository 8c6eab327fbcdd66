"""Where the NaN of an alert was born, from a log, ready to be drawn; damage is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from lightning_gradwatch.reading.alert import AlertRecord

STAGES = {
    "input": "batch",
    "weights": "weights",
    "forward": "forward pass",
    "loss": "loss",
    "backward": "backward pass",
    "optimizer": "optimizer",
}
"""What a training step goes through, in its order, in words."""
NUM_SAMPLES = 8
"""Samples of the batch that are named."""


class Born(TypedDict):
    """Where NaN or infinite values were born.

    ``stages`` are those of a step, ``at`` the place among them; ``module``, ``file``, ``code`` and ``samples`` may be
    empty, ``line`` is 0 where it is not known.
    """

    title: str
    stages: list[str]
    at: int
    module: str
    file: str
    line: int
    code: str
    samples: str


def born_of(alert: AlertRecord) -> Born | None:
    """Read it off an alert; None where there is nothing that can be drawn."""
    found = alert.get("birth")
    stage = found.get("stage") if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(stage, str) or stage not in STAGES:
        return None
    line = found.get("line")
    return {
        "title": "Where it was born",
        "stages": list(STAGES.values()),
        "at": list(STAGES).index(stage),
        "module": _text(found.get("module")),
        "file": _text(found.get("file")),
        "line": line if isinstance(line, int) and not isinstance(line, bool) and line > 0 else 0,
        "code": _text(found.get("code")),
        "samples": _samples(found.get("samples")),
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _samples(places: object) -> str:
    """The samples of the batch that carry it, in words."""
    if not isinstance(places, Sequence) or isinstance(places, str):
        return ""
    known = [f"{place:,}" for place in places if isinstance(place, int)]
    more = f" and {len(known) - NUM_SAMPLES:,} more" if len(known) > NUM_SAMPLES else ""
    return f"sample{'' if len(known) == 1 else 's'} {', '.join(known[:NUM_SAMPLES])}{more}" if known else ""
