from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.detect import DepthRule, Detector
from lightning_gradwatch.core.detect.losses import LossHistory
from lightning_gradwatch.core.detect.profile import Profile, decades_lost, depth_profile, largest_jump
from lightning_gradwatch.core.evidence import Evidence
from lightning_gradwatch.core.records import Finding, Layer, Observation, Sample

LAYERS = tuple(Layer(f"l{i}", (f"l{i}.weight",), has_matrix=True) for i in range(6))


def profile(decades: float, at_outputs: bool = True) -> Profile:
    """Six layers, of which the last third has ``decades`` decades more gradient than the first."""
    norms = [1e-3] * 2 + [1e-3 * 10 ** (decades / 2)] * 2 + [1e-3 * 10**decades] * 2
    return Profile(tuple(layer.name for layer in LAYERS), tuple(norms), at_outputs)


def observation(step: int, *totals: float, layer: int = 0, decades: float = 0.0) -> Observation:
    """One step per total; a bad total comes from ``layer``."""
    norms = torch.ones(len(totals), 7)
    norms[:, 0] = norms[:, 1 + layer] = torch.tensor(totals)
    steps = tuple(range(step, step + len(totals)))
    outputs = torch.tensor(profile(decades).norms)
    sample = Sample(steps[-1], outputs, torch.ones(6), torch.zeros(6))
    return Observation(
        step=steps[-1],
        layers=LAYERS,
        steps=steps,
        norms=norms,
        losses=(1.0,) * len(totals),
        bad_inputs=(None,) * len(totals),
        lr=0.1,
        dtypes=frozenset({"float32"}),
        anatomy=None,
        sample=sample,
        histogram=None,
        publish=False,
    )


def test_decades_are_the_difference_of_the_outer_thirds() -> None:
    assert decades_lost([1e-6, 1e-6, 1e-2, 1e-4, 1.0, 1.0]) == pytest.approx(6)
    assert decades_lost([1e-5, 7.0, 1e-3]) == pytest.approx(2)
    assert decades_lost([1.0, 1e-3, 1e-5]) == pytest.approx(-5)
    assert decades_lost([1.0, 2.0]) is None


@given(st.lists(st.floats(1e-20, 1e20), min_size=3, max_size=30), st.floats(1e-6, 1e6))
def test_decades_do_not_depend_on_the_loss_scale(norms: list[float], scale: float) -> None:
    before, after = decades_lost(norms), decades_lost([n * scale for n in norms])
    assert before is not None
    assert after == pytest.approx(before, abs=1e-6)


def test_the_profile_skips_what_tells_nothing_about_depth() -> None:
    layers = [*LAYERS[:4], Layer("norm", ("norm.weight",)), LAYERS[4]]
    seen = depth_profile(layers, [1.0, 0.0, math.nan, 2.0, 5.0, 3.0], [9.0] * 6)
    assert seen == Profile(("l0", "l3", "l4"), (1.0, 2.0, 3.0), at_outputs=True)


def test_without_outputs_the_weights_gradients_stand_in() -> None:
    assert depth_profile(LAYERS, [-1.0] * 6, [1.0, 2.0, 3.0, -1.0, 4.0, 5.0]) == Profile(
        ("l0", "l1", "l2", "l4", "l5"), (1.0, 2.0, 3.0, 4.0, 5.0), at_outputs=False
    )


def update(rule: DepthRule, step: int, seen: Profile) -> Finding | None:
    found = rule.update(step, seen)
    return found[0] if found else None


def opened_at(rule: DepthRule, decades: float, at_outputs: bool = True) -> int | None:
    for step in range(30):
        finding = update(rule, step, profile(decades, at_outputs))
        if finding is not None:
            return finding.step
    return None


def test_the_alert_opens_at_two_decades_with_the_twentieth_sample_and_with_the_tenth_at_a_quarter_more() -> None:
    assert opened_at(DepthRule(0.5), 2.01) == 19
    assert opened_at(DepthRule(0.5), 1.99) is None
    assert opened_at(DepthRule(0.5), 2.49) == 19
    assert opened_at(DepthRule(0.5), 2.51) == 9
    assert opened_at(DepthRule(0.75), 2.99) is None
    assert opened_at(DepthRule(0.75), 3.01) == 19
    assert opened_at(DepthRule(0.75), 3.76) == 9


def test_a_borderline_loss_that_is_shed_in_the_first_steps_is_none() -> None:
    rule = DepthRule(0.5)
    assert [update(rule, step, profile(2.6 - 0.05 * step)) for step in range(30)] == [None] * 30


def test_weights_gradients_must_lose_two_and_a_half_decades() -> None:
    assert opened_at(DepthRule(0.5), 2.49, at_outputs=False) is None
    assert opened_at(DepthRule(0.5), 2.51, at_outputs=False) == 19
    assert opened_at(DepthRule(0.5), 3.13, at_outputs=False) == 9


def test_one_wild_sample_opens_nothing() -> None:
    rule = DepthRule(0.5)
    assert all(update(rule, step, profile(9.0 if step % 5 == 0 else 0.0)) is None for step in range(100))


def test_an_alert_ends_when_it_ends_and_not_in_between() -> None:
    rule = DepthRule(0.5)
    changes = [(step, update(rule, step, profile(d))) for step, d in enumerate([3.0] * 15 + [1.6] * 10 + [1.4] * 10)]
    found = [(step, change) for step, change in changes if change is not None]
    assert [step for step, _ in found] == [9, 27]
    assert found[0][1].until_step is None
    assert (found[1][1].step, found[1][1].until_step) == (9, 26)


def test_the_finding_names_the_starving_and_the_fed_end() -> None:
    rule = DepthRule(0.5)
    for step in range(10):
        finding = update(rule, step, Profile(("a", "b", "c", "d", "e", "f"), (1e-7, 1e-9, 1e-5, 1e-4, 1.0, 2.0), True))
    assert finding is not None
    assert finding.layers == ("b", "f")
    assert finding.value == pytest.approx(8.15, abs=0.01)


def test_a_nonfinite_gradient_is_found_at_once_with_its_first_step_and_layer() -> None:
    detector = Detector(0.5)
    (finding,) = detector.update(observation(10, 1.0, math.nan, math.inf, 1.0, layer=3), is_scaled=False)
    assert (finding.kind, finding.step, finding.layers) == ("nonfinite", 11, ("l3",))
    assert detector.scores["nonfinite_steps"] == 2


def test_a_nonfinite_incident_ends_after_twenty_finite_steps() -> None:
    detector = Detector(0.5)
    detector.update(observation(0, math.nan, 1.0, math.nan), is_scaled=False)
    assert detector.update(observation(3, *[1.0] * 19), is_scaled=False) == []
    (ended,) = detector.update(observation(22, 1.0), is_scaled=False)
    assert (ended.step, ended.until_step) == (0, 2)


def test_under_a_loss_scaler_only_the_third_skip_in_a_row_counts() -> None:
    detector = Detector(0.5)
    assert detector.update(observation(0, 1.0, math.inf, math.inf, 1.0, math.inf), is_scaled=True) == []
    (finding,) = detector.update(observation(5, math.inf, math.inf), is_scaled=True)
    assert finding.step == 4
    assert detector.scores["nonfinite_steps"] == 0
    assert detector.scores["skipped_steps"] == 5


def test_a_loss_scaler_has_twenty_steps_to_find_its_level_but_none_for_a_loss_that_is_not_finite() -> None:
    detector = Detector(0.5)
    assert detector.update(observation(0, *[math.inf] * 19), is_scaled=True) == []
    (finding,) = detector.update(observation(19, math.inf), is_scaled=True)
    assert (finding.step, finding.value, finding.threshold) == (0, 20, 20)
    bad = dataclasses.replace(observation(0, *[math.inf] * 3), losses=(1.0, 1.0, math.nan))
    (finding,) = Detector(0.5).update(bad, is_scaled=True)
    assert (finding.step, finding.value, finding.threshold) == (0, 3, 3)


def test_a_sample_of_a_skipped_step_says_nothing_of_gradients() -> None:
    detector, evidence = Detector(0.5), Evidence()
    for step in range(12):
        detector.update(observation(step, 1.0, decades=1.0), is_scaled=True)
        evidence.add(observation(step, 1.0, decades=1.0), {})
    scores, seen, told = detector.scores, detector.profile, (evidence.profile, evidence.effect)
    bad = observation(12, math.inf)
    assert bad.sample is not None
    unknown = torch.full((6,), -1.0)
    skipped = dataclasses.replace(bad.sample, output_grad_norm=unknown, zero_fraction=unknown, is_skipped=True)
    bad = dataclasses.replace(bad, sample=skipped)
    assert detector.update(bad, is_scaled=True) == []
    evidence.add(bad, {})
    assert detector.scores == {**scores, "skipped_steps": 1.0}
    assert detector.profile is seen
    assert (evidence.profile, evidence.effect) == told


def test_a_nonfinite_loss_is_found_where_no_gradient_is() -> None:
    detector = Detector(0.5)
    seen = dataclasses.replace(observation(4, 1.0, 1.0), losses=(1.0, math.inf))
    (finding,) = detector.update(seen, is_scaled=False)
    assert (finding.kind, finding.step, finding.layers) == ("nonfinite", 5, ())


def test_weights_gradients_do_not_mix_with_output_gradients() -> None:
    rule = DepthRule(0.5)
    for step in range(20):
        assert update(rule, step, profile(0.0)) is None
    assert update(rule, 20, profile(9.0, at_outputs=False)) is None
    assert rule.decades == 0.0
    found = [update(rule, step, profile(9.0, at_outputs=False)) for step in range(21, 40)]
    assert [f.kind for f in found if f is not None] == ["vanishing"]  # five in a row: the outputs are gone for good


def test_state_goes_on_in_the_middle_of_everything() -> None:
    one, other = Detector(0.5), Detector(0.5)
    for step in range(7):
        one.update(observation(step, math.nan, decades=5.0), is_scaled=False)
    state: dict[str, Any] = one.state_dict()
    other.load_state_dict(state)
    for step in range(7, 60):
        total = math.nan if step < 20 else 1.0
        decades = 5.0 if step < 30 else 0.0
        assert one.update(observation(step, total, decades=decades), False) == other.update(
            observation(step, total, decades=decades), False
        )
    assert one.scores == other.scores
    assert one.state_dict() == other.state_dict()


def test_a_seam_between_two_towers_is_no_vanishing_but_a_cliff_in_a_small_net_is() -> None:
    towers = Profile(tuple(f"l{i}" for i in range(30)), (1e-5,) * 15 + (2e-3,) * 15, at_outputs=True)
    small = Profile(("a", "b", "c", "d", "e", "f"), (1e-5,) * 3 + (2e-3,) * 3, at_outputs=True)
    assert [update(DepthRule(0.5), step, towers) for step in range(30)] == [None] * 30
    rule = DepthRule(0.5)
    assert [f.step for step in range(30) if (f := update(rule, step, small)) is not None] == [19]


def test_a_deep_slope_is_vanishing_however_level_its_steps() -> None:
    norms = tuple(10 ** (-3 + 0.1 * i) for i in range(40))
    rule, slope = DepthRule(0.5), Profile(tuple(f"l{i}" for i in range(40)), norms, at_outputs=True)
    assert [f.step for step in range(30) if (f := update(rule, step, slope)) is not None] == [9]


def test_one_layer_that_stands_out_is_no_jump() -> None:
    level = [1.0] * 30
    assert largest_jump([*level[:15], 100.0, *level[15:]]) < 0.1
    assert largest_jump([1e-3] * 15 + [1.0] * 15) == pytest.approx(3)
    assert largest_jump([1.0]) == 0.0


@pytest.mark.parametrize(("decades", "patience", "opens"), [(2.2, 1.25, False), (2.6, 1.25, True), (2.6, 1.5, False)])
def test_a_borderline_loss_can_wait_while_the_loss_is_falling(decades: float, patience: float, opens: bool) -> None:
    rule = DepthRule(0.5)
    found = [finding for step in range(20) for finding in rule.update(step, profile(decades), lambda: patience)]
    assert bool(found) is opens


def test_patience_lasts_only_while_the_loss_is_falling_still() -> None:
    falling, flat, fallen = LossHistory(), LossHistory(), LossHistory()
    falling.add([10 * 0.99**i for i in range(100)])
    flat.add([1.0 + 0.1 * (i % 3) for i in range(100)])
    fallen.add([5.0] * 10 + [1.0 + 0.1 * (i % 3) for i in range(90)])
    assert (falling.patience, flat.patience, fallen.patience) == (1.5, 1.0, 1.25)
