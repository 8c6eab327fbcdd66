"""How GradWatch's numbers stand in an event file: names, encodings and their inverses. Knows numpy, not torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypedDict, TypeGuard

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.core.quantities import BY_NAME, RESERVED
from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.quantities.several import HISTOGRAM_BINS, IN_BINS, SEQUENCE, SEVERAL
from lightning_gradwatch.core.records import NUM_BINS, Alert
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.left_out import LeftOut, are_left_out

SCHEMA_VERSION = 1
"""That of all documents; raised when older readers would misread them. Further quantities do not raise it."""
BINS_VERSION = 2
"""That of norms in bins, which older readers name as newer than they are while they read all the rest."""
MAX_TIME_STEPS = 128
MAX_ALERTS = 100

Array = npt.NDArray[Any]


class AlertDocument(TypedDict):
    """The alerts of a run, the oldest first, how many older ones are left out, and how the run ended.

    Attributes:
        end: ``""`` while it goes on, ``"end"`` after it ended by itself, ``"GradWatch failed"`` if the watch has given
            up, else the name of the exception that ended it; None in the logs of older versions, which do not tell.
        left_out: What failed and was left out from then on; empty in the logs of older versions.
    """

    alerts: list[AlertRecord]
    num_dropped: int
    end: str | None
    left_out: list[LeftOut]


class UnreadableError(ValueError):
    """What was written cannot be read: by a newer GradWatch, or damaged."""


@dataclass(frozen=True)
class Description:
    """What a tag holds; written with its first event.

    Attributes:
        quantity: What was measured, such as ``grad_norm``; ``sequence`` for the time steps of a recurrent layer;
            ``alerts`` for the document of the alerts.
        optimizer: Name of the optimizer that owns the layers; ``""`` if there is only one.
        version: Counts up whenever the list of layers has changed.
        layers: Names of the layers in the order in which they ran, the input end first: the rows of the tensors.
        declaration: What a quantity of the user's own is, which the reader may not know; None for all others.
        lines: Names of the numbers of the run that stand beside the layers in bins of steps, such as ``loss``.
        elements: How many elements the parameters of each layer have; empty where that was not written.
        vectors: Places of the layers that are a normalisation layer, or biases by themselves.
    """

    quantity: str
    optimizer: str = ""
    version: int = 0
    layers: tuple[str, ...] = ()
    declaration: Quantity | None = None
    lines: tuple[str, ...] = ()
    elements: tuple[int, ...] = ()
    vectors: tuple[int, ...] = ()

    @property
    def shown_as(self) -> Quantity | None:
        """The quantity in words; None for what has no place in a heatmap, or is of a newer version."""
        return BY_NAME.get(self.quantity, self.declaration)

    def encode(self) -> bytes:
        """The description as the content of a tag's metadata."""
        where = {"optimizer": self.optimizer, "version": self.version, "layers": self.layers}
        words = {} if self.declaration is None else {"declaration": self.declaration.words()}
        further = {name: getattr(self, name) for name in ("lines", "elements", "vectors") if getattr(self, name)}
        schema = BINS_VERSION if self.quantity in IN_BINS else SCHEMA_VERSION
        return json.dumps({"schema": schema, "quantity": self.quantity, **where, **words, **further}).encode()

    @classmethod
    @lru_cache(maxsize=256)  # the runs of a sweep have the same ones
    def decode(cls, content: bytes) -> Description:
        """The inverse of ``encode``.

        Raises:
            UnreadableError: If it is of a newer schema, or damaged.
        """
        found = _parse(content, "The description of a series", BINS_VERSION)
        try:
            names = [found["quantity"], found["optimizer"], *found["layers"]]
            version, lines = int(found["version"]), tuple(found.get("lines", ()))
        except (KeyError, TypeError, ValueError) as failure:
            raise UnreadableError(f"The description of a series is damaged: {failure!r}.") from None
        if not all(isinstance(name, str) for name in (*names, *lines)):
            raise UnreadableError("The description of a series is damaged: its names are no text.")
        if names[0] == SEQUENCE and len(names) != 3:
            raise UnreadableError("The description of a series is damaged: a sequence belongs to one layer.")
        declaration = None if names[0] in RESERVED else Quantity.from_words(names[0], found.get("declaration"))
        sizes = _numbers(found.get("elements"), len(names) - 2), _numbers(found.get("vectors"))
        return cls(names[0], names[1], version, tuple(names[2:]), declaration, lines, *sizes)

    def fits(self, values: Array) -> bool:
        """Whether values can be a sample of this tag."""
        if self.quantity == SEQUENCE:
            return values.ndim == 2 and values.shape[1] == 2 and values.dtype == np.float32
        if self.quantity in IN_BINS:
            return values.ndim == 1 and values.dtype == np.uint8
        several = SEVERAL.get(self.quantity)
        shape = (len(self.layers),) if several is None else (len(self.layers), several.width)
        return values.shape == shape and values.dtype == ("float32" if several is None else several.dtype)


def _numbers(found: object, count: int | None = None) -> tuple[int, ...]:
    """Whole numbers of what was written; none if it is of no use: what they are for is left out then."""
    is_fit = isinstance(found, list) and all(type(number) is int and 0 <= number < 2**53 for number in found)
    return tuple(found) if isinstance(found, list) and is_fit and count in (None, len(found)) else ()


def _parse(content: bytes | str, what: str, newest: int) -> dict[str, Any]:
    try:
        found = json.loads(content)
        schema = found["schema"]
        if not isinstance(schema, int) or schema < 1:
            raise ValueError(f"schema {schema!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as failure:
        raise UnreadableError(f"{what} is damaged: {failure!r}.") from None
    if schema > newest:
        raise UnreadableError(
            f"This run was written by a newer GradWatch (schema {schema}; this one reads up to {newest}): "
            "upgrade lightning-gradwatch where TensorBoard runs."
        )
    return dict(found)


def encode_histogram(counts: Array) -> Array:
    """Pack histograms of log10|g| into 66 bytes per layer.

    Args:
        counts: Counts in the bins of ``core/histogram.py``, further columns are left out; shape
            ``(layers, NUM_BINS + ...)``.

    Returns:
        Shape ``(layers, 66)``, uint8: the first of 64 neighbouring bins as a little-endian uint16, then these bins as
        ``round(255 * sqrt(share))`` of the layer's non-zero, finite elements. They are those that hold most; what lies
        beyond them is counted in the outermost.
    """
    counts = counts[:, :NUM_BINS].astype(np.float64)
    sums = np.zeros((len(counts), NUM_BINS + 1))
    counts.cumsum(1, out=sums[:, 1:])
    first = (sums[:, HISTOGRAM_BINS:] - sums[:, :-HISTOGRAM_BINS]).argmax(1)
    rows = np.arange(len(counts))
    held = counts[rows[:, None], first[:, None] + np.arange(HISTOGRAM_BINS)]
    held[:, 0] += sums[rows, first]
    held[:, -1] += sums[:, -1] - sums[rows, first + HISTOGRAM_BINS]
    total = sums[:, -1:]
    share = held / np.where(total > 0, total, 1)
    packed = np.empty((len(counts), 2 + HISTOGRAM_BINS), np.uint8)
    packed[:, :2] = first.astype("<u2")[:, None].view(np.uint8)
    packed[:, 2:] = np.rint(255 * np.sqrt(share))
    return packed


def decode_histogram(packed: Array) -> tuple[Array, Array]:
    """The first bins, shape ``(...,)``, int, and the bytes of the 64 bins, shape ``(..., 64)``, uint8."""
    first = packed[..., 0].astype(int) + 256 * packed[..., 1].astype(int)
    return np.minimum(first, NUM_BINS - HISTOGRAM_BINS), packed[..., 2:]


def encode_sequence(norms: Array) -> Array:
    """Gradient norms along time steps, thinned evenly to at most 128; both ends are kept.

    Args:
        norms: The earliest step first, shape ``(time steps,)``.

    Returns:
        Shape ``(at most 128, 2)``, float32: time steps back from the last one, and the norm.
    """
    places = np.unique(np.linspace(0, len(norms) - 1, min(len(norms), MAX_TIME_STEPS)).round().astype(int))
    return np.stack([len(norms) - 1 - places, norms[places]], axis=1).astype(np.float32)


def encode_alerts(alerts: Sequence[Alert], num_alerts: int, end: str = "", left_out: Sequence[LeftOut] = ()) -> str:
    """The document of a run's alerts: all open ones and the newest 100.

    Args:
        alerts: The alerts, the oldest first.
        num_alerts: How many there were, notices left out.
        end: How the run ended, see ``AlertDocument``.
        left_out: What failed and was left out from then on.
    """
    newest = set(range(len(alerts))[-MAX_ALERTS:])
    kept = [alert for i, alert in enumerate(alerts) if i in newest or alert.until_step is None]
    document = {
        "schema": SCHEMA_VERSION,
        "alerts": [asdict(alert) for alert in kept],
        "num_alerts": num_alerts,
        "num_dropped": len(alerts) - len(kept),
        "end": end,
        "left_out": list(left_out),
    }
    return json.dumps(document)


def decode_alerts(document: bytes | str) -> AlertDocument:
    """The inverse of ``encode_alerts``; every alert has at least a kind, a level, a step and a message.

    Raises:
        UnreadableError: If it is of a newer schema, or damaged.
    """
    found = _parse(document, "The document of the alerts", SCHEMA_VERSION)
    alerts = found.get("alerts")
    if not isinstance(alerts, list) or not all(is_alert(alert) for alert in alerts):
        raise UnreadableError("The document of the alerts is damaged: an alert is incomplete.")
    dropped, end = found.get("num_dropped", 0), found.get("end")
    left_out = found.get("left_out", [])
    return {
        "alerts": alerts,
        "num_dropped": dropped if isinstance(dropped, int) else 0,
        "end": end if isinstance(end, str) else None,
        "left_out": left_out if are_left_out(left_out) else [],
    }


def is_alert(alert: object) -> TypeGuard[AlertRecord]:
    """Whether it is a dictionary with what every alert has."""
    if not isinstance(alert, Mapping):
        return False
    texts = all(isinstance(alert.get(name), str) for name in ("kind", "level", "message", "layer", "optimizer"))
    until = alert.get("until_step", "")
    return texts and isinstance(alert.get("step"), int) and (until is None or isinstance(until, int))


def encode_frame(values: Array, header: Mapping[str, object]) -> bytes:
    """A matrix for the browser: length of the header, header, body; the body starts at a multiple of 8 bytes.

    Args:
        values: Float32 or uint8, shape ``(columns, rows)``; columns are samples.
        header: What is to be known besides schema, dtype and shape; plain JSON.
    """
    known = {"schema": SCHEMA_VERSION, "dtype": str(values.dtype), "shape": list(values.shape)}
    text = json.dumps({**known, **header}, allow_nan=False).encode()
    text += b" " * (-(4 + len(text)) % 8)
    body = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return len(text).to_bytes(4, "little") + text + body


def plain(content: object) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    if isinstance(content, dict):
        return {name: plain(part) for name, part in content.items()}
    return [plain(part) for part in content] if isinstance(content, (list, tuple)) else content
