"""Tables and the chart."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..zoo.table import layout
from .contestants import BARE, DEFAULTS, EVERY_STEP, ORDINARY
from .race import Result

SAMPLE_EVERY = 10
TITLES = {
    "watching": "Watching at the usual cadence",
    "norms": "The norm of every tensor, published at every step",
    "histograms": "Norms and histograms: of every tensor at every step, or as often as GradWatch takes any",
    "clipping": "Clipping at every step",
}
_COLUMNS = ("computes longer, %", "+-", "waits longer, %", "+-", "own hooks, %", "says of itself, %", "times ours")


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a table."""
    rows = list(rows)
    return layout(list(rows[0]), [list(row.values()) for row in rows])


def race_table(results: Sequence[Result]) -> str:
    """A workload, family by family, each against the bare Trainer and against ours."""
    ms = statistics.median(result.ms for result in results)
    blocks = [f"{results[0].workload}: {ms:.2f} ms a step in the bare Trainer"]
    for family, title in TITLES.items():
        own = [r for r in results if r.family == family]
        if own:
            header = (title, *_COLUMNS)
            blocks.append(layout(header, [_row(r, own) for r in own]))
    return "\n\n".join(blocks)


def _row(result: Result, family: Sequence[Result]) -> tuple[str, ...]:
    ours = next((r for r in family if r.is_ours), None)
    is_peer = ours is not None and not result.is_ours and result.family != "watching"
    is_told = ours is not None and ours.percent > ours.spread
    return (
        result.contestant,
        f"{result.percent:.2f}",
        f"{result.spread:.2f}",
        f"{result.wall_percent:.2f}",
        f"{result.wall_spread:.2f}",
        "" if result.own_percent is None else f"{result.own_percent:.2f}",
        "" if result.told_percent is None else f"{result.told_percent:.2f}",
        f"{result.percent / ours.percent:.1f}" if is_peer and is_told and ours is not None else "",
    )


def averages(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The defaults after their dense start, added up from steps with and without a sample, by time in own hooks."""
    rows = []
    for workload in dict.fromkeys(result.workload for result in results):
        found = {r.contestant: r for r in results if r.workload == workload}
        ordinary, sampled = found[ORDINARY.name], found[EVERY_STEP.name]
        without, with_one = ordinary.own_percent or 0.0, sampled.own_percent or 0.0
        average = without + (with_one - without) / SAMPLE_EVERY
        whole = found.get(DEFAULTS.name)
        rows.append(
            {
                "workload": workload,
                "bare step, ms": f"{ordinary.ms:.2f}",
                "without a sample, %": f"{ordinary.own_percent or 0.0:.2f}",
                "with one (dense start), %": f"{sampled.own_percent or 0.0:.2f}",
                "of both on average, %": f"{average:.2f}",
                "defaults, own hooks, %": "" if whole is None else f"{whole.own_percent or 0.0:.2f}",
                "overhead_percent": "" if whole is None else f"{whole.told_percent:.2f}",
                "from outside, %": "" if whole is None else f"{whole.percent:.2f} +- {whole.spread:.2f}",
            }
        )
    return rows


def chart(results: Sequence[Result], path: Path) -> None:
    """One bar for each contestant in each workload, on a logarithmic axis.

    What drowns in the noise is not drawn; of GradWatch its time in its own hooks is drawn instead.
    """
    import matplotlib as mpl
    from PIL import Image

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    workloads = list(dict.fromkeys(result.workload for result in results))
    names = [n for n in dict.fromkeys(r.contestant for r in results) if n != BARE.name]
    figure, axes = plt.subplots(1, len(workloads), figsize=(4 + 3 * len(workloads), 5.5), sharey=True, squeeze=False)
    for axis, workload in zip(axes[0], workloads, strict=True):
        found = {r.contestant: r for r in results if r.workload == workload}
        for place, name in enumerate(reversed(names)):
            result = found.get(name)
            if result is not None:
                percent, text = _drawn(result, noise=abs(found[BARE.name].percent) + found[BARE.name].spread)
                axis.barh(place, max(percent, 0.05), color="#1f77b4" if result.is_ours else "#999999")
                axis.text(max(percent, 0.05) * 1.15, place, text, va="center", fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(0.05, 20_000)
        axis.set_title(workload, fontsize=10)
        axis.set_xlabel("longer step, % of the bare Trainer's")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(names)), list(reversed(names)), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    with Image.open(path) as drawn:
        few_colours = drawn.convert("RGB").quantize(32, dither=Image.Dither.NONE)
    few_colours.save(path, optimize=True)


def _drawn(result: Result, noise: float) -> tuple[float, str]:
    """Length and label of a bar."""
    if result.percent > max(noise, result.spread):
        return result.percent, f"{result.percent:.1f} %"
    if result.own_percent is not None:
        return result.own_percent, f"{result.own_percent:.1f} % in its hooks"
    return 0.0, "in the noise"
