"""The report of a run in a terminal: the verdict first, then the alerts, then the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lightning_gradwatch.cli import words
from lightning_gradwatch.cli.born import birth
from lightning_gradwatch.cli.drawing import MAX_ROWS, draw, shorten
from lightning_gradwatch.cli.glyphs import STYLES, glyphs_for
from lightning_gradwatch.cli.logs import Logs, OpenRun, Run
from lightning_gradwatch.cli.lost import bars
from lightning_gradwatch.cli.recurrence import through_time
from lightning_gradwatch.cli.selection import pictures
from lightning_gradwatch.reading.alert import AlertRecord
from lightning_gradwatch.reading.answers import USUAL, Layout
from lightning_gradwatch.reading.born import born_of
from lightning_gradwatch.reading.left_out import of_quantity
from lightning_gradwatch.reading.lost import lost_of
from lightning_gradwatch.reading.status import urgency
from lightning_gradwatch.reading.tables import STATUSES, Status
from lightning_gradwatch.reading.trials import HEADER, headroom, not_tried, recipes, rows_of, summary

_MAX_OPEN, _MAX_ENDED = 4, 3
_STATUS_WIDTH, _STEP_WIDTH, _GAP = 13, 10, 2


@dataclass(frozen=True)
class Scene:
    """What a report needs besides the run.

    Attributes:
        logs: Where the run is.
        console: Where it will be shown.
        quantity: What the picture shows; None for what suits the run.
        now: The present, in seconds since the epoch; None to leave out how long ago the run was written.
        has_bars: Whether bars show where the gradient of an alert is lost; the words tell it in any case.
        layout: How gradient norms are shown, and which layers have rows.
    """

    logs: Logs
    console: Console
    quantity: str | None = None
    now: float | None = None
    has_bars: bool = True
    layout: Layout = USUAL

    def name(self, run: Run) -> str:
        """What a run is called."""
        return words.safe(self.logs.title(run))


def overview(runs: Sequence[Run], scene: Scene) -> RenderableType:
    """All runs, one in a line."""
    names = [scene.name(run) for run in runs]
    name_width = min(max(map(len, names)), max(scene.console.width // 4, 12))
    widths = _STATUS_WIDTH, name_width, _STEP_WIDTH
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    table.add_column("", no_wrap=True, width=_STATUS_WIDTH)
    table.add_column("run", no_wrap=True, width=name_width)
    room = max(scene.console.width - sum(widths) - 3 * _GAP, 10)
    table.add_column("what GradWatch says", no_wrap=True, overflow="ellipsis", width=room)
    table.add_column("last step", no_wrap=True, justify="right", width=_STEP_WIDTH)
    for run, name in zip(runs, names, strict=True):
        status = run.verdict.status
        sign = Text(f"{glyphs_for(scene.console).status[status]} {STATUSES[status]}", STYLES[status])
        step = "" if run.last_step is None else f"{run.last_step:,}"
        table.add_row(
            sign,
            Text(shorten(name, name_width, glyphs_for(scene.console))),
            Text(words.safe(run.verdict.headline)),
            Text(step),
        )
    return table


def report(run: Run, scene: Scene, max_rows: int = MAX_ROWS) -> RenderableType:
    """Everything about one run; its heatmap has ``max_rows`` rows at most."""
    whole = scene.logs.open(run)
    parts: list[RenderableType] = [_verdict(whole, scene)]
    parts += [Padding(part, (1, 0, 0, 0)) for part in _alerts(run, scene)]
    found = list(pictures(whole, scene.quantity, scene.console, scene.layout._replace(most=max_rows)))
    if scene.quantity is not None and not found:
        nothing = of_quantity(run.left_out, scene.quantity)
        nothing = words.safe(nothing or f"This run holds nothing of the quantity {scene.quantity} so far.")
        parts.append(Padding(Text(nothing, "dim"), (1, 0, 0, 0)))
    for optimizer, picture, ailing in found:
        is_one_of_many = len(whole.document["optimizers"]) > 1
        heading = [Text(f"Optimizer {words.safe(optimizer)}", "bold")] if is_one_of_many else []
        parts.append(Padding(Group(*heading, draw(picture, scene.console, ailing)), (1, 0, 0, 0)))
    if (memory := through_time(whole, scene.console)) is not None:
        parts.append(Padding(memory, (1, 0, 0, 0)))
    return Group(*parts)


def _verdict(whole: OpenRun, scene: Scene) -> RenderableType:
    run = whole.run
    status, glyphs = run.verdict.status, glyphs_for(scene.console)
    text = Text(f"{glyphs.status[status]} {STATUSES[status].upper()}  ", STYLES[status])
    text.append(words.safe(run.verdict.headline), "bold")
    facts = glyphs.dot.join([scene.name(run), *_facts(whole, scene)])
    colour = STYLES[status].split()[-1]
    unread = [Text(line, STYLES["unreadable"]) for line in words.untold(run)]
    return Panel(Group(text, *unread, Text(facts, "dim" if scene.console.color_system else "")), border_style=colour)


def _facts(whole: OpenRun, scene: Scene) -> Iterator[str]:
    run, document = whole.run, whole.document
    newest = [optimizer["versions"][-1] for optimizer in document["optimizers"] if optimizer["versions"]]
    if newest:
        num_layers = sum(len(version["layers"]) for version in newest)
        yield f"{num_layers:,} layer{'' if num_layers == 1 else 's'}"
        first = min(version["first_step"] for version in newest)
        yield f"step {first:,}" if first == run.last_step else f"steps {first:,} to {run.last_step:,}"
    if (tag := document["loss_tag"]) is not None:
        losses = whole.store.scalars(run.name, tag).values
        _, name = whole.catalogue.lines.get(tag, ("", tag))
        yield f"{words.safe(name)} {words.short(losses[0])} to {words.short(losses[-1])}"
    yield words.safe(run.state_text)
    if run.wall_time:
        when = words.clock(run.wall_time) if scene.now is None else words.age(scene.now - run.wall_time)
        yield f"last written {when}"


def _alerts(run: Run, scene: Scene) -> Iterator[RenderableType]:
    """The open ones in full, and the one for which remedies were tried; the other ended ones in a line."""
    ranked = sorted(run.alerts, key=urgency)
    open_ones = [alert for alert in ranked if alert["until_step"] is None]
    ended = [alert for alert in ranked if alert["until_step"] is not None]
    yield from (_in_full(alert, scene) for alert in open_ones[:_MAX_OPEN])
    in_full = ([alert for alert in ended if alert.get("prescription")] or ended[: not open_ones])[:1]
    yield from (_in_full(alert, scene) for alert in in_full)  # what was tried took time, and stands nowhere else
    ended = [alert for alert in ended if alert not in in_full]
    rest = len(open_ones[_MAX_OPEN:]) + len(ended[_MAX_ENDED:]) + run.num_dropped
    lines = [_heading(alert, scene) for alert in ended[:_MAX_ENDED]]
    lines += [Text(f"and {rest:,} more; --json lists them", "dim")] if rest else []
    if lines:
        yield Group(*lines)


def _in_full(alert: AlertRecord, scene: Scene) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    table.add_row("What", Text(words.explanation(alert)))
    if reason := words.reason(alert):
        table.add_row("Why", Text(reason))
    if scene.has_bars and (where := lost_of(alert)) is not None:
        table.add_row("Where", bars(where, scene.console))
    if (born := born_of(alert)) is not None:
        table.add_row("Born", birth(born, scene.console))
    for place, remedy in enumerate(words.remedies(alert)):
        table.add_row("" if place else "Try", Text(f"{place + 1}. {remedy}"))
    trials = [Padding(part, (0, 0, 0, 2)) for part in _tried(alert)]
    return Group(_heading(alert, scene), Padding(table, (0, 0, 0, 2)), *trials)


def _tried(alert: AlertRecord) -> Iterator[RenderableType]:
    """What remedies did to a copy of the model, and how to apply the best."""
    prescription = alert.get("prescription")
    if not isinstance(prescription, dict):
        return
    yield Text(f"{summary(prescription)}:")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for place, name in enumerate(HEADER):
        table.add_column(name, justify="right" if place > 1 else "left", overflow="fold")
    for row in rows_of(prescription):
        table.add_row(*(Text(words.safe(cell)) for cell in row), style="green" if row[1] == "helps" else "")
    yield Padding(table, (0, 0, 0, 2))
    for _, code in recipes(prescription)[:1]:
        yield Text("The first of them in code:")
        yield Padding(Text("\n".join(map(words.safe, code.splitlines()))), (0, 0, 0, 2))
    if told := headroom(prescription):
        yield Text(words.safe(told))
    if missing := not_tried(prescription):
        yield Text(f"Not tried: {words.safe('; '.join(missing))}.", "dim")


def _heading(alert: AlertRecord, scene: Scene) -> Text:
    glyphs = glyphs_for(scene.console)
    is_over = alert["until_step"] is not None
    status: Status = "recovered" if is_over else "sick" if alert["level"] == "alert" else "notice"
    text = Text(f"{glyphs.status[status]} {words.title(alert)}", STYLES[status])
    facts = [words.since(alert), words.safe(alert["layer"]), words.safe(alert["optimizer"])]
    return text.append(glyphs.dot + glyphs.dot.join(filter(None, facts)), "default" if not is_over else "dim")
