"""Pictures of a history with matplotlib; as of torchmetrics' ``plot``, the figure and its axes come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.output_gradient import OUTPUT_GRAD_NORM
from lightning_gradwatch.notebook.history import History
from lightning_gradwatch.reading.tables import LEAST_DECADES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Kind = Literal["heatmap", "profile", "histogram", "clipping"]
KINDS: tuple[str, ...] = get_args(Kind)
MAX_LABELS = 25
_NO_MATPLOTLIB = "`plot` needs matplotlib, which is not installed. To cure it: pip install matplotlib"


def plot(history: History, kind: Kind, layer: str | None, ax: Axes | None) -> tuple[Figure | SubFigure, Axes]:
    """Draw.

    Args:
        history: What to draw.
        kind: As in ``watch.plot``.
        layer: The layer of a histogram; None for the one next to the input.
        ax: Where to draw; None for a new figure.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If there is nothing to draw, or no such kind or layer.
    """
    if kind not in KINDS:
        raise refuse("kind", f"one of {', '.join(map(repr, KINDS))}", kind, 'leave it out for "heatmap"')
    if not history.quantities:
        raise refuse("kind", "what has been recorded", "nothing so far", "call `plot` when training has begun")
    try:
        from matplotlib import pyplot as plt
    except ModuleNotFoundError:
        raise ModuleNotFoundError(_NO_MATPLOTLIB) from None
    if layer is not None and layer not in history.layers:
        raise refuse("layer", "a layer that is watched", layer, "take a name from `watch.history.layers`")
    if kind == "clipping" and "clip_coefficient" not in history.numbers:
        raise refuse("kind", '"clipping" where there is `auto_clip`', kind, "set `auto_clip`, or draw another kind")
    figure, axes = plt.subplots(layout="constrained") if ax is None else (ax.figure, ax)
    if kind == "histogram":
        _histogram(history, layer or history.layers[0], axes)
    else:
        {"heatmap": _heatmap, "profile": _profile, "clipping": _clipping}[kind](history, axes)
    return figure, axes


def _heatmap(history: History, axes: Axes) -> None:
    """Gradient norms of all layers over the steps, in decades, the input above; white for no number."""
    known = history.quantities.get(GRAD_NORM.name) or next(iter(history.quantities.values()))
    is_number = np.isfinite(known.values) & (known.values > 0)
    decades = np.ma.masked_where(~is_number, np.log10(np.where(is_number, known.values, 1.0)))
    high = float(decades.max()) if is_number.any() else 0.0
    low = min(float(decades.min()) if is_number.any() else high, high - LEAST_DECADES)
    edges = np.append(known.steps, known.last_steps[-1] + 1) - 0.5
    rows = np.arange(len(history.layers) + 1) - 0.5
    mesh = axes.pcolormesh(edges, rows, decades.T, cmap="viridis", vmin=low, vmax=high, rasterized=True)
    axes.set_ylim(len(history.layers) - 0.5, -0.5)
    chosen = np.unique(np.linspace(0, len(history.layers) - 1, MAX_LABELS).round().astype(int))
    axes.set_yticks(chosen, [history.layers[place] for place in chosen])
    axes.set_xlabel("step")
    axes.set_title("gradient norm of each layer")
    axes.figure.colorbar(mesh, ax=axes, label="log10 of the norm")


def _profile(history: History, axes: Axes) -> None:
    """The newest norms from the input to the loss, at the layers' outputs where these were observed."""
    quantity = next(q for q in (OUTPUT_GRAD_NORM, GRAD_NORM) if q.name in history.quantities)
    known = history.quantities[quantity.name]
    newest = known.values[-1]
    is_there = newest > 0
    places = np.flatnonzero(is_there)
    axes.semilogy(range(len(places)), newest[places], marker="o")
    chosen = np.unique(np.linspace(0, max(len(places) - 1, 0), MAX_LABELS).round().astype(int))[: len(places)]
    axes.set_xticks(chosen, [history.layers[places[place]] for place in chosen], rotation=90)
    axes.set_xlabel("layer, from the input to the loss")
    axes.set_ylabel(quantity.label)
    axes.set_title(f"depth profile at step {known.last_steps[-1]:,}")


def _histogram(history: History, layer: str, axes: Axes) -> None:
    """Shares of log10|g| over the steps."""
    found = history.histogram(layer)
    edges = np.append(found.steps, found.steps[-1] + 1) - 0.5
    mesh = axes.pcolormesh(edges, found.edges, found.shares.T, cmap="Blues", vmin=0, rasterized=True)
    axes.set_xlabel("step")
    axes.set_ylabel("log10 of |gradient|")
    axes.set_title(f"gradients of {layer}")
    axes.figure.colorbar(mesh, ax=axes, label="share of the elements")


def _clipping(history: History, axes: Axes) -> None:
    """The total norm before clipping, and the threshold."""
    for name, label in (("total_norm", "total norm before clipping"), ("clip_threshold", "threshold")):
        known = history.numbers.get(name)
        if known is not None and np.isfinite(known.values).any():
            axes.plot(known.last_steps, known.values, label=label)
            axes.fill_between(known.last_steps, known.lows, known.highs, alpha=0.2)
    coefficient = history.numbers["clip_coefficient"]
    clipped = coefficient.lows < 1
    axes.plot(coefficient.last_steps[clipped], np.ones(clipped.sum()), "|", transform=axes.get_xaxis_transform(),
              color="tab:red", label="clipped", clip_on=False)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title("clipping")
    axes.legend()
