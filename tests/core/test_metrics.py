"""Names of the numbers, and which numbers there are."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.metrics import (
    ALERTS,
    CHARTS,
    OVERHEAD,
    VANISHING,
    is_own,
    layer_histogram_tag,
    layer_norm_tag,
    layers_tag,
    margin_tags,
    monitored,
    of_optimizer,
    row_norms,
    run_level,
    sequence_tag,
)
from lightning_gradwatch.core.records import Clip, Layer, Publication, Window


def publication(**changes: Any) -> Publication:
    """Numbers of three steps of one layer."""
    last, low, median, high = (torch.tensor([value, value]) for value in (2.0, 1.0, 1.5, 4.0))
    plain = Publication(7, "", (Layer("net.0", ("weight",)),), Window(3, last, low, median, high), {})
    return replace(plain, **changes)


NORMS = {"total_norm": 2.0, "total_norm_min": 1.0, "total_norm_median": 1.5, "total_norm_max": 4.0}


def under(prefix: str, numbers: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in numbers.items()}


def test_a_run_has_the_norms_of_its_window_its_scores_and_its_alerts() -> None:
    scores = {"vanishing": 0.5, "skipped_steps": 0.0}
    expected = under("gradwatch", {**NORMS, "vanishing": 0.5, "alerts": 3.0})
    assert run_level(publication(scores=scores), 3) == expected
    assert run_level(publication(scores={"skipped_steps": 2.0}), 0)["gradwatch/skipped_steps"] == 2.0
    assert run_level(publication(overhead_percent=1.25), 0)[OVERHEAD] == 1.25


def test_of_several_optimizers_each_has_its_own_tags_but_the_alerts_are_the_runs() -> None:
    numbers = run_level(publication(optimizer="critic", overhead_percent=2.0), 1)
    assert numbers == {**under("gradwatch/critic", NORMS), ALERTS: 1.0, OVERHEAD: 2.0}
    assert set(margin_tags("critic")) < set(numbers)


def test_a_number_that_does_not_exist_is_left_out_and_one_that_is_bad_is_not() -> None:
    nothing, bad = torch.tensor([math.nan, math.nan]), torch.tensor([math.inf, math.inf])
    window = Window(3, bad, nothing, nothing, nothing)
    assert run_level(publication(window=window), 0) == {"gradwatch/total_norm": math.inf, ALERTS: 0.0}


def test_each_policy_has_its_numbers_and_a_threshold_if_there_is_one() -> None:
    clips = (Clip(1.5, 0.5, 1.0, 4, 1), Clip(math.nan, 1.0, 2.0, 4, 0), Clip(math.inf, 1.0, 2.0, 4, 0))
    numbers = {name: value for name, value in run_level(publication(clips=clips), 0).items() if "clip" in name}
    assert numbers == under(
        "gradwatch",
        {
            "clip_coefficient": 0.5, "clipped_norm": 1.0, "clipped_percent": 25.0, "clip_threshold": 1.5,
            "clip_coefficient-2": 1.0, "clipped_norm-2": 2.0, "clipped_percent-2": 0.0,
            "clip_coefficient-3": 1.0, "clipped_norm-3": 2.0, "clipped_percent-3": 0.0,
        },
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["", "Adam-1"])
def test_every_tag_is_known_as_one_of_ours(optimizer: str) -> None:
    tags = [*run_level(publication(optimizer=optimizer), 0), *monitored(0.0, 0), *margin_tags(optimizer)]
    tags += [layer_norm_tag("net.0", optimizer), layer_histogram_tag("net.0", optimizer)]
    tags += [layers_tag("norm", 1, optimizer), sequence_tag("lstm", 1, optimizer)]
    assert all(map(is_own, tags))
    assert all((optimizer in tag) == bool(optimizer) for tag in tags if tag not in (ALERTS, VANISHING) and optimizer)
    assert not is_own("loss")
    assert not is_own("gradwatcher/loss")


def test_a_new_list_of_layers_has_new_tags() -> None:
    assert [layers_tag("norm", version) for version in range(3)] == [
        "gradwatch/layers/norm", "gradwatch/layers-2/norm", "gradwatch/layers-3/norm"
    ]  # fmt: skip
    assert sequence_tag("lstm", 1, "Adam") == "gradwatch/Adam/sequence-2/lstm"


def test_charts_show_the_tags_that_they_name_of_every_optimizer_and_policy() -> None:
    scores = {"decades_lost": 1.0, "vanishing_through_time": 1.0, "exploding": 1.0, "update_ratio": 1.0}
    clips = (Clip(1.0, 0.5, 1.0, 4, 1),) * 2
    tags = [
        tag for name in ("", "Adam") for tag in run_level(publication(optimizer=name, scores=scores, clips=clips), 0)
    ]
    shown = {title: [tag for tag in tags if re.fullmatch(pattern, tag)] for title, pattern in CHARTS.items()}
    num_tags = {title: len(set(found)) for title, found in shown.items()}
    assert list(num_tags.values()) == [4, 2, 2, 4, 1]
    assert not [tag for found in shown.values() for tag in found if "total_norm" in tag]


def test_what_callbacks_may_monitor_has_the_tags_that_are_documented() -> None:
    assert monitored(0.25, 2) == {"gradwatch/vanishing": 0.25, "gradwatch/alerts": 2.0}
    assert of_optimizer("gradwatch/vanishing", "") == VANISHING


@given(st.lists(st.just(-1.0) | st.floats(0, 1e6), min_size=1, max_size=8), st.data())
def test_a_row_has_the_norm_of_its_layers_that_have_one(norms: list[float], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(norms) - 1), unique=True, min_size=1))
    present = torch.tensor([norms[i] for i in places if norms[i] >= 0], dtype=torch.float64)
    expected = {"row": float(present.norm())} if len(present) else {}
    assert row_norms(norms, {"row": places}) == pytest.approx(expected)


def test_a_norm_that_is_not_finite_stays_in_its_row() -> None:
    rolled = row_norms([math.nan, 3.0, 4.0], {"bad": [0, 1], "good": [1, 2]})
    assert math.isnan(rolled["bad"])
    assert rolled["good"] == 5.0
