"""All rules together: what one of them says while another is open, and how they go on after a checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradwatch.core.alerts.explain import explain
from lightning_gradwatch.core.detector import Detector
from lightning_gradwatch.core.records import (
    Observation,
)
from lightning_gradwatch.core.saved import Saved
from tests.core.builders import DETACHED, observed, saved_and_loaded, silent, steps_of, through_time

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


def test_a_sample_of_a_skipped_step_says_nothing_of_gradients() -> None:
    detector = Detector(0.5)
    history = detector.history
    for step in range(12):
        detector.update(steps_of(step, 1.0, decades=1.0), is_scaled=True)
    scores, seen, told = detector.scores, history.profile, (history.evidence.profile, history.evidence.effect)
    bad = steps_of(12, math.inf)
    assert bad.sample is not None
    unknown = torch.full((6,), -1.0)
    skipped = replace(bad.sample, output_grad_norm=unknown, zero_fraction=unknown, is_skipped=True)
    bad = replace(bad, sample=skipped)
    assert detector.update(bad, is_scaled=True) == []
    assert detector.scores == {**scores, "skipped_steps": 1.0}
    assert history.profile is seen
    assert (history.evidence.profile, history.evidence.effect) == told


def test_state_goes_on_in_the_middle_of_everything() -> None:
    one, other = Detector(0.5), Detector(0.5)
    for step in range(7):
        one.update(steps_of(step, math.nan, decades=5.0), is_scaled=False)
    state: dict[str, Any] = one.state_dict()
    other.load_state_dict(state)
    for step in range(7, 60):
        total = math.nan if step < 20 else 1.0
        decades = 5.0 if step < 30 else 0.0
        assert one.update(steps_of(step, total, decades=decades), False) == other.update(
            steps_of(step, total, decades=decades), False
        )
    assert one.scores == other.scores
    assert one.state_dict() == other.state_dict()


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


OLD = json.loads((Path(__file__).parents[1] / "data" / "detector-state.json").read_text())
"""The story above, told before each kind of alert had a file of its own: what was found at which step, in which words,
and the states of detector and evidence before some of the steps."""


@pytest.mark.parametrize("start", OLD["states"])
def test_the_state_of_an_older_version_goes_on_as_it_did_there(start: str) -> None:
    detector, told = Detector(0.5), []
    lost = [Saved(OLD["states"][start][part]) for part in ("detector", "evidence")]
    detector.load_state_dict(lost[0])
    detector.history.evidence.load_state_dict(lost[1])
    assert [part.lost for part in lost] == [[], []]
    for step in range(int(start), 200):
        findings = detector.update(story(step), is_scaled=False)
        told += [[step, asdict(f), explain(f, detector.history.evidence).message] for f in findings]
    assert json.loads(json.dumps(told)) == [line for line in OLD["told"] if line[0] >= int(start)]


def shared(state: Any, old: Any) -> Any:
    """What a state holds under the keys of an older one."""
    return {key: shared(state[key], old[key]) for key in old} if isinstance(old, dict) else state


def test_a_state_has_the_keys_of_older_versions_and_their_values() -> None:
    detector = Detector(0.5)
    for step in range(200):
        if str(step) in OLD["states"]:
            for state, old in (
                (detector.state_dict(), OLD["states"][str(step)]["detector"]),
                (detector.history.evidence.state_dict(), OLD["states"][str(step)]["evidence"]),
            ):
                assert json.loads(json.dumps(shared(state, old))) == old
        detector.update(story(step), is_scaled=False)
