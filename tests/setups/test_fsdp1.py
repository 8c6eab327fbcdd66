"""FSDP1 in two real processes, against one process that holds everything and sees the same batches."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.setups.acting import assert_acted_alike
from tests.setups.fsdp1_training import (
    ALERT_STEPS,
    CLIPPING,
    HALF_STEPS,
    INTERVENTIONS,
    KINDS,
    NETS,
    NUM_COUNTED_STEPS,
    NUM_RESUMED_STEPS,
    PRECISIONS,
    clip,
    measure,
)
from tests.setups.processes import run_ranks
from tests.setups.published import Numbers, numbers
from tests.setups.sharded_training import EVERY
from tests.tasks import read_events, scalars

OUTPUTS = "gradwatch/layers/output_grad_norm"
LAYERS = ["net.0", "net.1", "net.3", "net.4", "net.5"]
ELEMENTS = [16, 144, 136, 27, 4]
Told = tuple[Path, list[dict[str, Any]]]


def told_by(function: str, directory: Path, num_ranks: int = 2) -> Told:
    """What each rank tells, when it runs a function of the training module."""
    script = f"from tests.setups import fsdp1_training as training\n\ntraining.run(training.{function})\n"
    return directory, run_ranks(script, directory, num_ranks)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """One process, on the whole batches."""
    directory = tmp_path_factory.mktemp("alone")
    measure("alone", directory)
    return numbers(directory)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_one", tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_all", tmp_path_factory.mktemp("measured"))


def assert_same(directory: Path, alone: Numbers, num_ranks: int = 2) -> None:
    """Every number at every step to 1e-5.

    The loss of a rank is the mean over its own part of the batch, so that the gradients at its layers' outputs are
    larger by the number of ranks than those of the whole batch; the root mean square over the ranks by its root.
    """
    here = numbers(directory)
    assert here.keys() == alone.keys()
    assert len({tag for tag, _ in here}) > 20
    for place, value in alone.items():
        expected = torch.tensor(value, dtype=torch.float64)
        if place[0] == OUTPUTS:
            expected = torch.where(expected > 0, expected * num_ranks**0.5, expected)
        found = torch.tensor(here[place], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, equal_nan=True, msg=str(place))


def assert_named(directory: Path) -> None:
    content = read_events(directory).SummaryMetadata("gradwatch/layers/grad_norm_steps").plugin_data.content
    assert json.loads(content)["layers"] == LAYERS
    assert json.loads(content)["elements"] == ELEMENTS, "of the whole, wherever its parts are"


@pytest.mark.slow
def test_the_numbers_are_those_of_one_process(usual: Told, alone: Numbers) -> None:
    directory, ranks = usual
    assert_same(directory / "policy", alone)
    assert_named(directory / "policy")
    assert ranks[0] == ranks[1]
    assert not ranks[0]["policy"]["is_off"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "policy"])
def test_however_it_is_wrapped_and_sharded_the_numbers_are_those_of_one_process(
    measured: Told, alone: Numbers, kind: str
) -> None:
    directory, ranks = measured
    assert_same(directory / kind, alone)
    assert_named(directory / kind)
    assert ranks[0][kind] == ranks[1][kind]
    assert not ranks[0][kind]["is_off"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Adam", "Adam-1"])
def test_each_of_two_optimizers_is_watched_by_itself(measured: Told, name: str) -> None:
    directory, ranks = measured
    told = ranks[0]["two"]
    assert told == ranks[1]["two"]
    assert not told["is_off"]
    shown = scalars(read_events(directory / "two"), f"gradwatch/{name}/total_norm")
    assert len(shown) >= 4
    given = {int(batch): norm for batch, norm in told["given"][name].items()}
    for step, norm in shown.items():
        latest = max(batch for batch in given if batch <= step)
        assert norm == pytest.approx(given[latest], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_in_half_precision_norms_are_those_of_the_gradients_that_torch_gathers(measured: Told, precision: str) -> None:
    directory, ranks = measured
    assert not ranks[0][precision]["is_off"]
    truth = torch.tensor(ranks[0][precision]["truth"], dtype=torch.float64)
    expected = truth.view(HALF_STEPS, len(LAYERS), 2).square().sum(-1).sqrt()  # a weight and a bias each
    here = numbers(directory / precision)
    for step in (EVERY - 1, HALF_STEPS - 1):
        found = torch.tensor([here[f"grad_norm/{layer}", step] for layer in LAYERS], dtype=torch.float64)
        torch.testing.assert_close(found, expected[step], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_all_ranks_act_on_an_alert_at_the_same_step(tmp_path: Path) -> None:
    assert_acted_alike(told_by("act_all", tmp_path)[1])


@pytest.mark.slow
def test_replicas_of_shards_count_once(alone: Numbers, tmp_path: Path) -> None:
    directory, ranks = told_by("measure_hybrid", tmp_path, num_ranks=4)
    assert_same(directory / "hybrid", alone, num_ranks=4)
    assert_named(directory / "hybrid")
    assert ranks == [ranks[0]] * 4
    assert not ranks[0]["hybrid"]["is_off"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_alerts_are_those_of_one_process_on_every_rank(measured: Told, tmp_path: Path, name: str) -> None:
    expected = json.loads(json.dumps(measure("alone", tmp_path, net=NETS[name], max_steps=ALERT_STEPS)))["alerts"]
    assert bool(expected) == (name != "frozen")
    for kind in ("policy", "not wrapped"):
        assert [rank[f"{name} {kind}"]["alerts"] for rank in measured[1]] == [expected] * 2


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("clip_all", tmp_path_factory.mktemp("clipped"))


@pytest.fixture(scope="module")
def skipped(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("skip_all", tmp_path_factory.mktemp("skipped"))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return clip("alone", "nothing", tmp_path_factory.mktemp("untouched"))


def is_close(ours: list[Any], theirs: list[Any]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-6) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPPING)
def test_clipping_leaves_the_weights_of_one_process(
    clipped: Told, untouched: list[Any], tmp_path: Path, name: str
) -> None:
    truth = clip("alone", name, tmp_path)
    assert not is_close(truth, untouched)
    for rank in clipped[1]:
        assert is_close(rank[name], truth)
    if name == "value":
        assert is_close(clipped[1][0]["no_shard"], truth)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in INTERVENTIONS if name not in CLIPPING])
def test_skipping_leaves_the_weights_of_one_process(skipped: Told, tmp_path: Path, name: str) -> None:
    truth = clip("alone", name, tmp_path)
    assert all(torch.tensor(weights).isfinite().all() for weights in truth)
    for rank in skipped[1]:
        assert is_close(rank[name], truth)


@pytest.mark.slow
def test_what_cannot_be_right_is_refused_with_the_cure(skipped: Told) -> None:
    for rank in skipped[1]:
        assert re.search("`auto_clip` must be .* where these are sharded, but AGC.*To cure it", rank["agc"])
        for how in ("flat", "flat by hand"):
            assert re.search("must be one that keeps .* but 'use_orig_params=False' came. To cure it", rank[how])


@pytest.mark.slow
def test_a_checkpoint_goes_on_where_it_was_taken(tmp_path: Path) -> None:
    directory, ranks = told_by("resume_all", tmp_path)
    assert ranks[0] == ranks[1]
    for name in ("clipping", "clipping, one file"):
        (_, steps, whole), (_, resumed_steps, resumed) = ranks[0][name]
        assert steps == resumed_steps == [NUM_RESUMED_STEPS]
        assert is_close(resumed, whole)
    (alerts, *_), (after, *_) = ranks[0]["alerting"]
    assert [kind for kind, *_ in alerts] == ["vanishing"]
    assert after == alerts
    opened = [json.loads(line) for line in (directory / "alerting" / "alerts.jsonl").read_text().splitlines()]
    assert [line["event"] for line in opened] == ["opened"]


@pytest.mark.slow
def test_ranks_talk_once_per_sample_or_publication_and_once_per_step_if_it_may_be_changed(tmp_path: Path) -> None:
    num_publications = NUM_COUNTED_STEPS // EVERY + 1  # one at the end
    for rank in told_by("count_all", tmp_path)[1]:
        more: dict[str, Any] = {name: dict(Counter(counts) - Counter(rank["bare"])) for name, counts in rank.items()}
        assert more == {
            "bare": {},
            "control": {"gloo:all_reduce": NUM_COUNTED_STEPS},
            "watched": {"gloo:all_reduce": 2 + num_publications},
            "clipped": {"gloo:all_reduce": NUM_COUNTED_STEPS + num_publications},
            "skipping": {"gloo:all_reduce": NUM_COUNTED_STEPS + num_publications},
        }
