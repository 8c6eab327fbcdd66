"""Event files, read in this process through TensorBoard's own reader: no server, no thread."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_accumulator import TENSORS
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS

from lightning_gradwatch.core.metrics import PLUGIN
from lightning_gradwatch.reading.store import Store
from lightning_gradwatch.tensorboard.loader import SAMPLES


class EventReader:
    """The event files of some runs.

    Args:
        directory: Where the runs lie.
        keeps_all: Whether to keep 5000 samples of each series of ours, as the tab does; else only the last one.
    """

    def __init__(self, directory: Path, keeps_all: bool) -> None:
        logging.getLogger("tensorboard").setLevel(logging.CRITICAL)  # a torn file is no news here
        max_samples = SAMPLES if keeps_all else 1
        self.keeps_all = keeps_all
        self._directory = directory
        self._multiplexer = EventMultiplexer(
            size_guidance={TENSORS: 1},
            tensor_size_guidance={PLUGIN: max_samples, SCALARS: max_samples},
            event_file_active_filter=lambda _: True,
            detect_file_replacement=True,
        )
        self._provider = MultiplexerDataProvider(self._multiplexer, str(directory))

    def reload(self, runs: Iterable[str]) -> Store:
        """Read what has been written since to the files of these runs, and show it as it is now."""
        for run in runs:
            self._multiplexer.AddRun(str(self._directory / run), run)
        self._multiplexer.Reload()
        return Store(self._provider, RequestContext())

    def written(self, run: str, tag: str) -> float:
        """When one of our tags was last written, in seconds since the epoch."""
        chosen = RunTagFilter(runs=[run], tags=[tag])
        found = self._provider.list_tensors(
            RequestContext(), experiment_id="", plugin_name=PLUGIN, run_tag_filter=chosen
        )
        return float(found[run][tag].max_wall_time)
