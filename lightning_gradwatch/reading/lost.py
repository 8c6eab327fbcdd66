"""Where on its way back the gradient of an alert is lost, from a log, ready to be drawn; damage is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from lightning_gradwatch.reading.alert import AlertRecord

OTHERS = "others"
NUM_GROUPS = 3
"""Groups that are told apart; what the others do is put together."""
MAX_STAGES = 100


class Part(TypedDict):
    """What a group of operations loses: how many of what, and the decades."""

    group: str
    label: str
    lost: float


class Stage(TypedDict):
    """What is lost between the output of a layer and that of the next one on the way, by group."""

    layer: str
    lost: dict[str, float]


class Lost(TypedDict):
    """What an alert tells of the gradient's way back to a layer; the loss end first, the largest part first."""

    title: str
    parts: list[Part]
    stages: list[Stage]


def lost_of(alert: AlertRecord) -> Lost | None:
    """Read it off an alert; None where there is nothing that can be drawn."""
    found = alert.get("attribution")
    if not isinstance(found, Mapping):
        return None
    parts, total, layer = list(_parts(found.get("shares"))), _number(found.get("lost")), found.get("layer")
    if not parts or total is None or total <= 0 or not isinstance(layer, str):
        return None
    told = {part["group"] for part in parts if part["group"] != OTHERS}
    title = f"Where {total:.1f} orders of magnitude are lost between the loss and {layer}"
    return {"title": title, "parts": parts, "stages": list(_stages(found.get("stages"), told))}


def _parts(shares: object) -> Iterator[Part]:
    """The largest, and the rest together."""
    read = [part for share in _mappings(shares) if (part := _part(share)) is not None]
    yield from read[:NUM_GROUPS]
    if len(read) > NUM_GROUPS:
        yield {"group": OTHERS, "label": "other operations", "lost": sum(part["lost"] for part in read[NUM_GROUPS:])}


def _part(share: Mapping[str, object]) -> Part | None:
    group, label, lost = share.get("group"), share.get("label"), _number(share.get("lost"))
    if not isinstance(group, str) or not isinstance(label, str) or lost is None:
        return None
    return {"group": group, "label": label, "lost": lost}


def _stages(stages: object, told: set[str]) -> Iterator[Stage]:
    for stage in _mappings(stages):
        layer, lost = stage.get("layer"), stage.get("lost")
        if not isinstance(layer, str) or not isinstance(lost, Mapping):
            continue
        together: dict[str, float] = {}
        for group, decades in lost.items():
            name = group if group in told else OTHERS
            together[name] = together.get(name, 0.0) + (_number(decades) or 0.0)
        yield {"layer": layer, "lost": together}


def _mappings(items: object) -> list[Mapping[str, object]]:
    if not isinstance(items, Sequence) or isinstance(items, str):
        return []
    return [item for item in items[:MAX_STAGES] if isinstance(item, Mapping)]


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number and isinstance(value, (int, float)) else None
