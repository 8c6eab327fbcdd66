"""The record of a run: what GradWatch remembers of it in a rhythm of its own, whatever the loggers do.

The norms of every step, in bins that grow with the run's age; samples whenever they are taken, thinned later;
every single step before an alert. It knows no files: it says what is to be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.core import metrics
from lightning_gradwatch.core.layers import OUTSIDE
from lightning_gradwatch.core.quantities import QUANTITIES
from lightning_gradwatch.core.quantities.several import HISTOGRAM, SEQUENCE, STEPS, STEPS_AROUND
from lightning_gradwatch.core.records import Layer, Observation
from lightning_gradwatch.core.saved import Saved, State
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.outputs.step_log import BLOCK_STEPS, StepLog, lines_of, steps_of
from lightning_gradwatch.outputs.thinning import Thinning
from lightning_gradwatch.reading.bins import Bins
from lightning_gradwatch.reading.schema import Array, Description, UnreadableError, encode_histogram, encode_sequence

PART_STEPS = 1500 * BLOCK_STEPS
"""Steps of one part of a series: loaders keep 2,000 events of a tag, and drop others at random."""


class Value(NamedTuple):
    """What stands under one tag in an event."""

    tag: str
    description: Description
    values: Array


class Event(NamedTuple):
    """What is to be written at one step.

    Attributes:
        step: The step, on the x-axis of the loggers.
        values: One for each tag.
        is_urgent: Whether a process that is killed right after should leave it behind.
    """

    step: int
    values: tuple[Value, ...]
    is_urgent: bool = False


@dataclass
class _Course:
    """How far the record of one optimizer has come.

    Attributes:
        optimizer: Its name; ``""`` if there is only one.
        layers: The present layers, as they came last.
        layer_lists: The lists of layers so far, by their names and sizes; a tag's version is a place in it.
        names: Names of the present one.
        elements: How many elements each of them has.
        vectors: Places of those that are a normalisation layer, or biases by themselves.
        lines: Names of the numbers of the run that stand beside the layers.
        log: Collects their steps.
        samples: Thins out samples that are not thorough.
        thorough: Thins out thorough ones, which must not fall to others that came just before.
    """

    optimizer: str
    layers: tuple[Layer, ...] = ()
    layer_lists: list[tuple[tuple[str, ...], tuple[int, ...]]] = field(default_factory=list)
    names: tuple[str, ...] = ()
    elements: tuple[int, ...] = ()
    vectors: tuple[int, ...] = ()
    lines: tuple[str, ...] = ()
    log: StepLog = field(default_factory=lambda: StepLog(0))
    samples: Thinning = field(default_factory=Thinning)
    thorough: Thinning = field(default_factory=Thinning)

    @property
    def version(self) -> int:
        """Which of the lists of layers is the present one."""
        return self.layer_lists.index((self.names, self.elements))

    def value(self, quantity: str, values: Array, description: Description | None = None, part: int = 0) -> Value:
        """The values of all present layers."""
        tag = metrics.part_tag(metrics.layers_tag(quantity, self.version, self.optimizer), part)
        return Value(tag, description or Description(quantity, self.optimizer, self.version, self.names), values)

    def events(self, quantity: str, bins: Bins | None) -> list[Event]:
        """An event with steps in bins; none for no steps."""
        if bins is None:
            return []
        last = int(bins.last[-1])
        part = max(last, 0) // PART_STEPS if quantity == STEPS else 0
        description = Description(quantity, self.optimizer, self.version, self.names, lines=self.lines)
        if any(self.elements):
            description = replace(description, elements=self.elements, vectors=self.vectors)
        value = self.value(quantity, np.frombuffer(bins.encode(), np.uint8), description, part)
        return [Event(last, (value,), is_urgent=True)]


class RunRecorder:
    """Turns what comes to the host into events, each of which is to be written once.

    Args:
        state: What ``state_dict`` gave before the run was interrupted; None for a new run.
    """

    def __init__(self, state: Mapping[str, object] | None = None) -> None:
        self._courses: dict[str, _Course] = {}
        self._unclaimed = dict(state or {})

    def take(
        self, observations: Iterable[Observation], snapshots: Iterable[Snapshot], alarms: Iterable[str] = ()
    ) -> list[Event]:
        """What is to be written now that these have come.

        Args:
            observations: Steps, in their order.
            snapshots: What samples among them measured.
            alarms: Names of the optimizers of which an alert has just opened.
        """
        alarms = frozenset(alarms)
        events = [event for each in observations for event in self._add(each, each.optimizer in alarms)]
        events += [event for snapshot in snapshots for event in self._add_snapshot(snapshot)]
        for course in (self._courses[name] for name in alarms if name in self._courses):
            events += course.events(STEPS_AROUND, course.log.before_alert())
        return events

    def drain(self) -> list[Event]:
        """Whatever waits: at the end of a run."""
        return [event for course in self._courses.values() for event in course.events(STEPS, course.log.take())]

    def state_dict(self) -> State:
        """The steps that wait, by the optimizer's name: primitives and tensors."""
        found: State = dict(self._unclaimed)
        for name, course in self._courses.items():
            bins = course.log.waiting()
            if bins is not None:
                content = torch.frombuffer(bytearray(bins.encode()), dtype=torch.uint8)
                found[name] = {"layers": len(course.names), "lines": list(course.lines), "bins": content}
        return found

    def _add(self, observation: Observation, is_alarming: bool) -> list[Event]:
        if not observation.steps:
            return []
        course = self._courses.setdefault(observation.optimizer, _Course(observation.optimizer))
        layers, lines, events = observation.layers, lines_of(observation), []
        if layers is not course.layers or lines != course.lines:
            course.layers = layers
            events = self._change(course, layers, lines)
        return events + course.events(STEPS, course.log.add(steps_of(observation), is_alarming))

    def _change(self, course: _Course, layers: tuple[Layer, ...], lines: tuple[str, ...]) -> list[Event]:
        """Begin anew if the layers, or the numbers beside them, are others by now; what waits is of the former ones."""
        names, elements = tuple(layer.name for layer in layers), tuple(layer.num_elements for layer in layers)
        if (names, elements, lines) == (course.names, course.elements, course.lines):
            return []
        events = course.events(STEPS, course.log.take())
        is_first = not course.layer_lists
        course.layer_lists += [] if (names, elements) in course.layer_lists else [(names, elements)]
        course.names, course.elements, course.lines = names, elements, lines
        course.vectors = _vectors(layers)
        course.log = StepLog(len(names), self._saved(course) if is_first else None)
        return events

    def _saved(self, course: _Course) -> Bins | None:
        """What waited when the run was interrupted, if it was of as many layers."""
        state = Saved(self._unclaimed.pop(course.optimizer, {}))
        is_fit = state.take("layers", int, -1) == len(course.names)
        content = state.find("bins", Tensor, lambda found: found.dtype is torch.uint8 and found.ndim == 1)
        if content is None or not is_fit or tuple(state.take("lines", list[str], [])) != course.lines:
            return None
        try:
            return Bins.decode(content.numpy().tobytes(), len(course.names), len(course.lines))
        except UnreadableError:
            return None

    def _add_snapshot(self, snapshot: Snapshot) -> list[Event]:
        """A sample, unless the run is so old that there are enough of them."""
        course = self._courses[snapshot.optimizer]
        if not course.names:  # there are none where `include` wants no layer of this optimizer
            return []
        values = []
        for quantity in (*QUANTITIES, *snapshot.declared):
            numbers = quantity.of(snapshot)
            if numbers is not None:  # a quantity of the user's own says what it is
                own = quantity if quantity.take is None else None
                description = Description(quantity.name, course.optimizer, course.version, course.names, own)
                values.append(course.value(quantity.name, numbers.float().numpy(), description))
        for layer, norms in snapshot.sequences:
            tag = metrics.sequence_tag(layer, course.version, course.optimizer)
            description = Description(SEQUENCE, course.optimizer, course.version, (layer,))
            values.append(Value(tag, description, encode_sequence(norms.numpy())))
        if snapshot.histogram is not None:
            values.append(course.value(HISTOGRAM.name, encode_histogram(snapshot.histogram.numpy())))
        # histograms are rare enough as they are
        thinning = course.samples if snapshot.weight_norm is None else course.thorough
        passes = thinning.passes(snapshot.step, sum(value.values.nbytes for value in values))
        return [Event(snapshot.step, tuple(values))] if values and (passes or snapshot.histogram is not None) else []


def _vectors(layers: Sequence[Layer]) -> tuple[int, ...]:
    """Places of layers that own no matrix; of what is outside the model nobody knows."""
    return tuple(place for place, layer in enumerate(layers) if not layer.has_matrix and layer.name != OUTSIDE)
