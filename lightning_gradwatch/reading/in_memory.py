"""A run that is kept in memory, in the form in which TensorBoard's data providers answer. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tensorboard.data.provider import Run, RunTagFilter, TensorDatum, TensorTimeSeries

from lightning_gradwatch.core.metrics import PLUGIN
from lightning_gradwatch.reading.schema import Array


class Sample(NamedTuple):
    """What was written of a tag at one step.

    Attributes:
        step: The step.
        time: When it was written, in seconds since the epoch.
        values: As in an event file.
    """

    step: int
    time: float
    values: Array


class Content(NamedTuple):
    """What is held of one tag.

    Attributes:
        description: As in the metadata of a tag, encoded.
        samples: At least one, in the order in which they were written.
    """

    description: bytes
    samples: Sequence[Sample]


class MemoryProvider:
    """One run, as ``Store`` asks TensorBoard for it; it has no scalars.

    Context and experiment, of which every provider is told, mean nothing here.

    Args:
        run: Its name.
        contents: What is held of it, by tag.
    """

    def __init__(self, run: str, contents: Mapping[str, Content]) -> None:
        self.run = run
        self._contents = contents

    def list_runs(self, **_: Any) -> list[Run]:
        """The one run."""
        return [Run(run_id=self.run, run_name=self.run, start_time=0.0)]

    def list_tensors(
        self, *, plugin_name: str, run_tag_filter: RunTagFilter | None = None, **_: Any
    ) -> dict[str, dict[str, TensorTimeSeries]]:
        """What there is of each tag."""
        chosen = self._chosen(plugin_name, run_tag_filter)
        return {self.run: {tag: _listed(content) for tag, content in chosen.items()}}

    def read_tensors(
        self, *, plugin_name: str, downsample: int, run_tag_filter: RunTagFilter | None = None, **_: Any
    ) -> dict[str, dict[str, list[TensorDatum]]]:
        """The newest samples of each tag."""
        chosen = self._chosen(plugin_name, run_tag_filter)
        data = {tag: [TensorDatum(*sample) for sample in content.samples] for tag, content in chosen.items()}
        return {self.run: {tag: found[-downsample:] for tag, found in data.items()}}

    def read_last_scalars(self, **_: Any) -> dict[str, dict[str, Any]]:
        """None."""
        return {}

    def read_scalars(self, **_: Any) -> dict[str, dict[str, Any]]:
        """None."""
        return {}

    def _chosen(self, plugin_name: str, chosen: RunTagFilter | None) -> Mapping[str, Content]:
        if plugin_name != PLUGIN or (chosen is not None and chosen.runs is not None and self.run not in chosen.runs):
            return {}
        tags = None if chosen is None else chosen.tags
        return {tag: content for tag, content in self._contents.items() if tags is None or tag in tags}


def text_of(document: str) -> Array:
    """A document as the value of a sample."""
    return np.array([document.encode()], dtype=object)


def _listed(content: Content) -> TensorTimeSeries:
    return TensorTimeSeries(
        max_step=max(sample.step for sample in content.samples),
        max_wall_time=max(sample.time for sample in content.samples),
        plugin_content=content.description,
        description="",
        display_name="",
    )
