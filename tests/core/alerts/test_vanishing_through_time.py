from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core.alerts.explain import explain
from lightning_gradwatch.core.alerts.vanishing_through_time import ThroughTimeRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Cause, Finding
from tests.core.alerts.trained import Reader, explained, figures, random_labels, relu_net, watched
from tests.core.builders import judged, losses_of, observed, sample_of, saved_and_loaded, through_time

LOSSES = {
    "flat": losses_of(*[1.0] * 60),
    "not yet falling": losses_of(*[1.0] * 30),
    "too early to tell": losses_of(*[1.0] * 10),
    "falling": losses_of(*[10 * 0.9**i for i in range(30)]),
    "learned": losses_of(*[10 * 0.9**i for i in range(60)]),
}


def look(
    rule: ThroughTimeRule,
    history: History,
    step: int,
    sequences: dict[str, list[float]],
    losses: str = "flat",
    shares: dict[str, float] | None = None,
) -> list[Finding]:
    """Show the rule a sample while the loss is in a state."""
    observation = observed(step)
    history.losses, history.sample = LOSSES[losses], sample_of(observation)
    history.time.add(sequences, shares)
    return judged(rule, observation, history)


def opened_at(decades: float, losses: str = "flat") -> int | None:
    rule, history = ThroughTimeRule(), History()
    for step in range(20):
        if look(rule, history, step, {"rnn": through_time(decades)}, losses):
            return step
    return None


def test_what_the_states_of_the_loss_mean() -> None:
    concerns = {name: (losses.concern, losses.concern_regardless) for name, losses in LOSSES.items()}
    assert concerns == {
        "flat": ("alert", "alert"),
        "not yet falling": ("notice", "notice"),
        "too early to tell": (None, None),
        "falling": (None, "notice"),
        "learned": (None, "alert"),
    }


def test_three_decades_through_time_open_with_the_fifth_sample_and_only_while_the_loss_is_flat() -> None:
    assert opened_at(3.01) == 4
    assert opened_at(2.99) is None
    assert opened_at(9.0, "learned") is None


def test_the_layer_that_forgets_most_is_named_and_its_recovery_ends_it() -> None:
    rule, history = ThroughTimeRule(), History()
    for step in range(5):
        found = look(rule, history, step, {"a": through_time(1), "b": through_time(5), "c": through_time(4)})
    assert [(f.kind, f.layers, f.until_step) for f in found] == [("vanishing_through_time", ("b",), None)]
    assert found[0].value == pytest.approx(5)
    healed = [look(rule, history, step, dict.fromkeys("abc", through_time(1)), "learned") for step in range(5, 10)]
    (ended,) = [f for found in healed for f in found]
    assert (ended.step, ended.layers) == (4, ("b",))
    assert ended.until_step is not None


def test_a_layer_that_is_no_more_holds_no_alert_open() -> None:
    rule, history = ThroughTimeRule(), History()
    for step in range(5):
        look(rule, history, step, {"old": through_time(5)})
    assert rule.finding is not None
    history.keep(["new"])
    assert (history.time.worst, history.time.horizons) == (("", 0.0), {})
    healed = [f for step in range(5, 10) for f in look(rule, history, step, {"new": through_time(1)})]
    assert [(f.layers, f.until_step is None) for f in healed] == [(("old",), False)]
    assert history.time.worst[0] == "new"


def test_a_notice_rises_to_an_alert_and_does_not_fall_back() -> None:
    rule, history, told = ThroughTimeRule(), History(), []
    stretches = [("too early to tell", 10), ("not yet falling", 5), ("flat", 5), ("not yet falling", 5)]
    states = [losses for losses, length in stretches for _ in range(length)]
    for step, losses in enumerate(states):
        found = look(rule, history, step, {"rnn": through_time(5)}, losses)
        told += [(step, f.level, f.step) for f in found]
    assert told == [(10, "notice", 10), (15, "alert", 10)]


def overlook(decades: float, share: float, steps: int = 12, swings: float = 0.0) -> list[Finding]:
    rule, history, found = ThroughTimeRule(), History(), []
    for step in range(steps):
        seen = through_time(decades - swings * (step % 3))
        found += look(rule, history, step, {"rnn": seen}, "learned", {"rnn": share})
    return found


def test_six_decades_are_an_alert_whatever_the_loss_does_where_other_layers_make_it_fall() -> None:
    (finding,) = overlook(6.1, share=0.009)
    assert (finding.step, finding.level, finding.layers) == (4, "alert", ("rnn",))
    assert overlook(5.9, share=0.009) == []
    assert overlook(6.1, share=0.011) == []  # the loss falls by it, so that it may need the last steps only
    assert overlook(6.1, share=0.009, steps=4) == []
    assert overlook(7.0, share=0.009, swings=1.0) == []  # it may be about to remember


def test_the_layer_whose_loss_is_overlooked_is_named_before_one_that_loses_more() -> None:
    rule, history, found = ThroughTimeRule(), History(), []
    for step in range(12):
        seen, losses = {"reader": through_time(20), "encoder": through_time(8)}, "falling" if step < 8 else "learned"
        found += look(rule, history, step, seen, losses, {"reader": 0.9, "encoder": 0.001})
    assert [(f.step, f.level, f.layers) for f in found] == [(4, "notice", ("encoder",)), (4, "alert", ("encoder",))]
    assert [f.value for f in found] == pytest.approx([8.0, 8.0])


def test_shares_go_on_after_a_resume_and_may_be_missing_from_an_old_state() -> None:
    one, other, old = History(), History(), History()
    for step in range(4):
        look(ThroughTimeRule(), one, step, {"rnn": through_time(7)}, "learned", {"rnn": 0.001})
    state = one.time.state_dict()
    other.time.load_state_dict(saved_and_loaded(state))
    old.time.load_state_dict({name: part for name, part in state.items() if name != "shares"})
    found = [
        look(ThroughTimeRule(), history, 4, {"rnn": through_time(7)}, "learned", {"rnn": 0.001})
        for history in (one, other, old)
    ]
    assert found[0] == found[1] != []
    one.keep(["other"])
    assert one.time.state_dict()["shares"] == {}


def test_recurrent_weights_that_forget_are_named_with_their_horizon() -> None:
    alert = explained(
        watched(Reader(0.5), 90, loss_of=random_labels, lr=1e-3, every=2), "vanishing_through_time", "recurrence"
    )
    assert alert.layer == "read"
    horizon = math.log(100) / math.log(2)  # each step halves the gradient, or more
    assert 2 <= figures(alert.message.partition("only ")[2])[0] <= horizon + 2
    assert "of 32 time steps" in alert.message
    assert "32 times on its way back through read" in alert.evidence


class Forgetful(nn.Module):
    """A recurrent reader that forgets, beside layers that learn without it."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.reader, self.rest = Reader(gain), relu_net(3)
        with torch.no_grad():
            self.reader.judge.weight.mul_(0.05)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reader(x) + self.rest(x)
        return out


def test_an_encoder_that_forgets_is_found_while_other_layers_learn() -> None:
    found = watched(Forgetful(0.3), 90, every=2, lr=0.05)
    assert [alert.level for alert in found] == ["notice", "alert"]
    alert = explained(found, "vanishing_through_time", "recurrence")
    assert alert.layer == "reader.read"
    assert "whatever the loss does" in alert.message
    assert "it is not what lowers the loss" in alert.evidence
    assert watched(Forgetful(0.8), 90, every=2, lr=0.05) == []


@pytest.mark.parametrize(
    ("first", "grown", "cause"),
    [(0.0, 500.0, "learning_rate"), (-5.0, 500.0, "recurrence"), (0.0, 1.5, "recurrence")],
)
def test_a_layer_that_updates_have_made_forgetful_is_told_from_one_that_was_so(
    first: float, grown: float, cause: Cause
) -> None:
    history = History()
    history.time.horizons = {"read": (3, 64, 5.0)}
    evidence = history.evidence
    evidence.first_growth, evidence.update_ratio = {"read": first}, {"read": 3.4}
    evidence.weights.shrinkage, evidence.steps.lr = {"read": grown}, 20.0
    found = Finding("vanishing_through_time", "alert", 3, None, ("read",), 5.0, 3.0)
    assert explain(found, evidence).cause == cause
