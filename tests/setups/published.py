"""What a run has published, read back from its event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.util.tensor_util import make_ndarray

from lightning_gradwatch.core.metrics import OVERHEAD
from lightning_gradwatch.core.quantities.several import STEPS
from tests.tasks import read_events, recorded

Numbers = dict[tuple[str, int], Any]


def numbers(directory: Path) -> Numbers:
    """Every number of GradWatch by tag and step, but for the wall clock's: scalars, tensors, histograms, every step."""
    events = read_events(directory)
    found: Numbers = {}
    ours = [tag for tag in events.Tags()["scalars"] if tag.startswith(("gradwatch/", "grad_norm/"))]
    for tag in [tag for tag in ours if tag != OVERHEAD]:
        found.update({(tag, e.step): e.value for e in events.Scalars(tag)})
    tensor_tags = events.Tags()["tensors"]
    for tag in [tag for tag in tensor_tags if tag.endswith(STEPS)]:
        bins = recorded(events, tag)
        found.update({(tag, step): row for step, row in zip(bins.last.tolist(), bins.high.tolist(), strict=True)})
    for tag in [tag for tag in tensor_tags if not tag.endswith(STEPS)]:
        values = {(tag, e.step): make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}
        found.update({place: value.tolist() for place, value in values.items() if value.dtype != object})
    for tag in events.Tags()["histograms"]:
        found.update({(tag, e.step): tuple(e.histogram_value.bucket) for e in events.Histograms(tag)})
    return found


def same(one: Numbers, other: Numbers) -> bool:
    """Bit for bit; NaN equals NaN, and nothing does not count as a number."""
    return {k: repr(v) for k, v in one.items()} == {k: repr(v) for k, v in other.items()} != {}
