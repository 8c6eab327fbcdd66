from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradwatch.core.detect import Detector
from lightning_gradwatch.core.detect.depth import TimeRule, memory_horizon
from lightning_gradwatch.core.detect.growth import ExplodingRule
from lightning_gradwatch.core.detect.incident import Incident
from lightning_gradwatch.core.detect.losses import LossHistory
from lightning_gradwatch.core.detect.progress import StalledRule, UnderflowRule
from lightning_gradwatch.core.detect.silence import SilenceRule
from lightning_gradwatch.core.records import AlertLevel, Checkup, Finding, Layer, Observation, Sample

LAYERS = tuple(Layer(f"l{i}", (f"l{i}.weight",), has_matrix=True) for i in range(6))
NAMES = frozenset(layer.name for layer in LAYERS)
ENDS = ("l0", "l5")


def checkup(**known: float) -> Checkup:
    unknown = torch.full((6,), -1.0)
    names = ("gain", "update_ratio", "unchanged", "below_eps", "signal", "output_zeros")
    return Checkup(**{n: unknown.clone().fill_(known.get(n, -1.0)) for n in names}, inputs=torch.full((6, 7), -1.0))


def observed(
    step: int,
    *,
    total: float = 1.0,
    loss: float | None = 1.0,
    gradients: list[float] | None = None,
    decades: float = 0.0,
    outputs: list[float] | None = None,
    zeros: list[float] | None = None,
    sequences: tuple[tuple[str, Tensor], ...] = (),
    lr: float | None = 0.1,
    dtype: str = "float32",
    **checked: float,
) -> Observation:
    """One step with a full sample of six layers whose gradient loses ``decades``."""
    at_outputs = [1e-3 * 10 ** (decades * place) for place in (0, 0, 0.5, 0.5, 1, 1)]
    sample = Sample(
        step=step,
        output_grad_norm=torch.tensor(at_outputs if outputs is None else outputs),
        weight_norm=torch.ones(6),
        zero_fraction=torch.tensor([0.0] * 6 if zeros is None else zeros),
        ran=NAMES,
        sequences=sequences,
        checkup=checkup(**checked) if checked else None,
    )
    return Observation(
        step=step,
        layers=LAYERS,
        steps=(step,),
        norms=torch.tensor([[total, *([0.1] * 6 if gradients is None else gradients)]]),
        losses=(loss,),
        bad_inputs=(None,),
        lr=lr,
        dtypes=frozenset({dtype}),
        anatomy=None,
        sample=sample,
        histogram=None,
        publish=False,
    )


def sample_of(observation: Observation) -> Sample:
    assert observation.sample is not None
    return observation.sample


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- incidents


def test_an_incident_waits_opens_holds_and_ends() -> None:
    incident = Incident("stalled", 2.0, persistence=2)
    values = [2.0, 1.0, 2.0, 2.0, 1.6, 1.4, 1.6, 1.4, 1.4, 0.0]
    changes = [(step, incident.judge(step, value)) for step, value in enumerate(values)]
    assert [step for step, change in changes if change is not None] == [3, 8]
    assert changes[3][1] == Finding("stalled", "alert", 3, None, (), 2.0, 2.0)
    assert changes[8][1] == Finding("stalled", "alert", 3, 6, (), 2.0, 2.0)
    assert incident.finding is None


def test_a_notice_rises_to_an_alert_once() -> None:
    incident = Incident("dead", 1.0)
    levels: list[Any] = ["notice", "notice", "alert", "alert", "notice"]
    changes = [incident.judge(step, 1.0 + step, (), level) for step, level in enumerate(levels)]
    assert [None if c is None else (c.level, c.step, c.value) for c in changes] == [
        ("notice", 0, 1.0),
        None,
        ("alert", 0, 3.0),
        None,
        None,
    ]


@given(st.lists(st.sampled_from([0.0, 0.7, 0.8, 1.0, 3.0]), max_size=30), st.integers(0, 30))
def test_an_incident_goes_on_after_a_checkpoint(values: list[float], cut: int) -> None:
    def make() -> Incident:
        return Incident("exploding", 1.0, persistence=2)

    one, other = make(), make()
    for step, value in enumerate(values):
        if step == cut:
            other.load_state_dict(saved_and_loaded(one.state_dict()))
        change = one.judge(step, value, ("a", "b"))
        assert step < cut or other.judge(step, value, ("a", "b")) == change


# --- losses


def history(*losses: float | None) -> LossHistory:
    losses_so_far = LossHistory()
    losses_so_far.add(losses)
    return losses_so_far


def test_a_loss_is_judged_flat_only_after_sixty_steps() -> None:
    assert not history(*[1.0] * 59).is_flat
    assert history(*[1.0] * 60).is_flat
    assert history(*[1.0] * 60).has_not_improved
    assert not history(*[1.0] * 59).has_not_improved


def test_a_loss_that_fell_and_then_stopped_is_flat_and_has_improved() -> None:
    seen = history(*[5.0] * 30, *[1.0] * 60)
    assert seen.is_flat
    assert not seen.has_not_improved
    assert seen.has_learned
    assert not history(*[5.0] * 30, *[4.0] * 60).has_learned


def test_a_loss_that_falls_is_not_flat() -> None:
    seen = history(*[1.0 - 0.01 * i for i in range(80)])
    assert seen.is_falling
    assert not seen.is_flat
    assert seen.lower_share == 1.0
    assert not history(*[1.0 + 0.01 * i for i in range(80)]).is_falling


def test_unknown_and_nonfinite_losses_do_not_count() -> None:
    seen = history(None, 1.0, math.nan, 2.0, math.inf, None)
    assert seen.num_steps == 2
    assert (seen.first, seen.start, seen.now) == (1.0, 1.5, 1.5)
    empty = history()
    assert (empty.is_flat, empty.is_falling, empty.has_not_improved, empty.has_learned) == (False,) * 4


@given(
    st.lists(st.integers(-100, 100), min_size=1, max_size=90),
    st.integers(-1000, 1000),
    st.sampled_from([0.25, 1.0, 1024.0]),
)
def test_verdicts_on_the_loss_do_not_depend_on_its_offset_and_scale(
    losses: list[int], shift: int, scale: float
) -> None:
    def verdicts(seen: LossHistory) -> tuple[object, ...]:
        return seen.is_flat, seen.is_falling, seen.has_not_improved, seen.lower_share

    assert verdicts(history(*losses)) == verdicts(history(*[scale * loss + shift for loss in losses]))


@given(st.lists(st.floats(-10, 10), max_size=150), st.integers(1, 40))
def test_losses_come_to_the_same_in_one_piece_or_many(losses: list[float], size: int) -> None:
    whole, parts = history(*losses), LossHistory()
    for i in range(0, len(losses), size):
        parts.add(losses[i : i + size])
        loaded = LossHistory()
        loaded.load_state_dict(saved_and_loaded(parts.state_dict()))
        parts = loaded
    assert parts.state_dict() == whole.state_dict()


# --- time


def through_time(decades: float, length: int = 12) -> list[float]:
    """The last third has ``decades`` decades more than the first."""
    third = length // 3
    return [1e-6] * third + [1e-6 * 10 ** (decades / 2)] * (length - 2 * third) + [1e-6 * 10**decades] * third


def opened_at(rule: TimeRule, decades: float, level: AlertLevel | None = "alert") -> int | None:
    for step in range(20):
        if rule.update(step, {"rnn": through_time(decades)}, level):
            return step
    return None


def test_three_decades_through_time_open_with_the_fifth_sample_and_only_while_the_loss_is_flat() -> None:
    assert opened_at(TimeRule(), 3.01) == 4
    assert opened_at(TimeRule(), 2.99) is None
    assert opened_at(TimeRule(), 9.0, level=None) is None


def test_the_layer_that_forgets_most_is_named_and_its_recovery_ends_it() -> None:
    rule = TimeRule()
    for step in range(5):
        found = rule.update(step, {"a": through_time(1), "b": through_time(5), "c": through_time(4)}, "alert")
    assert [(f.kind, f.layers, f.until_step) for f in found] == [("vanishing_through_time", ("b",), None)]
    assert found[0].value == pytest.approx(5)
    healed = [rule.update(step, dict.fromkeys("abc", through_time(1)), None) for step in range(5, 10)]
    (ended,) = [f for found in healed for f in found]
    assert (ended.step, ended.layers) == (4, ("b",))
    assert ended.until_step is not None


def test_a_layer_that_is_no_more_holds_no_alert_open() -> None:
    rule = TimeRule()
    for step in range(5):
        rule.update(step, {"old": through_time(5)}, "alert")
    assert rule.incident.finding is not None
    rule.keep(["new"])
    assert (rule.worst, rule.horizons) == (("", 0.0), {})
    healed = [f for step in range(5, 10) for f in rule.update(step, {"new": through_time(1)}, "alert")]
    assert [(f.layers, f.until_step is None) for f in healed] == [(("old",), False)]
    assert rule.worst[0] == "new"


def test_a_notice_rises_to_an_alert_and_does_not_fall_back() -> None:
    rule, told = TimeRule(), []
    stretches: list[tuple[AlertLevel | None, int]] = [(None, 10), ("notice", 5), ("alert", 5), ("notice", 5)]
    levels = [level for level, length in stretches for _ in range(length)]
    for step, level in enumerate(levels):
        told += [(step, f.level, f.step) for f in rule.update(step, {"rnn": through_time(5)}, level)]
    assert told == [(10, "notice", 10), (15, "alert", 10)]


def overlook(
    decades: float, share: float, steps: int = 12, level: AlertLevel | None = None, swings: float = 0.0
) -> list[Finding]:
    rule, found = TimeRule(), []
    for step in range(steps):
        seen = through_time(decades - swings * (step % 3))
        found += rule.update(step, {"rnn": seen}, level, {"rnn": share}, "alert")
    return found


def test_six_decades_are_an_alert_whatever_the_loss_does_where_other_layers_make_it_fall() -> None:
    (finding,) = overlook(6.1, share=0.009)
    assert (finding.step, finding.level, finding.layers) == (4, "alert", ("rnn",))
    assert overlook(5.9, share=0.009) == []
    assert overlook(6.1, share=0.011) == []  # the loss falls by it, so that it may need the last steps only
    assert overlook(6.1, share=0.009, steps=4) == []
    assert overlook(7.0, share=0.009, swings=1.0) == []  # it may be about to remember


def test_the_layer_whose_loss_is_overlooked_is_named_before_one_that_loses_more() -> None:
    rule, found = TimeRule(), []
    for step in range(12):
        seen = {"reader": through_time(20), "encoder": through_time(8)}
        found += rule.update(step, seen, None, {"reader": 0.9, "encoder": 0.001}, "notice" if step < 8 else "alert")
    assert [(f.step, f.level, f.layers) for f in found] == [(4, "notice", ("encoder",)), (4, "alert", ("encoder",))]
    assert [f.value for f in found] == pytest.approx([8.0, 8.0])


def test_shares_go_on_after_a_resume_and_may_be_missing_from_an_old_state() -> None:
    one, other, old = TimeRule(), TimeRule(), TimeRule()
    for step in range(4):
        one.update(step, {"rnn": through_time(7)}, None, {"rnn": 0.001}, "alert")
    state = one.state_dict()
    other.load_state_dict(saved_and_loaded(state))
    old.load_state_dict({name: part for name, part in state.items() if name != "shares"})
    found = [r.update(4, {"rnn": through_time(7)}, None, {"rnn": 0.001}, "alert") for r in (one, other, old)]
    assert found[0] == found[1] != []
    one.keep(["other"])
    assert one.state_dict()["shares"] == {}


def test_a_loss_tells_nothing_of_other_layers_before_it_could_be_called_flat() -> None:
    assert history(*[1.0] * 19).concern_regardless is None
    assert history(*[10 * 0.9**i for i in range(59)]).concern_regardless == "notice"
    assert history(*[10 * 0.9**i for i in range(60)]).concern_regardless == "alert"


def test_a_loss_is_a_concern_when_flat_and_worth_a_notice_before_it_has_begun_to_fall() -> None:
    assert history(*[1.0] * 10).concern is None
    assert history(*[1.0] * 30).concern == "notice"
    assert history(*[1.0] * 60).concern == "alert"
    assert history(*[10 * 0.97**i for i in range(30)]).concern is None
    assert history(*[10.0] * 10, *[0.1] * 90).concern is None


def test_roughness_is_the_usual_change_relative_to_the_size() -> None:
    assert history(*[1.0] * 29).roughness is None
    assert history(*[2.0, 2.2] * 15).roughness == pytest.approx(0.2 / 2.1)
    assert history(*[5.0] * 40).roughness == 0.0
    assert history(*[0.0] * 40).roughness is None


def test_growth_into_the_past_is_the_opposite_of_a_loss() -> None:
    rule = TimeRule()
    for step in range(5):
        assert rule.update(step, {"a": through_time(-2), "b": through_time(1)}, "alert") == []
    (growing, growth), (losing, loss) = rule.growth, rule.worst
    assert (growing, losing) == ("a", "b")
    assert growth == pytest.approx(2)
    assert loss == pytest.approx(1)


def test_a_sequence_of_zeros_tells_nothing_and_hurts_nothing() -> None:
    rule = TimeRule()
    for step in range(10):
        assert rule.update(step, {"a": [0.0] * 9, "b": [math.nan] * 9}, "alert") == []
    assert (rule.worst[1], rule.growth[1]) == (0.0, 0.0)
    assert rule.horizons == {"a": (0, 9, 0.0), "b": (0, 9, 0.0)}


def test_the_memory_horizon_counts_what_carries_a_hundredth_of_the_largest() -> None:
    assert memory_horizon([0.0, 0.0099, 0.01, 0.5, 1.0]) == 3
    assert memory_horizon([math.nan, 1.0, math.inf, 1.0]) == 3
    assert memory_horizon([1.0, 0.0, 0.0, 0.001]) == 4  # all that matters lies at the start
    assert memory_horizon([0.0, 0.0]) == memory_horizon([]) == memory_horizon([math.nan]) == 0


@given(st.lists(st.floats(1e-10, 1e10), min_size=1), st.sampled_from([2.0**-20, 2.0**20]))
def test_the_memory_horizon_knows_no_scale(norms: list[float], scale: float) -> None:
    assert 1 <= memory_horizon(norms) <= len(norms)
    assert memory_horizon([scale * norm for norm in norms]) == memory_horizon(norms)


# --- explosions


def explode(
    rule: ExplodingRule,
    totals: list[float],
    losses: list[float] | None = None,
    usual_update: float = 0.0,
    depth: float = 0.0,
    time: tuple[str, float] = ("", 0.0),
) -> list[Finding]:
    seen, found = LossHistory(), []
    for step, total in enumerate(totals):
        loss = losses[step] if losses else 1.0
        seen.add([loss])
        observation = observed(step, total=total, loss=loss)
        found += rule.update(observation, seen, usual_update, depth, time, ENDS)
    return found


def test_growth_with_depth_explodes_at_three_decades_and_names_the_ends() -> None:
    (finding,) = explode(ExplodingRule(), [1.0] * 3, depth=3.01)
    assert (finding.kind, finding.layers, finding.value) == ("exploding", ENDS, 3.01)
    assert explode(ExplodingRule(), [1.0] * 3, depth=2.99) == []


def test_growth_with_time_names_the_recurrent_layer_when_it_is_the_larger() -> None:
    assert explode(ExplodingRule(), [1.0], time=("rnn", 3.5))[0].layers == ("rnn",)
    assert explode(ExplodingRule(), [1.0], depth=4.0, time=("rnn", 3.5))[0].layers == ENDS


def test_a_norm_that_stays_at_a_hundred_times_its_usual_size_explodes() -> None:
    (finding,) = explode(ExplodingRule(), [1.0] * 20 + [101.0] * 5)
    assert finding.value == pytest.approx(math.log10(101))
    assert explode(ExplodingRule(), [1.0] * 20 + [99.0] * 5) == []
    assert explode(ExplodingRule(), [1.0] * 10 + [101.0] * 9) == []  # too early to know what is usual


def test_a_spike_of_two_steps_is_none_and_a_calm_again_ends_it() -> None:
    assert explode(ExplodingRule(), ([1.0] * 20 + [1e4] * 2) * 5) == []
    found = explode(ExplodingRule(), [1.0] * 20 + [1e4] * 6 + [1.0] * 20)
    assert [f.until_step is None for f in found] == [True, False]
    assert found[1].until_step == 25


def test_a_loss_ten_times_its_start_has_diverged_unless_the_gradient_has_faded() -> None:
    losses = [1.0] * 20 + [11.0] * 20
    assert [f.kind for f in explode(ExplodingRule(), [1.0] * 20 + [2.0] * 20, losses)] == ["exploding"]
    assert explode(ExplodingRule(), [1.0] * 20 + [0.05] * 20, losses) == []
    assert explode(ExplodingRule(), [1.0] * 40, [1.0] * 20 + [9.0] * 20) == []


def test_huge_updates_explode_only_with_a_loss_above_its_start() -> None:
    assert explode(ExplodingRule(), [1.0] * 30, [1.0] * 5 + [1.5] * 25, usual_update=0.11)[0].kind == "exploding"
    assert explode(ExplodingRule(), [1.0] * 30, [1.0] * 30, usual_update=0.5) == []
    assert explode(ExplodingRule(), [1.0] * 30, [1.0] * 5 + [1.5] * 25, usual_update=0.09) == []


def test_nonfinite_and_absent_norms_are_nobodys_spike() -> None:
    assert explode(ExplodingRule(), [1.0] * 20 + [math.inf, math.nan, 0.0, -1.0] * 3) == []


# --- silence


def listen(rule: SilenceRule, steps: int, **options: Any) -> list[tuple[int, Finding]]:
    found = []
    for step in range(steps):
        observation = observed(step, **options)
        found += [(step, f) for f in rule.update(observation, sample_of(observation))]
    return found


def silent(*layers: int) -> dict[str, Any]:
    return {
        "outputs": [0.0 if i in layers else 1.0 for i in range(6)],
        "zeros": [1.0 if i in layers else 0.0 for i in range(6)],
        "gradients": [0.0 if i in layers else 1.0 for i in range(6)],
    }


def test_silence_at_the_input_end_is_dead_with_the_fifth_sample() -> None:
    rule = SilenceRule()
    ((step, finding),) = listen(rule, 12, **silent(0, 4))
    assert (step, finding.kind, finding.layers) == (4, "dead", ("l0", "l4"))
    assert (finding.value, rule.num_dead) == (0.5, 2)


def test_silence_at_the_loss_end_alone_is_not_dead() -> None:
    assert listen(SilenceRule(), 12, **silent(2, 3, 4, 5)) == []


def test_nothing_is_dead_when_nothing_is_left_to_learn() -> None:
    assert listen(SilenceRule(), 12, loss=0.0, **silent(*range(6))) == []


def test_the_dead_are_resurrected_by_five_samples_with_a_gradient() -> None:
    rule = SilenceRule()
    listen(rule, 6, **silent(0, 1))
    found = listen(rule, 6)
    assert [(step, f.kind) for step, f in found] == [(4, "dead")]
    assert found[0][1].until_step is not None
    assert rule.num_dead == 0


def test_one_sample_with_a_gradient_starts_the_count_of_the_dead_anew() -> None:
    rule = SilenceRule()
    assert not any(listen(rule, 4, **silent(0, 1)) + listen(rule, 1) for _ in range(5))


DETACHED: dict[str, Any] = {"outputs": [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0], "gradients": [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0]}


def test_layers_that_ran_in_ten_samples_without_a_gradient_are_detached() -> None:
    rule = SilenceRule()
    ((step, finding),) = listen(rule, 15, **DETACHED)
    assert (step, finding.kind, finding.layers) == (9, "detached", ("l0", "l1"))
    assert rule.num_detached == 2
    ((_, ended),) = listen(rule, 1)
    assert ended.until_step is not None


def head(*without: int) -> dict[str, Any]:
    """Layers of six without any gradient."""
    norms = [-1.0 if i in without else 1.0 for i in range(6)]
    return {"outputs": norms, "gradients": norms}


def test_what_runs_behind_all_that_is_trained_is_worth_a_notice() -> None:
    ((_, finding),) = listen(SilenceRule(), 15, **head(4, 5))
    assert (finding.kind, finding.level, finding.layers) == ("detached", "notice", ("l4", "l5"))
    ((_, finding),) = listen(SilenceRule(), 15, **head(3, 5))
    assert (finding.level, finding.layers) == ("alert", ("l3", "l5"))
    assert listen(SilenceRule(), 15, **head(*range(6)))[0][1].level == "alert"  # nothing is trained at all


def test_a_notice_of_a_head_rises_with_a_layer_within_the_network_and_names_it() -> None:
    rule, found = SilenceRule(), []
    for step in range(40):
        observation = observed(step, **head(2, 5))
        ran = NAMES if step >= 20 else NAMES - {"l2"}
        found += rule.update(observation, replace(sample_of(observation), ran=ran))
    assert [(f.step, f.level, f.layers) for f in found] == [(9, "notice", ("l5",)), (9, "alert", ("l2", "l5"))]


def test_a_layer_that_has_had_a_gradient_once_is_not_detached() -> None:
    rule = SilenceRule()
    listen(rule, 1)
    assert listen(rule, 30, **DETACHED) == []


def test_layers_that_do_not_run_are_neither_dead_nor_detached() -> None:
    rule = SilenceRule()
    for step in range(30):
        observation = observed(step, **DETACHED)
        assert rule.update(observation, replace(sample_of(observation), ran=NAMES - {"l0", "l1"})) == []


# --- progress


def stall(rule: StalledRule, losses: LossHistory, ratio: float = -1.0, **options: Any) -> list[Finding]:
    found = []
    for step in range(4):
        observation = observed(step, **options)
        found += rule.update(observation, sample_of(observation), losses, ratio)
    return found


def test_training_is_stalled_when_the_largest_push_is_a_thousandth_of_the_loss() -> None:
    flat = history(*[2.0] * 60)
    (finding,) = stall(StalledRule(), flat, gradients=[1e-9, 0.0, -1.0, 1.9e-3, 0.0, 0.0])
    assert (finding.kind, finding.step) == ("stalled", 1)
    assert stall(StalledRule(), flat, gradients=[1e-9, 0.0, -1.0, 2.1e-3, 0.0, 0.0]) == []


def test_training_is_stalled_when_the_largest_update_is_tiny() -> None:
    flat = history(*[2.0] * 60)
    assert [f.kind for f in stall(StalledRule(), flat, 2.9e-5)] == ["stalled"]
    assert stall(StalledRule(), flat, 3.1e-5) == []
    assert stall(StalledRule(), flat, -1.0) == []  # not known
    assert stall(StalledRule(), flat, 0.0, lr=0.0) == []  # a warm-up that has not begun


def test_training_that_has_improved_is_not_stalled() -> None:
    assert stall(StalledRule(), history(*[3.0] * 30, *[2.0] * 30), 1e-9, gradients=[1e-9] * 6) == []
    assert stall(StalledRule(), history(*[2.0] * 59), 1e-9, gradients=[1e-9] * 6) == []


def underflow(dtype: str = "float32", lr: float | None = 0.1, is_scaled: Any = False, **shares: Any) -> list[Finding]:
    rule, found = UnderflowRule(), []
    for step in range(4):
        observation = observed(step, dtype=dtype, lr=lr, **shares)
        sample = sample_of(observation)
        assert sample.checkup is not None
        found += rule.update(observation, sample, sample.checkup, is_scaled)
    return found


@pytest.mark.parametrize(
    ("dtype", "name", "threshold"),
    [
        ("float16", "output_zeros", 0.9),
        ("float16", "unchanged", 0.8),
        ("bfloat16", "unchanged", 0.8),
        ("float32", "below_eps", 0.9),
    ],
)
def test_rounding_that_swallows_the_middle_layer_is_found_at_the_second_look(
    dtype: str, name: str, threshold: float
) -> None:
    (finding,) = underflow(dtype, **{name: threshold + 0.01})
    assert (finding.kind, finding.step) == ("underflow", 1)
    assert underflow(dtype, **{name: threshold - 0.01}) == []


@pytest.mark.parametrize(
    ("dtype", "name"), [("float16", "output_zeros"), ("bfloat16", "unchanged"), ("float32", "below_eps")]
)
def test_the_value_of_an_underflow_is_the_share_that_is_lost(dtype: str, name: str) -> None:
    (finding,) = underflow(dtype, **{name: 0.95})
    assert finding.value == pytest.approx(0.95)


def test_what_is_no_matter_of_rounding_is_no_underflow() -> None:
    assert underflow("float32", unchanged=1.0) == []
    assert underflow("bfloat16", lr=0.0, unchanged=1.0) == []


def test_zeros_under_autocast_are_rounding_unless_the_loss_is_scaled() -> None:
    (finding,) = underflow("float32", output_zeros=0.95)  # known of float16 gradients alone
    assert finding.kind == "underflow"
    assert finding.value == pytest.approx(0.95)
    assert underflow("float32", output_zeros=0.85) == []
    assert underflow("float32", is_scaled=True, output_zeros=0.95) == []
    assert [f.kind for f in underflow("float16", is_scaled=True, output_zeros=0.95)] == ["underflow"]


# --- all of them together

FAINT: dict[str, Any] = {"gradients": [1e-6] * 6}


def kinds(steps: int, **options: Any) -> list[str]:
    detector = Detector(0.5)
    return [f.kind for step in range(steps) for f in detector.update(observed(step, **options), is_scaled=False)]


def test_stalled_is_not_said_while_another_alert_explains_it() -> None:
    assert kinds(80, **FAINT) == ["stalled"]
    assert kinds(80, **FAINT, decades=4.0) == ["vanishing"]
    assert kinds(80, **{**silent(0, 1), "gradients": [0.0, 0.0, *[1e-6] * 4]}) == ["dead"]
    assert kinds(80, **FAINT, below_eps=1.0) == ["underflow"]
    assert kinds(80, **FAINT, total=math.inf) == ["nonfinite"]
    forgetful = (("rnn", torch.tensor(through_time(4.0))),)
    assert kinds(80, **FAINT, sequences=forgetful) == ["vanishing_through_time"] * 2  # a notice, then an alert


def test_stalled_is_said_once_the_other_alert_has_ended() -> None:
    detector, found = Detector(0.5), []
    for step in range(100):
        found += detector.update(observed(step, **FAINT, decades=4.0 if step < 70 else 0.0), is_scaled=False)
    assert [(f.kind, f.until_step is None) for f in found] == [
        ("vanishing", True),
        ("vanishing", False),
        ("stalled", True),
    ]


def test_underflow_is_not_said_while_gradients_vanish() -> None:
    detector, found = Detector(0.5), []
    for step in range(40):
        is_checked = step > 15 and step % 2
        checked: dict[str, Any] = {"below_eps": 1.0} if is_checked else {}
        found += detector.update(observed(step, decades=4.0, **checked), is_scaled=False)
    assert [f.kind for f in found] == ["vanishing"]
    assert kinds(40, below_eps=1.0) == ["underflow"]


def test_a_nonfinite_gradient_is_not_an_explosion_as_well() -> None:
    detector = Detector(0.5)
    for step in range(30):
        detector.update(observed(step), is_scaled=False)
    found = [f for step in range(30, 36) for f in detector.update(observed(step, total=math.nan), is_scaled=False)]
    assert [f.kind for f in found] == ["nonfinite"]


def story(step: int) -> Observation:
    """A run to which everything happens in turn."""
    sequences = (("rnn", torch.tensor(through_time(4.0 if step < 95 else 0.0))),)
    if step < 40:
        return observed(step, decades=4.0 if step > 5 else 0.0, update_ratio=1e-3, below_eps=1.0)
    if step < 70:
        return observed(step, below_eps=1.0, dtype="float16", output_zeros=1.0, sequences=sequences)
    if step < 100:
        return observed(step, **DETACHED, sequences=sequences, update_ratio=1e-6)
    if step < 130:
        return observed(step, total=math.nan if step == 104 else 1.0, update_ratio=1e-6, **silent(0, 1))
    return observed(step, total=1e5 if step < 150 else 1.0, loss=50.0, update_ratio=0.5, decades=-4.0)


def test_everything_goes_on_after_a_checkpoint_at_any_step() -> None:
    first = Detector(0.5)
    states, told, scores = {}, [], []
    for step in range(200):
        if step % 9 == 0:
            states[step] = saved_and_loaded(first.state_dict())
        told.append(first.update(story(step), is_scaled=False))
        scores.append(first.scores)
    happened = {f.kind for found in told for f in found}
    assert {"vanishing", "underflow", "vanishing_through_time", "nonfinite", "dead", "exploding"} <= happened
    for start, state in states.items():
        resumed = Detector(0.5)
        resumed.load_state_dict(state)
        for step in range(start, min(start + 40, 200)):
            assert resumed.update(story(step), is_scaled=False) == told[step]
            assert resumed.scores == scores[step]
