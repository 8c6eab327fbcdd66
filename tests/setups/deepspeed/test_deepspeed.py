"""DeepSpeed in two real processes, against one process that holds everything and sees the same batches."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.setups.deepspeed.deepspeed_training import (
    ACCUMULATING,
    ALERT_STEPS,
    BAD,
    CLIPPED,
    COMPOSED,
    HALF_STEPS,
    HALVES,
    NUM_COUNTED_STEPS,
    NUM_RESUMED_STEPS,
    STAGES,
    VARIANTS,
    clip,
    measure,
    spare,
)
from tests.setups.deepspeed.ranks import Told, told_by
from tests.setups.failing import FAILURES, REACHING, assert_survived
from tests.setups.fsdp1_training import NETS
from tests.setups.published import Numbers, numbers
from tests.setups.sharded_training import EVERY
from tests.tasks import read_events

OUTPUTS = "gradwatch/layers/output_grad_norm"
LAYERS = ["net.0", "net.1", "net.3", "net.4", "net.5"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    """One process, on the whole batches."""
    found = {}
    for name, options in (("", {}), (" accumulating", ACCUMULATING), (" spare", {"net": spare})):
        directory = tmp_path_factory.mktemp("alone")
        measure(0, directory, **options)  # type: ignore[arg-type]
        found[name] = numbers(directory)
    return found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_one", tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_all", tmp_path_factory.mktemp("measured"))


def assert_same(directory: Path, alone: Numbers, ignored: Collection[str] = ()) -> None:
    """Every number at every step to 1e-5, but those whose tags begin like the ignored ones.

    The loss of a rank is the mean over its own half of the batch, so that the gradients at its layers' outputs are
    twice those of the whole batch; the root mean square over both ranks is larger by the root of two.
    """
    here = numbers(directory)
    assert here.keys() == alone.keys()
    assert len({tag for tag, _ in here}) > 20
    for place, value in alone.items():
        if place[0].startswith(tuple(ignored)):
            continue
        expected = torch.tensor(value, dtype=torch.float64)
        if place[0] == OUTPUTS:
            expected = torch.where(expected > 0, expected * 2**0.5, expected)
        found = torch.tensor(here[place], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, equal_nan=True, msg=str(place))


def assert_named(directory: Path) -> None:
    content = read_events(directory).SummaryMetadata("gradwatch/layers/grad_norm_steps").plugin_data.content
    assert json.loads(content)["layers"] == LAYERS


def test_the_numbers_are_those_of_one_process(usual: Told, alone: dict[str, Numbers]) -> None:
    directory, ranks = usual
    assert_same(directory / "2", alone[""])
    assert_named(directory / "2")
    assert ranks[0] == ranks[1]
    assert not ranks[0]["2"]["is_off"]


@pytest.mark.parametrize("how", ["", " accumulating", " spare"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_at_every_stage_the_numbers_are_those_of_one_process(
    usual: Told, measured: Told, alone: dict[str, Numbers], stage: int, how: str
) -> None:
    name = f"{stage}{how}"
    directory, ranks = usual if name == "2" else measured
    assert_same(directory / name, alone[how])
    if "spare" not in how:
        assert_named(directory / name)
    assert ranks[0][name] == ranks[1][name]
    assert not ranks[0][name]["is_off"]


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_variants", tmp_path_factory.mktemp("varied"))


@pytest.mark.parametrize("name", VARIANTS)
def test_however_it_lies_in_memory_the_numbers_are_those_of_one_process(
    varied: Told, alone: dict[str, Numbers], name: str
) -> None:
    directory, ranks = varied
    assert_same(directory / name, alone[""])
    assert ranks[0][name] == ranks[1][name]
    assert not ranks[0][name]["is_off"]


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_half", tmp_path_factory.mktemp("halved"))


@pytest.mark.parametrize("name", HALVES)
def test_in_half_precision_norms_are_those_of_the_gradients_that_deepspeed_gathers(halved: Told, name: str) -> None:
    directory, ranks = halved
    assert not ranks[0][name]["is_off"]
    truth = torch.tensor(ranks[0][name]["truth"], dtype=torch.float64)
    assert len(truth) == HALF_STEPS
    expected = truth.view(HALF_STEPS, len(LAYERS), 2).square().sum(-1).sqrt()  # a weight and a bias each
    here = numbers(directory / name)
    for step in (EVERY - 1, HALF_STEPS - 1):
        found = torch.tensor([here[f"grad_norm/{layer}", step] for layer in LAYERS], dtype=torch.float64)
        torch.testing.assert_close(found, expected[step], rtol=1e-5, atol=1e-7)
    # at first the loss scale is too high, and DeepSpeed skips steps
    num_skipped = (~truth.isfinite().all(dim=1)).sum().item()
    assert (num_skipped > 0) == ("16-mixed" in name.split())
    assert here.get(("gradwatch/skipped_steps", HALF_STEPS - 1), 0) == num_skipped


@pytest.mark.parametrize("name", NETS)
def test_alerts_are_those_of_one_process_on_every_rank(tmp_path: Path, name: str) -> None:
    alone = measure(0, tmp_path / "alone", net=NETS[name], max_steps=ALERT_STEPS)
    expected = json.loads(json.dumps(alone))["alerts"]
    assert bool(expected) == (name != "frozen")
    for rank in told_by(f"alert({name!r})", tmp_path)[1]:
        assert {stage: told["alerts"] for stage, told in rank.items()} == {str(stage): expected for stage in STAGES}


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("clip_all", tmp_path_factory.mktemp("clipped"))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return clip(0, "nothing", tmp_path_factory.mktemp("untouched"))


def is_close(ours: list[Any], theirs: list[Any]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("name", CLIPPED)
def test_clipping_leaves_the_weights_of_one_process(
    clipped: Told, untouched: list[Any], tmp_path: Path, name: str
) -> None:
    truth = clip(0, name, tmp_path)
    assert not is_close(truth, untouched)
    for stage in CLIPPED[name]:
        for rank in clipped[1]:
            assert is_close(rank[f"{name} {stage}"], truth)


def test_what_deepspeed_clips_itself_comes_on_top_and_only_if_asked_for(
    clipped: Told, refused: Told, tmp_path: Path
) -> None:
    truth = clip(0, "norm", tmp_path, **COMPOSED)
    assert not is_close(truth, clipped[1][0]["norm 2"])
    for rank in clipped[1]:
        for stage in STAGES:
            assert is_close(rank[f"composed {stage}"], truth)
            assert is_close(rank[f"composed {stage} offloaded"], truth)
    for rank in refused[1]:
        for how in ("twice", "twice in the configuration"):
            assert re.search("`auto_clip` must be None where the Trainer clips .* To cure it", rank[how])


@pytest.fixture(scope="module")
def skipped(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("skip_all", tmp_path_factory.mktemp("skipped"))


@pytest.mark.parametrize("name", BAD)
def test_skipping_leaves_the_weights_of_one_process(skipped: Told, tmp_path: Path, name: str) -> None:
    truth = clip(0, name, tmp_path)
    assert all(torch.tensor(weights).isfinite().all() for weights in truth)
    for rank in skipped[1]:
        for stage in (*STAGES, *(["2 offloaded"] if name == "spike" else [])):
            assert is_close(rank[f"{name} {stage}"], truth)


def test_a_step_that_deepspeed_would_take_is_skipped(skipped: Told) -> None:
    for rank in skipped[1]:
        assert all(torch.tensor(weights).isfinite().all() for weights in rank["half"])
        assert not all(torch.tensor(weights).isfinite().all() for weights in rank["half kept"])


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("refuse_all", tmp_path_factory.mktemp("refused"))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("agc", "`auto_clip` must be .* where these are sharded, but AGC.*To cure it"),
        ("backward", "`sample_at` must be \"step\" where .* but 'backward' came. To cure it"),
        ("nvme", '`strategy` must be .* in memory, but \'offload_optimizer to NVMe .*To cure it: "device": "cpu"'),
        ("bf16", "`strategy` must be DeepSpeed with its ZeRO optimizer, but 'BF16_Optimizer' came. To cure it"),
        ("stage 0", "`strategy` must be DeepSpeed with ZeRO stage 1, 2 or 3, but 'stage 0' came. To cure it"),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_cure(refused: Told, what: str, words: str) -> None:
    for rank in refused[1]:
        assert re.search(words, rank[what])


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("fail_all", tmp_path_factory.mktemp("failed"))


@pytest.mark.parametrize(
    ("stage", "what"), [*((2, what) for what in (*FAILURES, *REACHING)), *((3, w) for w in REACHING)]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_watch_that_fails_on_one_rank_ends_on_all_and_the_training_goes_on(
    failed: Told, rank: int, stage: int, what: str
) -> None:
    assert_survived([told[str(stage)] for told in failed[1]], rank, what, {**FAILURES, **REACHING}[what])


def test_a_checkpoint_goes_on_where_it_was_taken(tmp_path: Path) -> None:
    directory, ranks = told_by("resume_all", tmp_path)
    assert ranks[0] == ranks[1]
    for stage in (2, 3):
        (_, steps, whole), (_, resumed_steps, resumed) = ranks[0][f"clipping {stage}"]
        assert steps == resumed_steps == [NUM_RESUMED_STEPS]
        assert is_close(resumed, whole)
    (alerts, *_), (after, *_) = ranks[0]["alerting 2"]
    assert [kind for kind, *_ in alerts] == ["vanishing"]
    assert after == alerts
    opened = [json.loads(line) for line in (directory / "alerting 2" / "alerts.jsonl").read_text().splitlines()]
    assert [line["event"] for line in opened] == ["opened"]


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_talk_once_per_sample_or_publication_and_once_per_step_if_it_may_be_changed(
    tmp_path: Path, stage: int
) -> None:
    num_publications = NUM_COUNTED_STEPS // EVERY + 1  # one at the end
    for rank in told_by(f"count({stage})", tmp_path)[1]:
        more: dict[str, Any] = {name: dict(Counter(counts) - Counter(rank["bare"])) for name, counts in rank.items()}
        assert more == {
            "bare": {},
            "control": {"gloo:all_reduce": NUM_COUNTED_STEPS},
            "watched": {"gloo:all_reduce": 2 + num_publications},
            "clipped": {"gloo:all_reduce": NUM_COUNTED_STEPS + num_publications},
            "skipping": {"gloo:all_reduce": NUM_COUNTED_STEPS + num_publications},
        }
