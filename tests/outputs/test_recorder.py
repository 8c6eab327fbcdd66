"""What the recorder asks to be written, from observations and snapshots as watchers report them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from lightning_gradwatch.core.layers import OUTSIDE
from lightning_gradwatch.core.quantities.several import HISTOGRAM, STEPS, STEPS_AROUND
from lightning_gradwatch.core.records import NUM_BINS, Layer, Observation
from lightning_gradwatch.core.sampling import YOUNG_STEPS
from lightning_gradwatch.core.snapshot import Snapshot
from lightning_gradwatch.outputs.recorder import PART_STEPS, Event, RunRecorder
from lightning_gradwatch.outputs.step_log import BLOCK_STEPS
from lightning_gradwatch.reading.bins import Bins

LAYERS = tuple(Layer(name, (f"{name}.weight",)) for name in ("a", "b"))
MAX_EVENTS = 2000
"""What loaders keep of a tag."""


def observation(first: int, num: int = 1, layers: tuple[Layer, ...] = LAYERS, optimizer: str = "") -> Observation:
    """Some steps, whose norms are one more than the step."""
    norms = (torch.arange(first, first + num) + 1.0)[:, None].repeat(1, 1 + len(layers))
    steps, unknown = tuple(range(first, first + num)), (None,) * num
    return Observation(
        first + num - 1, layers, steps, norms, unknown, unknown, 0.1, frozenset(), None, None, None, False, optimizer
    )


def snapshot(step: int, is_thorough: bool = False, has_histogram: bool = False) -> Snapshot:
    numbers = torch.ones(2)
    counts = torch.ones(2, NUM_BINS + 2) if has_histogram else None
    return Snapshot(step, "", LAYERS, numbers, numbers if is_thorough else None, histogram=counts)


def bins_of(events: Iterable[Event], quantity: str = STEPS) -> list[Bins]:
    """The bins in them."""
    values = [value for event in events for value in event.values if value.description.quantity == quantity]
    return [Bins.decode(v.values.tobytes(), len(v.description.layers), len(v.description.lines)) for v in values]


def tags_of(events: Iterable[Event]) -> Counter[str]:
    return Counter(value.tag for event in events for value in event.values)


def test_steps_are_urgent_and_samples_are_not() -> None:
    events = RunRecorder().take([observation(0, 3)], [snapshot(2)])
    assert [(event.step, event.is_urgent) for event in events] == [(2, True), (2, False)]


def test_a_new_list_of_layers_is_a_new_version_and_an_old_one_that_comes_back_is_not() -> None:
    recorder, others = RunRecorder(), (*LAYERS, Layer("c", ("c.weight",)))
    events = [event for i, layers in enumerate((LAYERS, others, LAYERS)) for event in recorder.take(
        [observation(5000 + i, 1, layers)], []
    )]  # fmt: skip
    events += recorder.drain()
    told = [(v.tag, v.description.version, len(v.description.layers)) for event in events for v in event.values]
    first, second = "gradwatch/layers/grad_norm_steps", "gradwatch/layers-2/grad_norm_steps"
    assert told == [(first, 0, 2), (second, 1, 3), (first, 0, 2)]


def test_the_norms_of_every_step_say_how_large_the_layers_are() -> None:
    matrix, norm = (
        Layer("a", ("a.weight",), has_matrix=True, num_elements=12),
        Layer("b", ("b.weight",), num_elements=3),
    )
    outside = Layer(OUTSIDE, ("parameter 0",), num_elements=4)
    recorder = RunRecorder()
    (event,) = recorder.take([observation(0, 1, (matrix, norm, outside))], [])
    about = event.values[0].description
    assert (about.elements, about.vectors) == ((12, 3, 4), (1,)), "nobody knows what is outside the model"
    (larger,) = recorder.take([observation(1, 1, (replace(matrix, num_elements=20), norm, outside))], [])
    assert larger.values[0].description.version == 1, "its norms cannot be compared with those before"


def test_a_long_series_stands_in_parts_that_loaders_keep_whole() -> None:
    """The parts follow from the step alone, so a resumed run finds them."""
    recorder, counts = RunRecorder(), Counter[str]()
    for first in range(0, YOUNG_STEPS, 5):
        counts.update(tags_of(recorder.take([observation(first, 5)], [])))
    for first in range(YOUNG_STEPS, 2 * PART_STEPS, BLOCK_STEPS):
        counts.update(tags_of(recorder.take([observation(first, BLOCK_STEPS)], [])))
    tag = "gradwatch/layers/grad_norm_steps"
    assert set(counts) == {tag, f"{tag}/1", f"{tag}/2"}
    assert 1500 < max(counts.values()) <= MAX_EVENTS - 100
    resumed = RunRecorder()
    events = [*resumed.take([observation(20 * PART_STEPS, 15)], []), *resumed.drain()]
    assert set(tags_of(events)) == {f"{tag}/20"}


def test_samples_are_thinned_with_age_and_thorough_ones_do_not_fall_to_the_others() -> None:
    recorder, counts = RunRecorder(), Counter[str]()
    recorder.take([observation(0)], [])
    for step in range(0, 300_000, 10):
        counts.update(tags_of(recorder.take([], [snapshot(step, is_thorough=step % 50 == 0)])))
    outputs, weights = (counts[f"gradwatch/layers/{name}"] for name in ("output_grad_norm", "weight_norm"))
    assert weights > 250
    assert outputs > 1.5 * weights
    assert outputs < MAX_EVENTS
    young = RunRecorder()
    young.take([observation(0)], [])
    early = [event for step in range(YOUNG_STEPS) for event in young.take([], [snapshot(step)])]
    assert len(early) == YOUNG_STEPS


def test_a_histogram_is_written_whenever_it_was_taken() -> None:
    recorder = RunRecorder()
    recorder.take([observation(0)], [])
    events = [event for step in (10**6, 10**6 + 1) for event in recorder.take([], [snapshot(step, True, True)])]
    assert tags_of(events)[f"gradwatch/layers/{HISTOGRAM.name}"] == 2


def test_the_steps_before_an_alert_are_those_of_its_optimizer() -> None:
    recorder = RunRecorder()
    recorder.take([observation(50_000, 150, optimizer=name) for name in ("g", "d")], [])
    events = recorder.take([], [], alarms=["d", "nobody"])
    (bins,) = bins_of(events, STEPS_AROUND)
    assert len(bins) == 150
    assert tags_of(events) == {"gradwatch/d/layers/grad_norm_steps_around_alerts": 1}
    assert recorder.take([], [], alarms=["d"]) == []


def test_what_waits_goes_into_a_checkpoint_and_is_written_by_whoever_resumes() -> None:
    recorder = RunRecorder()
    assert recorder.take([observation(5_000, 33)], []) == []
    state = recorder.state_dict()
    resumed = RunRecorder(state)
    assert str(resumed.state_dict()) == str(state)  # before its first step it hands on what it was given
    (bins,) = bins_of([*resumed.take([observation(5_033, 20)], []), *resumed.drain()])
    assert (bins.first[0], bins.last[-1], bins.count.sum()) == (5_000, 5_052, 53)


@pytest.mark.parametrize("damage", ["other layers", "nonsense", "no tensor"])
def test_what_cannot_be_taken_back_is_left_behind(damage: str) -> None:
    recorder = RunRecorder()
    recorder.take([observation(5_000, 33)], [])
    state = recorder.state_dict()
    layers = LAYERS[:1] if damage == "other layers" else LAYERS
    if damage != "other layers":
        bins = torch.zeros(9, dtype=torch.uint8) if damage == "nonsense" else "bins"
        state[""] = {**state[""], "bins": bins}  # type: ignore[dict-item]
    resumed = RunRecorder(state)
    (found,) = bins_of([*resumed.take([observation(5_033, 20, layers)], []), *resumed.drain()])
    assert found.first[0] == 5_033


def test_steps_that_a_loss_scaler_skips_have_no_gradient_and_other_bad_ones_are_kept() -> None:
    bad = observation(0, 3)
    bad.norms[1] = torch.inf
    (skipped,) = bins_of(RunRecorder().take([replace(bad, is_scaled=True)], []))
    (kept,) = bins_of(RunRecorder().take([bad], []))
    assert (skipped.first.tolist(), kept.first.tolist()) == ([0, 2], [0, 1, 2])
    assert kept.high[1].tolist() == [torch.inf, torch.inf]


def test_nothing_is_written_of_no_layers() -> None:
    recorder = RunRecorder()
    events = recorder.take([observation(0, 3, layers=())], [Snapshot(2, "", ())])
    assert [*events, *recorder.drain()] == []
    assert recorder.state_dict() == {}
