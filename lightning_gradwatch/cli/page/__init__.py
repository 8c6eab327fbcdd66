"""The report as one self-contained page: the tab's own modules, with the data in the page."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.cli.logs import Logs, Run
from lightning_gradwatch.cli.page.data import MAX_RUNS, gather
from lightning_gradwatch.cli.page.html import assemble

__all__ = ["MAX_RUNS", "build"]


def build(logs: Logs, runs: Sequence[Run]) -> str:
    """The page of the first 20 of the runs, as HTML that needs no network.

    Args:
        logs: Where they are.
        runs: The sickest first.
    """
    return assemble(gather(logs, runs[:MAX_RUNS]))
