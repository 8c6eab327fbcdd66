"""The names of the numbers. Every tag string lives here, and tags are public API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_gradwatch.core.records import Clip, Publication

PLUGIN = "gradwatch"
VANISHING = "gradwatch/vanishing"
ALERTS = "gradwatch/alerts"
ALERT_DOCUMENT = "gradwatch/alert_document"
"""Tag of the JSON document of all alerts."""
ALERT_TABLE = "gradwatch/alert_table"
"""Tag of the same as a table in the Text dashboard."""
PRESCRIPTION_TABLE = "gradwatch/prescription"
"""Tag of the remedies that were tried, as a table in the Text dashboard."""
PAGE = "gradwatch/page"
"""Name of the page of the run in loggers that can show one."""
OPEN_ALERTS = "gradwatch/open_alerts"
"""Name of the line that says which alerts are open, in loggers that hold facts about a run."""


def margin_tags(optimizer: str = "") -> tuple[str, str, str]:
    """Tags of the median, the smallest and the largest total norm since the last point."""
    median, low, high = (of_optimizer(f"gradwatch/total_norm_{name}", optimizer) for name in ("median", "min", "max"))
    return median, low, high


CHARTS = {
    "Orders of magnitude that the gradient loses": r".*gradwatch/(.*/)?(decades_lost|vanishing_through_time)$",
    "Orders of magnitude that the gradient grows": r".*gradwatch/(.*/)?exploding$",
    "Update relative to the weights": r".*gradwatch/(.*/)?update_ratio$",
    "Clipping coefficient": r".*gradwatch/(.*/)?clip_coefficient(-\d+)?$",
    "Alerts": r".*gradwatch/alerts$",
}
"""Charts for the Custom Scalars dashboard: regular expressions over tags by title."""


def is_own(tag: str) -> bool:
    """Whether a tag is one of ours."""
    return tag.startswith(("gradwatch/", "grad_norm/", "grad_log10/"))


OVERHEAD = "gradwatch/overhead_percent"


def of_optimizer(tag: str, optimizer: str) -> str:
    """The tag of one optimizer among several: its name goes behind the first part of the tag."""
    group, _, rest = tag.partition("/")
    return f"{group}/{optimizer}/{rest}" if optimizer else tag


def run_level_tag(name: str, optimizer: str = "") -> str:
    """The tag of one of the handful of numbers of ``run_level``."""
    return of_optimizer(f"gradwatch/{name}", optimizer)


def steps_tag(name: str, optimizer: str = "") -> str:
    """The tag by which a reader asks for a number that stands beside the norms of every step, such as the loss."""
    return of_optimizer(f"gradwatch/steps/{name}", optimizer)


def is_layer_norm(tag: str) -> bool:
    """Whether a tag is one of ``layer_norm_tag``'s."""
    return tag.startswith("grad_norm/")


def layer_norm_tag(row: str, optimizer: str = "") -> str:
    """Tag of the gradient norm of a layer, or of a row of layers, in the standard dashboards."""
    return of_optimizer(f"grad_norm/{row}", optimizer)


def layer_histogram_tag(row: str, optimizer: str = "") -> str:
    """Tag of the log10|g| histogram of a layer, or of a row of layers, in the standard dashboards."""
    return of_optimizer(f"grad_log10/{row}", optimizer)


def layers_tag(name: str, version: int = 0, optimizer: str = "") -> str:
    """Tag of the tensor ``name`` with one row per layer; a new version whenever the list of layers has changed."""
    return of_optimizer(f"gradwatch/layers{f'-{version + 1}' if version else ''}/{name}", optimizer)


def part_tag(tag: str, part: int) -> str:
    """Tag of one part of a series that is too long for one tag: loaders drop events of a tag that has too many."""
    return f"{tag}/{part}" if part else tag


def sequence_tag(layer: str, version: int = 0, optimizer: str = "") -> str:
    """Tag of the gradient norms of a recurrent layer along its time steps; versions as for ``layers_tag``."""
    return of_optimizer(f"gradwatch/sequence{f'-{version + 1}' if version else ''}/{layer}", optimizer)


def run_level(publication: Publication, num_alerts: int) -> dict[str, float]:
    """The handful of numbers that go to every logger.

    Args:
        publication: The numbers of one optimizer.
        num_alerts: Alerts of the run so far, of all optimizers.

    Returns:
        Tags with values. Norms are in loss per unit of parameter, over complete, unscaled gradients before clipping;
        NaN and inf are passed on as they are; a number that does not exist is left out.
    """
    window = publication.window
    numbers = {"total_norm": float(window.last[0])}
    for name, column in (("min", window.min), ("median", window.median), ("max", window.max)):
        value = float(column[0])
        if not math.isnan(value):
            numbers[f"total_norm_{name}"] = value
    numbers.update(publication.scores)
    for place, clip in enumerate(publication.clips):
        numbers.update(_clip_numbers(clip, f"-{place + 1}" if place else ""))
    if not numbers.get("skipped_steps"):
        numbers.pop("skipped_steps", None)
    tagged = {run_level_tag(name, publication.optimizer): value for name, value in numbers.items()}
    costs = {} if publication.overhead_percent is None else {OVERHEAD: publication.overhead_percent}
    return {**tagged, ALERTS: float(num_alerts), **costs}


def _clip_numbers(clip: Clip, suffix: str) -> dict[str, float]:
    numbers = {
        "clip_coefficient": clip.coefficient,
        "clipped_norm": clip.clipped_norm,
        "clipped_percent": 100 * clip.num_clipped / clip.num_steps,
    }
    if math.isfinite(clip.threshold):
        numbers["clip_threshold"] = clip.threshold
    return {f"{name}{suffix}": value for name, value in numbers.items()}


def monitored(vanishing: float, num_alerts: int) -> dict[str, float]:
    """The numbers for ``EarlyStopping`` and ``ModelCheckpoint``: the worst score of all optimizers, and all alerts."""
    return {VANISHING: vanishing, ALERTS: float(num_alerts)}


def row_norms(norms: Sequence[float], rows: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Roll norms of layers up to rows: the root of the summed squares; rows without any gradient are left out."""
    rolled: dict[str, float] = {}
    for row, indices in rows.items():
        present = [norms[i] for i in indices if not norms[i] < 0]
        if present:
            rolled[row] = math.hypot(*present)
    return rolled
