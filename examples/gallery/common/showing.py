"""Tells the verdicts on a row, and draws it."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import matplotlib as mpl
import torch

from common.rows import Outcome, Row, objections
from common.training import train

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

SICK_COLOUR = "#c0392b"
CURED_COLOURS = ("#1f77b4", "#2ca02c", "#17becf", "#9467bd", "#7f7f7f")


def tell(row: Row, outcomes: dict[str, Outcome]) -> str:
    """The verdict on every network in plain words."""
    lines = [row.title]
    sick = {pair.sick.name for pair in row.pairs}
    for outcome in outcomes.values():
        label = "sick" if outcome.name in sick else "cured"
        lines.append(f"\n{label}: {outcome.name}: {row.measure} {outcome.final_loss:.3g} ({outcome.seconds:.0f} s)")
        lines += [f"  {alert.level.upper()} {alert.kind}: {alert.message}" for alert in outcome.alerts]
        lines += [] if outcome.alerts else ["  GradWatch has nothing to complain about."]
    found = [text for pair in row.pairs for text in objections(pair, outcomes)]
    return "\n".join([*lines, *(f"\nNot as it should be: {text}" for text in dict.fromkeys(found))])


def draw(row: Row, outcomes: dict[str, Outcome], path: Path) -> None:
    """A line of two plots per pair: where the gradient goes, and what comes of the loss."""
    size = (12, 3.2 * len(row.pairs))
    figure, axes = plt.subplots(len(row.pairs), 2, figsize=size, layout="constrained", squeeze=False)
    for pair, (left, right) in zip(row.pairs, axes, strict=True):
        _draw_outcome(left, right, outcomes[pair.sick.name], "sick", SICK_COLOUR)
        for cure, colour in zip(pair.cures, CURED_COLOURS, strict=False):
            _draw_outcome(left, right, outcomes[cure.name], "cured", colour)
        left.set(yscale="log", xlabel=row.axis, ylabel="gradient norm")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(xlabel="step", ylabel=row.measure)
        for plot in (left, right):
            plot.grid(alpha=0.3)
        right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes[0, 0].set_title("The gradient at the end of training", fontsize=10)
    axes[0, 1].set_title("Learning", fontsize=10)
    figure.suptitle(row.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_outcome(left: Axes, right: Axes, outcome: Outcome, label: str, colour: str) -> None:
    profile = [norm if norm > 0 else math.nan for norm in outcome.profile]  # a logarithmic axis has no zero
    left.plot(range(1, len(profile) + 1), profile, marker=".", color=colour)
    if not any(0 < norm < math.inf for norm in outcome.profile):
        left.text(0.03, 0.9, f"{outcome.name}: zero or not finite", color=colour, fontsize=8, transform=left.transAxes)
    losses = torch.tensor(outcome.losses)
    width = max(1, len(losses) // 20)
    smooth = losses.unfold(0, width, 1).mean(1)  # the mean of the last steps: batches differ
    text = f"{label}: {outcome.name}\n{outcome.verdict}"
    right.plot(range(width, len(losses) + 1), smooth, color=colour, label=text)


def show(row: Row) -> None:
    """What the script of a row does: train its networks, tell the verdicts, save the picture."""
    parser = argparse.ArgumentParser(description=f"{row.title}: sick and cured, under GradWatch")
    parser.add_argument("--directory", type=Path, default=Path("gallery_logs"), help="where logs and picture go")
    parser.add_argument("--steps", type=int, default=row.steps, help="optimizer steps of each training")
    arguments = parser.parse_args()
    outcomes = {
        network.name: train(row, network, arguments.directory, arguments.steps, progress=sys.stderr.isatty())
        for network in row.networks
    }
    picture = arguments.directory / f"{row.name}.png"
    draw(row, outcomes, picture)
    print(f"{tell(row, outcomes)}\n\nPicture: {picture}")
