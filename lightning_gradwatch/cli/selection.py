"""Which pictures a report shows of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from lightning_gradwatch.cli.drawing import canvas_for
from lightning_gradwatch.cli.logs import OpenRun
from lightning_gradwatch.cli.picture import Picture, is_seen, paint
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.output_gradient import OUTPUT_GRAD_NORM
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.answers import Layout, rows_of
from lightning_gradwatch.reading.dividing import divisors
from lightning_gradwatch.reading.folding import Row
from lightning_gradwatch.reading.norms import chosen
from lightning_gradwatch.reading.status import urgency
from lightning_gradwatch.reading.tables import KINDS


def pictures(
    run: OpenRun, quantity: str | None, console: Console, layout: Layout
) -> Iterator[tuple[str, Picture, set[int]]]:
    """A picture of each optimizer's newest layers: its name, the picture, and the rows with a layer of an open alert.

    Args:
        run: The run.
        quantity: Which one; None for the one that shows the alert that matters most.
        console: For the number of columns.
        layout: How many rows at most, which layers share them, and how gradient norms are shown.
    """
    for optimizer in run.document["optimizers"]:
        if not optimizer["versions"]:
            continue
        name, version = optimizer["name"], optimizer["versions"][-1]
        alerts = [alert for alert in run.document["alerts"] if alert["optimizer"] == name]
        series = run.quantities(name, version["version"])
        for candidate in [quantity] if quantity else _candidates(alerts):
            about = series[candidate].description if candidate in series else None
            shown_as = None if about is None else about.shown_as
            if about is None or shown_as is None:
                continue
            if is_seen((samples := run.store.samples(series[candidate])).values):
                leading = series.get(GRAD_NORM.name, series[candidate])
                rows = rows_of(leading, run.store.samples(leading), alerts, layout)
                columns = canvas_for(console, (row.path for row in rows)).columns
                norm = chosen(about, layout.norm)
                picture = paint(samples, rows, norm.of(shown_as), columns, divisors(norm, about, samples))
                yield name, picture, _ailing(alerts, version["layers"], rows)
                break


def _ailing(alerts: Sequence[AlertRecord], layers: Sequence[str], rows: Sequence[Row]) -> set[int]:
    ill = {alert["layer"] for alert in alerts if alert["until_step"] is None}
    return {place for place, row in enumerate(rows) if any(layers[layer] in ill for layer in row.layers)}


def _candidates(alerts: list[AlertRecord]) -> list[str]:
    """The quantity in which the alert that matters most is best seen, then gradients of weights, or of outputs."""
    foremost = min(alerts, key=urgency, default=None)
    kind = None if foremost is None else KINDS.get(foremost["kind"])
    wanted = [kind.shown_by] if kind is not None and kind.shown_by else []
    return [*wanted, GRAD_NORM.name, OUTPUT_GRAD_NORM.name]
