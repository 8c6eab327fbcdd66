"""A run that is kept in memory, opened as the command opens one from its files."""

from __future__ import annotations

import time

from lightning_gradwatch.cli.logs import OpenRun, Run
from lightning_gradwatch.outputs.memory import MemoryRecord
from lightning_gradwatch.reading import answers
from lightning_gradwatch.reading.document import Document
from lightning_gradwatch.reading.status import Verdict, state_of
from lightning_gradwatch.reading.store import Store


def open_memory(memory: MemoryRecord) -> OpenRun:
    """Everything of the run as it stands now; what comes later does not change it."""
    provider = memory.provider()
    store = Store(provider, None)
    document = answers.run(store, provider.run)
    catalogue = store.catalogue(provider.run)
    told = catalogue.document or Document()
    state, state_text = state_of(told.end, catalogue.wall_time, time.time())
    run = Run(
        name=provider.run,
        catalogue=catalogue,
        verdict=Verdict(document["status"], document["headline"], document["num_open"]),
        alerts=tuple(told.alerts),
        num_dropped=document["num_dropped"],
        last_step=catalogue.last_step,
        wall_time=catalogue.wall_time,
        stamp=catalogue.stamp,
        damage=(),
        left_out=tuple(told.left_out),
        state=state,
        state_text=state_text,
    )
    return OpenRun(run, store, {**document, "alerts": list(told.alerts)})
