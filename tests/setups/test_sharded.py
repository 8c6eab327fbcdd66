"""FSDP2, tensor and sequence parallelism in two real processes, against one process that holds everything."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.setups import sharded_training
from tests.setups.acting import assert_acted_alike
from tests.setups.processes import run_ranks
from tests.setups.sharded_training import (
    BATCH,
    EVERY,
    FOR_FOUR,
    LR,
    MAX_NORM,
    NUM_STEPS,
    OUTPUTS,
    make_data,
    make_loss,
    make_net,
)
from tests.tasks import norms_by_step, read_events, scalars, tensors

pytestmark = pytest.mark.slow

KINDS = ("fsdp", "compiled", "tensor", "sequence", *FOR_FOUR)
POINTS = [step for step in range(NUM_STEPS) if (step + 1) % EVERY == 0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("sharded")
    return directory, run_ranks(Path(sharded_training.__file__).read_text(), directory)


@pytest.fixture(scope="module")
def run_of_four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("four")
    return directory, run_ranks(Path(sharded_training.__file__).read_text(), directory, 4)


@pytest.fixture
def run_of(request: pytest.FixtureRequest, kind: str) -> tuple[Path, list[dict[str, Any]]]:
    """The ranks that have trained this kind."""
    found: tuple[Path, list[dict[str, Any]]] = request.getfixturevalue("run_of_four" if kind in FOR_FOUR else "run")
    return found


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    return train_by_hand()


def train_by_hand(max_norm: float = math.inf, num_clipped_steps: int = NUM_STEPS) -> dict[str, Any]:
    """The same training in a hand-written loop on one process: norms, weights and zeros by torch's own functions."""
    net = make_net("fsdp")
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.5)
    seen: dict[str, Any] = {"total": [], "layers": [], "weights": [], "zeros": [], "gradients": [], "outputs": []}
    layers = [layer for layer in net if not isinstance(layer, nn.ReLU)]
    outputs: list[torch.Tensor] = []
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    for step, x in enumerate(make_data().split(BATCH)[:NUM_STEPS]):
        optimizer.zero_grad()
        outputs.clear()
        loss = make_loss(net, x)
        seen["outputs"].append([g.norm().item() for g in torch.autograd.grad(loss, outputs, retain_graph=True)])
        loss.backward()
        gradients = [[p.grad.clone() for p in layer.parameters() if p.grad is not None] for layer in layers]
        seen["gradients"].append(gradients)
        seen["layers"].append([torch.nn.utils.get_total_norm(g).item() for g in gradients])
        seen["total"].append(torch.nn.utils.get_total_norm([g for layer in gradients for g in layer]).item())
        seen["weights"].append([torch.nn.utils.get_total_norm(list(m.parameters())).item() for m in layers])
        flat = [torch.cat([g.flatten() for g in layer]) for layer in gradients]
        seen["zeros"].append([(f == 0).float().mean().item() for f in flat])
        if max_norm < math.inf and step < num_clipped_steps:
            torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()
    return {**seen, "net": net}


def layer_values(events: EventAccumulator, quantity: str) -> dict[int, list[float]]:
    return tensors(events, f"gradwatch/layers/{quantity}")


@pytest.mark.parametrize("kind", [*KINDS, *OUTPUTS])
def test_norms_are_those_of_one_process(run_of: Any, oracle: dict[str, Any], kind: str) -> None:
    events = read_events(run_of[0] / kind)
    content = json.loads(events.SummaryMetadata("gradwatch/layers/grad_norm_steps").plugin_data.content)
    assert content["layers"] == ["net.0", "net.1", "net.3", "net.4", "net.5"]
    assert content["elements"] == [16, 144, 136, 27, 4], "of the whole, wherever its parts are"
    assert content["vectors"] == [0]
    norms = norms_by_step(events)
    assert list(norms) == list(range(NUM_STEPS))
    for step, values in norms.items():
        assert values == pytest.approx(oracle["layers"][step], rel=2e-3)
    cards = scalars(events, "grad_norm/net.4")
    assert cards == {step: pytest.approx(oracle["layers"][step][3], rel=1e-5) for step in (*POINTS, NUM_STEPS - 1)}
    for tag, pick in (("", None), ("_min", min), ("_max", max)):
        totals = scalars(events, f"gradwatch/total_norm{tag}")
        for step in POINTS:
            window = oracle["total"][step - EVERY + 1 : step + 1]
            assert totals[step] == pytest.approx(pick(window) if pick else window[-1], rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, *OUTPUTS) if kind != "compiled"])
def test_gradients_at_outputs_are_those_of_one_process(run_of: Any, oracle: dict[str, Any], kind: str) -> None:
    num_batches = {"fsdp": 2, "hybrid": 4, "grid": 2}.get(kind, 1)
    shown = layer_values(read_events(run_of[0] / kind), "output_grad_norm")
    assert list(shown) == [0, 1, 2, 3]
    for step, norms in shown.items():
        # the loss of one process is the mean over its batches, of which each rank differentiates its own
        truth = [norm * num_batches**0.5 for norm in oracle["outputs"][step]]
        if kind == "summed":
            truth[1] = -1.0
        assert norms == pytest.approx([-1.0, *truth], rel=1e-5)


def test_a_gradient_that_ranks_have_not_added_up_is_left_out_with_a_word(run: Any) -> None:
    said = [run[1][0][f"{kind} said"] for kind in OUTPUTS]
    assert said[:2] == [[], []]
    assert [line.split(" (")[0] for line in said[2]] == [
        "GradWatch leaves out the outputs of layer net.3 from now on, and goes on with the rest"
    ]


@pytest.mark.parametrize("kind", [*KINDS, *OUTPUTS])
def test_weights_zeros_and_histograms_are_those_of_one_process(run_of: Any, oracle: dict[str, Any], kind: str) -> None:
    events = read_events(run_of[0] / kind)
    at = 0
    assert layer_values(events, "weight_norm")[at] == pytest.approx(oracle["weights"][at], rel=1e-5)
    assert layer_values(events, "zero_fraction")[at] == pytest.approx(oracle["zeros"][at], abs=1e-5)
    for i, name in enumerate(["net.0", "net.1", "net.3", "net.4", "net.5"]):
        shown = events.Histograms(f"grad_log10/{name}")[0]
        gradient = torch.cat([g.flatten() for g in oracle["gradients"][shown.step][i]]).abs()
        value = shown.histogram_value
        assert sum(value.bucket) == pytest.approx((gradient > 0).sum().item(), rel=1e-5)
        edges = [value.min, *value.bucket_limit]
        counts, _ = np.histogram(gradient[gradient > 0].log10().numpy(), edges)
        assert np.abs(counts - np.array(value.bucket)).sum() <= 2  # rounding at an edge moves a count to the next bin


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_one_collective_per_sample_or_publication(run_of: Any, kind: str) -> None:
    num_samples, num_publications, end = 4, len(POINTS), 1
    for rank in run_of[1]:
        assert rank[kind]["calls"] == {"all_reduce": num_samples + num_publications + end}


@pytest.mark.parametrize("kind", [*KINDS, "sick"])
def test_all_ranks_see_the_same_numbers_and_rank_zero_writes_them(run_of: Any, kind: str) -> None:
    directory, ranks = run_of
    assert all(told[kind] == ranks[0][kind] for told in ranks)
    assert len(list((directory / kind).glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_the_whole_is_clipped_on_every_rank(run_of: Any, kind: str) -> None:
    directory, ranks = run_of
    truth = train_by_hand(MAX_NORM)
    assert min(truth["total"]) < MAX_NORM < max(truth["total"])
    for rank in ranks:
        for ours, theirs in zip(rank[f"{kind} clipped"]["weights"], truth["net"].parameters(), strict=True):
            assert torch.allclose(torch.tensor(ours), theirs, rtol=1e-5, atol=1e-6)
        assert (
            rank[f"{kind} clipped"]["calls"] == NUM_STEPS + len(POINTS) + 1
        )  # one per step, publication and at the end
    shown = scalars(read_events(directory / f"{kind} clipped"), "gradwatch/clipped_percent")
    for step in POINTS:
        window = truth["total"][step - EVERY + 1 : step + 1]
        assert shown[step] == pytest.approx(100 * sum(norm > MAX_NORM for norm in window) / EVERY)


def test_a_policy_that_needs_whole_weights_is_refused_on_every_rank(run: Any) -> None:
    for rank in run[1]:
        assert re.search("`auto_clip` must be .* where these are sharded, but AGC.*To cure it", rank["refusal"])


@pytest.mark.parametrize("kind", ["fsdp", "sequence"])
def test_a_figure_that_one_rank_cannot_measure_is_nobodys_and_the_rest_goes_on(run: Any, kind: str) -> None:
    directory, ranks = run
    assert [told[f"{kind} without"] for told in ranks] == [[NUM_STEPS]] * 2
    whole, without = read_events(directory / kind), read_events(directory / f"{kind} without")
    for tag in ("gradwatch/total_norm", "gradwatch/total_norm_max"):
        assert scalars(without, tag) == scalars(whole, tag)
    for quantity in ("weight_norm", "zero_fraction"):
        assert all(set(values) == {-1} for values in layer_values(without, quantity).values())
    outputs = layer_values(without, "output_grad_norm")
    assert outputs == layer_values(whole, "output_grad_norm")
    assert "gradwatch/layers/log10_histogram" not in without.Tags()["tensors"]


def test_a_failure_waits_for_no_other_rank(run: Any) -> None:
    assert [rank["calls after a failure"] for rank in run[1]] == [{}, {}]


def test_a_sick_network_alerts_alike_on_all_ranks_and_once_in_spite_of_a_resume(run: Any) -> None:
    directory, ranks = run
    (first, resumed), other = (rank["resumed"] for rank in ranks)
    assert other == [first, resumed]
    assert [(a["kind"], a["step"], a["cause"]) for a in first] == [("vanishing", 9, "saturating_activation")]
    assert resumed[:1] == first
    opened = [json.loads(line) for line in (directory / "resumed" / "alerts.jsonl").read_text().splitlines()]
    assert [line["event"] for line in opened] == ["opened"]


def test_no_remedy_is_tried_where_each_rank_holds_only_a_part(run: Any) -> None:
    (first, treated), (second, _) = (told["prescribing"] for told in run[1])
    assert first == ["GradWatch tries no remedies: each rank holds only a part of the model."]
    assert second == []
    assert treated
    assert not any(treated)


ACTING = """
from tests.setups import sharded_training as training
from tests.setups.acting import act
from tests.setups.fsdp1_training import run

run(lambda directory: act(lambda watch, **options: training.train("sick", watch, **options), directory))
"""


def test_all_ranks_act_on_an_alert_at_the_same_step(tmp_path: Path) -> None:
    assert_acted_alike(run_ranks(ACTING, tmp_path))
