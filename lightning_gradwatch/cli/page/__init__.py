"""The report as one self-contained page: the tab's own modules, with the data in the page."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.cli.logs import Logs, OpenRun, Run
from lightning_gradwatch.cli.page.data import MAX_RUNS, Limits, gather
from lightning_gradwatch.cli.page.html import assemble, assemble_inline

__all__ = ["MAX_RUNS", "build", "build_inline"]


def build(logs: Logs, runs: Sequence[Run]) -> str:
    """The page of the first 20 of the runs, as HTML that needs no network.

    Args:
        logs: Where they are.
        runs: The sickest first.
    """
    return assemble(gather((logs.open(run), logs.title(run)) for run in runs[:MAX_RUNS]))


def build_inline(run: OpenRun, max_bytes: int) -> str:
    """The page of one run for a frame in a notebook, with fewer columns where it would become too large.

    Args:
        run: The run.
        max_bytes: Size of the page at most, if the names of the layers allow it.
    """
    limits = Limits()
    while True:
        page = assemble_inline(gather([(run, run.run.name)], limits))
        if len(page) <= max_bytes or limits.is_least:
            return page
        limits = limits.halved()
