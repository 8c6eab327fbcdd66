"""A run that is kept in memory, opened as the command opens one from its files."""

from __future__ import annotations

from lightning_gradwatch.cli.logs import OpenRun, Run
from lightning_gradwatch.outputs.memory import MemoryRecord
from lightning_gradwatch.reading import answers
from lightning_gradwatch.reading.document import Document
from lightning_gradwatch.reading.status import Verdict
from lightning_gradwatch.reading.store import Store


def open_memory(memory: MemoryRecord) -> OpenRun:
    """Everything of the run as it stands now; what comes later does not change it."""
    provider = memory.provider()
    store = Store(provider, None)
    document = answers.run(store, provider.run)
    catalogue = store.catalogue(provider.run)
    alerts = (catalogue.document or Document()).alerts
    run = Run(
        name=provider.run,
        catalogue=catalogue,
        verdict=Verdict(document["status"], document["headline"], document["num_open"]),
        alerts=tuple(alerts),
        num_dropped=document["num_dropped"],
        last_step=catalogue.last_step,
        wall_time=catalogue.wall_time,
        stamp=catalogue.stamp,
        damage=(),
    )
    return OpenRun(run, store, {**document, "alerts": list(alerts)})
