"""What follows an alert, another fit or a refusal under DeepSpeed, in two real processes, against one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_gradwatch.reading.schema import Description
from tests.setups.acting import assert_acted_alike
from tests.setups.deepspeed.ranks import Told, told_by
from tests.setups.deepspeed.runs_training import (
    ACTING,
    NUM_FIRST_STEPS,
    NUM_WEIGHED_STEPS,
    REFITTED,
    WEIGHED,
    fit_after_refusals,
    fit_twice,
    weigh,
)
from tests.setups.deepspeed.test_deepspeed import assert_same, is_close
from tests.setups.published import numbers
from tests.tasks import read_events, recorded

pytestmark = pytest.mark.slow
HERE = "runs_training"


@pytest.fixture(scope="module")
def acted(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("act_all", tmp_path_factory.mktemp("acted"), HERE)


@pytest.mark.parametrize("name", ACTING)
def test_all_ranks_act_on_an_alert_at_the_same_step(acted: Told, name: str) -> None:
    assert_acted_alike([rank[name] for rank in acted[1]])


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("weigh_all", tmp_path_factory.mktemp("weighed"), HERE)


def losses(directory: Path) -> dict[int, float]:
    """The loss of every step, but of those that a loss scaler has skipped."""
    events, tag = read_events(directory), "gradwatch/layers/grad_norm_steps"
    place = Description.decode(events.SummaryMetadata(tag).plugin_data.content).lines.index("loss")
    bins = recorded(events, tag)
    return dict(zip(bins.last.tolist(), bins.lines[:, place, 2].tolist(), strict=True))


@pytest.mark.parametrize(("stage", "accumulate"), WEIGHED)
def test_the_loss_in_half_precision_is_that_of_one_process(
    weighed: Told, tmp_path: Path, stage: int, accumulate: int
) -> None:
    weigh(0, accumulate, tmp_path)
    alone, found = losses(tmp_path), losses(weighed[0] / f"{stage} {accumulate}")
    assert len(found) >= NUM_WEIGHED_STEPS // 2
    # in one process the model itself divides its loss once more, as DeepSpeed does
    assert found == pytest.approx({step: alone[step] * accumulate for step in found}, rel=2e-3)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("fit_all", tmp_path_factory.mktemp("fitted"), HERE)


@pytest.mark.parametrize("net", ["usual", "sick"])
@pytest.mark.parametrize("stage", REFITTED)
def test_a_second_fit_goes_on_with_the_first(fitted: Told, tmp_path: Path, stage: int, net: str) -> None:
    alone = fit_twice(0, net, tmp_path)
    directory, ranks = fitted
    name = f"{net} {stage}"
    assert ranks[0][name] == ranks[1][name] == json.loads(json.dumps(alone))
    assert [kind for kind, _ in alone["alerts"][1]] == (["vanishing"] if net == "sick" else [])
    if net == "usual":
        # the weights before the last step of the first fit, of which ranks hold parts, are not kept for the second
        lost = [(tag, NUM_FIRST_STEPS) for tag in ("gradwatch/update_ratio", "gradwatch/layers/update_ratio")]
        assert_same(directory / name, {at: value for at, value in numbers(tmp_path).items() if at not in lost})


@pytest.mark.parametrize("stage", REFITTED)
def test_a_fit_after_a_refused_one_is_watched(fitted: Told, tmp_path: Path, stage: int) -> None:
    fit_after_refusals(0, tmp_path)
    directory, ranks = fitted
    for rank in ranks:
        told = rank[f"refused {stage}"]
        assert "stage 0" in told["refused"][0]
        assert "AGC" in told["refused"][1]
        assert not told["is_off"]
    assert_same(directory / f"refused {stage}", numbers(tmp_path))


def test_training_goes_on_from_the_checkpoint_of_an_alert(tmp_path: Path) -> None:
    for rank in told_by("resume_all", tmp_path, HERE)[1]:
        for whole, resumed, half in rank.values():
            assert is_close(resumed, whole)
            assert not is_close(half, whole)
