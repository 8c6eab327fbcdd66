"""What TensorBoard's own dashboards show of GradWatch: histograms, a layout of charts, a table of alerts."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.reading.schema import Array
from lightning_gradwatch.reading.trials import HEADER, caption, headroom, not_tried, recipes, rows_of, summary

MAX_ROWS = 20
_MARKUP = {ord(c): f"&#{ord(c)};" for c in "&<>\"'|\\`*_{}[]()#+-.!~:$^="} | {ord("\n"): " ", ord("\r"): " "}
_HEAD = "| since step | until step | what | layer | why, and what to try |\n|---|---|---|---|---|\n"


def add_histograms(summary: Summary, tags: Sequence[str], counts: Array, edges: Sequence[float]) -> None:
    """Add histograms without their empty ends; none where every bin is empty.

    TensorBoard draws 30 equal bins from the lowest to the highest edge, so empty ends would squeeze the rest into one.

    Args:
        summary: What to add them to.
        tags: A tag for each.
        counts: Shape ``(tags, bins)``.
        edges: One more than there are bins.
    """
    is_filled, middles = counts > 0, _middles(tuple(edges))
    ends = counts.shape[1] - is_filled[:, ::-1].argmax(1)
    sums = counts.astype(np.float64) @ np.stack([np.ones_like(middles), middles, middles**2], axis=1)
    together = zip(tags, counts, is_filled.argmax(1).tolist(), ends.tolist(), sums.tolist(), strict=True)
    for tag, row, first, end, (num, total, squares) in together:
        if num:
            histogram = summary.value.add(tag=tag).histo
            histogram.min, histogram.max = edges[first], edges[end]
            histogram.num, histogram.sum, histogram.sum_squares = num, total, squares
            histogram.bucket_limit.extend(edges[first + 1 : end + 1])
            histogram.bucket.extend(row[first:end].tolist())


@lru_cache(maxsize=1)
def _middles(edges: tuple[float, ...]) -> Array:
    middles: Array = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
    return middles


def layout(optimizers: Iterable[str], prefix: str = "") -> bytes:
    """A layout for the Custom Scalars dashboard.

    Args:
        optimizers: Names of the optimizers; ``""`` for a single one.
        prefix: What the logger puts before every tag.
    """
    charts = []
    for optimizer in optimizers:
        value, lower, upper = (prefix + tag for tag in metrics.margin_tags(optimizer))
        margin = layout_pb2.MarginChartContent()
        margin.series.add(value=value, lower=lower, upper=upper)
        whose = f", {optimizer}" if optimizer else ""
        charts.append(layout_pb2.Chart(title=f"Total norm: median, smallest and largest{whose}", margin=margin))
    for title, pattern in metrics.CHARTS.items():
        charts.append(layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[pattern])))
    category = layout_pb2.Category(title="GradWatch", chart=charts)
    encoded: bytes = layout_pb2.Layout(category=[category]).SerializeToString()
    return encoded


def has_layout(directory: str | Path) -> bool:
    """Whether the event files of a run hold a layout already: the last one replaces all others of the run.

    Where that cannot be told, as in a bucket, the answer is yes.
    """
    if not Path(directory).is_dir():
        return True
    return any(_holds(path, CONFIG_SUMMARY_TAG.encode()) for path in Path(directory).glob("*tfevents*"))


def _holds(path: Path, what: bytes) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(what) >= 0


def alert_table(alerts: Sequence[Alert]) -> str:
    """The newest alerts as a Markdown table, the newest first; every text in it stands for itself."""
    if not alerts:
        return "GradWatch watches this run. No alert so far."
    rows = [
        (f"{a.step}", "" if a.until_step is None else f"{a.until_step}", f"{a.level}: {a.kind}", a.layer, a.message)
        for a in reversed(alerts[-MAX_ROWS:])
    ]
    return _HEAD + _body(rows)


def prescription_table(prescription: Mapping[str, object]) -> str:
    """What was tried on a copy of the model as Markdown, the best first; every text in it stands for itself."""
    told = " ".join(filter(None, (f"{summary(prescription)}.", caption(prescription), headroom(prescription))))
    head = f"{told}\n\n| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|\n"
    parts = [head + _body(rows_of(prescription))]
    parts += [
        f"{name.translate(_MARKUP)}:\n\n```\n{code.replace('`', ' ')}\n```\n" for name, code in recipes(prescription)
    ]
    if missing := not_tried(prescription):
        parts.append(f"Not tried: {'; '.join(missing).translate(_MARKUP)}.\n")
    return "\n".join(parts)


def _body(rows: Iterable[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(cell.translate(_MARKUP) for cell in row) + " |\n" for row in rows)
