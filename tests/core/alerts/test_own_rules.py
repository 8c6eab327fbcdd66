"""Rules of users: asked like our own, heard like our own, and no danger to them."""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.core.alerts.explain import explain, explain_nothing
from lightning_gradwatch.core.alerts.hysteresis import Hysteresis
from lightning_gradwatch.core.alerts.own_rules import OwnRules
from lightning_gradwatch.core.alerts.rule import Rule
from lightning_gradwatch.core.detector import Detector
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.records import Alert, Finding, Observation
from lightning_gradwatch.core.saved import Saved
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.outputs import alerts_file
from tests.cli.command import here
from tests.core.builders import observed, saved_and_loaded


class Hot:
    """The last total norm is above five for two observations running."""

    kind = "hot"
    title = "The gradient is hot"
    unit = "degrees"
    cause = "nobody has opened a window"
    remedies = ("open a window", "wait for the winter")

    def __init__(self) -> None:
        self.hysteresis = Hysteresis(self.kind, 5.0, persistence=2)

    def update(self, observation: Observation, history: History) -> Finding | None:
        return self.hysteresis.judge(observation.step, observation.total_norms[-1], ("l3", "l4"))

    def state_dict(self) -> dict[str, Any]:
        return self.hysteresis.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hysteresis.load_state_dict(state)


class Told:
    """Lines that somebody was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.optional = OptionalFigures(lambda omission: self.lines.append(str(omission)))

    def detector(self, *rules: Any) -> Detector:
        return Detector(0.5, rules, self.optional)


def heat(detector: Detector, *totals: float, start: int = 0) -> list[tuple[str, int, int | None]]:
    """What is found in steps of these norms: kind, step and end."""
    steps = range(start, start + len(totals))
    found = [
        f
        for step, total in zip(steps, totals, strict=True)
        for f in detector.update(observed(step, total=total), False)
    ]
    return [(f.kind, f.step, f.until_step) for f in found]


def test_a_rule_opens_and_ends_like_our_own() -> None:
    detector = Told().detector(Hot())
    assert heat(detector, 1.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0) == [("hot", 2, None), ("hot", 2, 3)]


def test_its_alert_has_its_words() -> None:
    detector = Told().detector(Hot())
    (finding,) = [f for step in range(3) for f in detector.update(observed(step, total=9.0), False)]
    own = detector.own_kinds["hot"]
    alert = explain(finding, detector.history.evidence, "SGD", own)
    assert alert == explain_nothing(finding, "SGD", own)
    assert (alert.kind, alert.cause, alert.layer, alert.optimizer) == ("hot", "unknown", "l3", "SGD")
    assert alert.remedies == ("open a window", "wait for the winter")
    assert alert.evidence == "nobody has opened a window"
    assert alert.title == "The gradient is hot"
    assert alert.summary == "`hot` is at 9 degrees in l3, l4, and 5 is where it alerts."
    advice = "Nobody has opened a window. Try: open a window; wait for the winter."
    assert alert.message == f"The gradient is hot (step 1): {alert.summary} {advice}"


def test_a_rule_needs_no_words_but_its_title() -> None:
    class Bare:
        kind, title = "bare", "It is bare"

        def update(self, observation: Observation, history: History) -> Finding:
            return Finding(self.kind, "notice", observation.step, None, (), 1.0, 1.0)

    detector = Told().detector(Bare())
    (finding,) = detector.update(observed(3), False)
    alert = explain(finding, detector.history.evidence, own=detector.own_kinds["bare"])
    assert (alert.evidence, alert.remedies) == ("", ())
    assert alert.message == ("It is bare (step 3): `bare` is at 1, and 1 is where it alerts.")


def test_the_example_of_the_docstring_works() -> None:
    example = re.search(r"```python\n(.+?)\n *```", inspect.getdoc(Rule) or "", re.DOTALL)
    assert example is not None
    names: dict[str, Any] = {}
    exec(textwrap.dedent(example[1]), names)
    detector = Told().detector(names["Overheated"]())
    hot: dict[str, Any] = {"gradients": [1.0] * 5 + [120.0]}
    found = [f for step in range(4) for f in detector.update(observed(step, **hot), False)]
    assert [(f.kind, f.layers, f.step) for f in found] == [("overheated", ("head",), 1)]
    again = Told().detector(names["Overheated"]())
    again.load_state_dict(saved_and_loaded(detector.state_dict()))
    assert [f.until_step for step in (4, 5) for f in again.update(observed(step), False)] == [3]


def test_a_rule_sees_what_has_been_reduced_and_what_is_open() -> None:
    seen: list[tuple[bool, list[str], float, int]] = []

    class Curious(Hot):
        def update(self, observation: Observation, history: History) -> None:  # type: ignore[override]
            losses = history.losses
            seen.append((history.sample is not None, [*history.open], losses.now, len(history.evidence.layers)))

    detector = Told().detector(Curious())
    detector.update(observed(0), False)
    detector.update(observed(1, total=float("nan"), loss=3.0), False)
    assert seen == [(True, [], 1.0, 6), (True, ["nonfinite"], 2.0, 6)]


def test_a_rule_sees_what_a_rule_before_it_has_opened() -> None:
    seen: list[list[str]] = []

    class Second(Hot):
        kind = "second"

        def update(self, observation: Observation, history: History) -> None:  # type: ignore[override]
            seen.append([*history.open])

    heat(Told().detector(Hot(), Second()), 9.0, 9.0)
    assert seen == [[], ["hot"]]


class Broken(Hot):
    kind = "broken"

    def update(self, observation: Observation, history: History) -> Finding | None:
        if observation.step >= 1:
            raise RuntimeError("I am\nbroken")
        return None


@pytest.mark.parametrize("returned", ["hot", 3.0, [None], Finding("dead", "alert", 1, None, (), 1.0, 1.0)])
def test_a_rule_that_returns_what_is_no_finding_of_its_kind_is_left_out(returned: Any) -> None:
    class Odd(Hot):
        def update(self, observation: Observation, history: History) -> Any:
            return returned

    told = Told()
    assert heat(told.detector(Odd()), 1.0, 1.0) == []
    assert len(told.lines) == 1
    assert told.lines[0].startswith(
        "GradWatch leaves out your rule `hot` from now on, and goes on with the rest (TypeError"
    )


class Spoils(Hot):
    """Changes the norms that it is given."""

    kind = "spoils"

    def update(self, observation: Observation, history: History) -> None:
        observation.norms.zero_()


def test_what_a_rule_does_to_its_norms_neither_the_record_nor_the_next_rule_sees() -> None:
    seen = observed(0, total=9.0)
    before = seen.norms.clone()
    assert before.count_nonzero() > 0
    told = list(OwnRules([Spoils(), Hot()], (), OptionalFigures()).update(seen, History()))
    assert len(told) == 2
    assert torch.equal(seen.norms, before)


def test_a_rule_that_raises_costs_itself_alone_and_one_line() -> None:
    told = Told()
    line = inspect.getsourcelines(Broken.update)[1] + 2  # where it raises
    detector = told.detector(Broken(), Hot())
    assert heat(detector, 9.0, 9.0, float("nan"), 9.0) == [("hot", 1, None), ("nonfinite", 2, None)]
    assert told.lines == [
        "GradWatch leaves out your rule `broken` from now on, and goes on with the rest (RuntimeError: I am; "
        f"test_own_rules.py, line {line})."
    ]


def test_what_a_rule_says_over_and_over_is_one_alert() -> None:
    class Naive(Hot):
        def update(self, observation: Observation, history: History) -> Finding | None:
            level, is_hot = ("alert" if observation.step >= 2 else "notice"), observation.total_norms[-1] > 5
            until = None if is_hot else observation.step - 1
            return Finding(self.kind, level, observation.step, until, (), 9.0, 5.0)  # type: ignore[arg-type]

    detector = Told().detector(Naive())
    found = [f for step in range(8) for f in detector.update(observed(step, total=1.0 + 8 * (step < 4)), False)]
    assert [(f.level, f.step, f.until_step) for f in found] == [
        ("notice", 0, None),
        ("alert", 0, None),
        ("alert", 0, 3),
    ]
    assert detector.history.open == {}


def test_a_rule_goes_on_after_a_checkpoint() -> None:
    first, other = Told().detector(Hot()), Told().detector(Hot())
    assert heat(first, 9.0) == []
    other.load_state_dict(saved_and_loaded(first.state_dict()))
    assert heat(other, 9.0, start=1) == [("hot", 1, None)]
    again = Told().detector(Hot())
    again.load_state_dict(saved_and_loaded(other.state_dict()))
    assert [*again.history.open] == ["hot"]
    assert heat(again, 1.0, 1.0, start=2) == [("hot", 1, 1)]


def test_an_alert_of_a_rule_without_memory_is_known_again_after_a_checkpoint() -> None:
    class WithoutState:
        kind, title = "hot", "It is hot"

        def __init__(self) -> None:
            self.hysteresis = Hysteresis("hot", 5.0, persistence=2)

        update = Hot.update

    first, other = Told().detector(WithoutState()), Told().detector(WithoutState())
    assert heat(first, 9.0, 9.0) == [("hot", 1, None)]
    other.load_state_dict(saved_and_loaded(first.state_dict()))
    assert heat(other, 9.0, 9.0, 1.0, 1.0, start=2) == [("hot", 1, 3)]


def test_a_state_that_does_not_fit_is_dropped_and_said() -> None:
    class Picky(Hot):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.hysteresis = None  # type: ignore[assignment]
            raise KeyError("another version")

    first, told = Told().detector(Hot()), Told()
    heat(first, 9.0, 9.0)
    other, saved = told.detector(Picky()), Saved(first.state_dict())
    other.load_state_dict(saved)
    assert saved.lost == ["rules.hot.state"]
    assert other.history.open == {}
    assert heat(other, 9.0, 9.0, start=2) == [("hot", 3, None)]
    assert told.lines == []


def test_states_of_rules_that_are_gone_or_new_do_no_harm() -> None:
    with_rule, without = Told().detector(Hot()), Told().detector()
    heat(with_rule, 9.0, 9.0)
    saved = Saved(with_rule.state_dict())
    without.load_state_dict(saved)
    assert (saved.lost, without.history.open) == ([], {})
    saved = Saved(without.state_dict())
    with_rule.load_state_dict(saved)
    assert (saved.lost, with_rule.history.open) == ([], {})


@pytest.mark.parametrize(
    "part", [object(), {1, 2}, torch.float32, type("Real", (float,), {})(1.0)], ids=lambda state: type(state).__name__
)
def test_a_state_that_would_spoil_the_checkpoint_costs_the_rule(part: Any) -> None:
    class Unsaved(Hot):
        def state_dict(self) -> dict[str, Any]:
            return {"part": [part]}

    told = Told()
    detector = told.detector(Unsaved())
    saved_and_loaded(detector.state_dict())
    assert len(told.lines) == 1
    assert "your rule `hot`" in told.lines[0]
    assert heat(detector, 9.0, 9.0) == []


def test_tensors_of_a_state_are_copies() -> None:
    class Weighing(Hot):
        def __init__(self) -> None:
            self.weights = torch.ones(3)

        def update(self, observation: Observation, history: History) -> None:  # type: ignore[override]
            self.weights.add_(1)

        def state_dict(self) -> dict[str, Any]:
            return {"weights": self.weights, "places": (1, [2.0, None, "three"])}

    detector = Told().detector(Weighing())
    whole: dict[str, Any] = detector.state_dict()
    state = whole["rules"]["hot"]["state"]
    heat(detector, 1.0)
    assert state["places"] == (1, [2.0, None, "three"])
    assert torch.equal(state["weights"], torch.ones(3))


class Named(Hot):
    def __init__(self, **words: Any) -> None:
        super().__init__()
        self.__dict__.update(words)


class Locked(Hot):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (Hot(), "put the rule into a list"),
        ([Hot], "pass an instance"),
        ([object()], "pass an instance"),
        ([Named(kind="vanishing")], "`rules[0].kind` must be neither that of a built-in rule"),
        ([Hot(), Hot()], "`rules[1].kind` must be neither"),
        ([Named(kind="too hot")], 'for example "overheated"'),
        ([Named(kind=3)], 'for example "overheated"'),
        ([Named(title="")], "say what is wrong, as a headline"),
        ([Named(unit=None)], "leave it out if it is not known"),
        ([Named(cause=7)], "leave it out if it is not known"),
        ([Named(remedies="open a window")], "leave it out if there are none"),
        ([Locked()], "keep files, locks and the like out of it"),
    ],
)
def test_a_rule_that_will_not_do_is_refused_with_a_cure(rules: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^GradWatch: `rules\S*` must be .+, but .+ came\. To cure it: ") as refused:
        Detector(0.5, rules)
    assert said in str(refused.value)


def watcher(rule: Rule, lines: list[str]) -> tuple[nn.Module, torch.optim.Optimizer, Watcher]:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    settings = Settings(Schedule(50, 1), rules=(rule,))
    return net, optimizer, Watcher(net, optimizer, settings, tell=lambda left: lines.append(str(left)))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, watched: Watcher, steps: int) -> list[Alert]:
    """With gradients above any limit."""
    alerts: list[Alert] = []
    for _ in range(steps):
        watched.arm()
        optimizer.zero_grad()
        loss = net(torch.ones(3, 4)).sum() * 100
        loss.backward()
        alerts += watched.observe(loss=loss.detach()).alerts
    return [*alerts, *watched.flush().alerts]


def test_a_watcher_runs_the_rules_of_its_settings_and_takes_them_into_its_checkpoint() -> None:
    lines: list[str] = []
    rule = Hot()
    net, optimizer, watched = watcher(rule, lines)
    (alert,) = train(net, optimizer, watched, 4)
    assert (alert.kind, alert.step) == ("hot", 1)
    assert alert.title == "The gradient is hot"
    assert rule.hysteresis.finding is None  # each watcher has a copy of its own
    again = Watcher(net, optimizer, Settings(Schedule(50, 1), rules=(rule,)), tell=lambda left: lines.append(str(left)))
    again.load_state_dict(saved_and_loaded(watched.state_dict()))
    assert train(net, optimizer, again, 4) == []
    assert lines == []


def test_a_watcher_whose_rule_fails_goes_on() -> None:
    lines: list[str] = []
    net, optimizer, watched = watcher(Broken(), lines)
    assert train(net, optimizer, watched, 4) == []
    assert len(lines) == 1
    assert watched.scores["vanishing"] == 0.0


def test_the_title_reaches_the_readers_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, optimizer, watched = watcher(Hot(), [])
    (alert,) = train(net, optimizer, watched, 4)
    alerts_file.append(tmp_path, "opened", alert, "run")
    _, out, _ = here(capsys, "report", tmp_path)
    assert "hot" in out
    told = " ".join(out.split())
    assert "The gradient is hot · since step 1 · l3" in told
    assert "`hot` is at" in told
    assert "open a window" in told


class Answers:
    """A rule that answers what a test has it answer."""

    kind, title = "answers", "It answers"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def update(self, observation: Observation, history: History) -> Any:
        return self.answer


def finding(**changes: Any) -> Finding:
    fields = {"kind": "answers", "level": "alert", "step": 1, "until_step": None, "layers": ("a",), "value": 1.0}
    return Finding(**{**fields, "threshold": 0.5, **changes})


def asked(answer: Any) -> tuple[list[Finding], list[str]]:
    """What comes of an answer, and what is said."""
    said: list[str] = []
    rules = OwnRules([Answers(answer)], (), OptionalFigures(lambda left: said.append(str(left))))
    return [found for each in rules.update(observed(1), History()) for found in each], said


@pytest.mark.parametrize("number", [np.float64(2), np.float32(2), torch.tensor(2.0), 2, np.int64(2)], ids=repr)
def test_numbers_of_other_kinds_become_python_s_own_so_that_files_and_checkpoints_take_them(number: Any) -> None:
    (found,), said = asked(finding(value=number, threshold=number, layers=["a"]))
    assert said == []
    assert (type(found.value), type(found.threshold), found.layers) == (float, float, ("a",))
    assert torch.load(io.BytesIO(saved_bytes(dataclasses.asdict(found))), weights_only=True)["value"] == 2.0


def saved_bytes(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def test_a_step_of_numpy_becomes_python_s_own() -> None:
    (found,), _ = asked(finding(step=np.int64(3)))
    assert type(found.step) is int


@pytest.mark.parametrize(
    "answer",
    [
        True, False, 0.7, "text", torch.ones(2), object(), [finding(), None], finding(kind="another"),
        finding(value="high"), finding(value=None), finding(value=torch.ones(2)), finding(step=None), finding(step=1.5),
        finding(until_step="x"), finding(layers=None), finding(layers="net.0"), finding(layers=(1,)),
        finding(level="critical"),
    ],
    ids=lambda answer: type(answer).__name__,
)  # fmt: skip
def test_an_answer_that_is_none_costs_the_rule_alone(answer: Any) -> None:
    found, said = asked(answer)
    assert found == []
    (line,) = said
    assert line.startswith("GradWatch leaves out your rule `answers` from now on")
