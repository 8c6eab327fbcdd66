from __future__ import annotations

import math

import pytest
from torch import Tensor, nn

from lightning_gradwatch.core.alerts.exploding import ExplodingRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Alert, Finding
from tests.core.alerts.trained import Reader, explained, figures, relu_net, scaled, watched
from tests.core.builders import judged, observed, profile, through_time
from tests.tasks import deep_net

ENDS = ("l0", "l4")


def explode(
    totals: list[float],
    losses: list[float] | None = None,
    usual_update: float = 0.0,
    depth: float = 0.0,
    time: float = 0.0,
) -> list[Finding]:
    """What is found where the gradient grows by so many decades with depth and time, after the last step too."""
    rule, history, found = ExplodingRule(), History(), []
    history.usual_update, history.profile = usual_update, profile(-depth)
    for _ in range(10):
        history.depth.add(history.profile)
        history.time.add({"rnn": through_time(-time)})
    for step, total in enumerate(totals):
        loss = losses[step] if losses else 1.0
        history.losses.add([loss])
        found += judged(rule, observed(step, total=total, loss=loss), history)
    return found


def test_growth_with_depth_explodes_at_three_decades_and_names_the_ends() -> None:
    (finding,) = explode([1.0] * 3, depth=3.01)
    assert (finding.kind, finding.layers) == ("exploding", ENDS)
    assert finding.value == pytest.approx(3.01)
    assert explode([1.0] * 3, depth=2.99) == []


def test_growth_with_time_names_the_recurrent_layer_when_it_is_the_larger() -> None:
    assert explode([1.0], time=3.5)[0].layers == ("rnn",)
    assert explode([1.0], depth=4.0, time=3.5)[0].layers == ENDS


def test_a_norm_that_stays_at_a_hundred_times_its_usual_size_explodes() -> None:
    (finding,) = explode([1.0] * 20 + [101.0] * 5)
    assert finding.value == pytest.approx(math.log10(101))
    assert explode([1.0] * 20 + [99.0] * 5) == []
    assert explode([1.0] * 10 + [101.0] * 9) == []  # too early to know what is usual


def test_a_spike_of_two_steps_is_none_and_a_calm_again_ends_it() -> None:
    assert explode(([1.0] * 20 + [1e4] * 2) * 5) == []
    found = explode([1.0] * 20 + [1e4] * 6 + [1.0] * 20)
    assert [f.until_step is None for f in found] == [True, False]
    assert found[1].until_step == 25


def test_a_loss_ten_times_its_start_has_diverged_unless_the_gradient_has_faded() -> None:
    losses = [1.0] * 20 + [11.0] * 20
    assert [f.kind for f in explode([1.0] * 20 + [2.0] * 20, losses)] == ["exploding"]
    assert explode([1.0] * 20 + [0.05] * 20, losses) == []
    assert explode([1.0] * 40, [1.0] * 20 + [9.0] * 20) == []


def test_huge_updates_explode_only_with_a_loss_above_its_start() -> None:
    assert explode([1.0] * 30, [1.0] * 5 + [1.5] * 25, usual_update=0.11)[0].kind == "exploding"
    assert explode([1.0] * 30, [1.0] * 30, usual_update=0.5) == []
    assert explode([1.0] * 30, [1.0] * 5 + [1.5] * 25, usual_update=0.09) == []


def test_nonfinite_and_absent_norms_are_nobodys_spike() -> None:
    assert explode([1.0] * 20 + [math.inf, math.nan, 0.0, -1.0] * 3) == []


def test_large_initial_weights_that_make_gradients_explode_are_named_with_their_gain() -> None:
    for net, gain in (
        (scaled(relu_net(), 4.0), 4),  # times He's
        (scaled(deep_net(nn.Tanh, 32), 8 * math.sqrt(3)), 8),  # nn.Linear's own gain is 1 / sqrt(3)
    ):
        alert = explained(watched(net, 12, lr=1e-12), "exploding", "large_init")
        assert figures(alert.evidence)[0] == pytest.approx(gain, rel=0.05)


def huge(output: Tensor, digit: Tensor) -> Tensor:
    return (output.sum(1) - digit).square().mean()


def test_a_learning_rate_that_is_too_high_is_named() -> None:
    def watch(lr: float) -> list[Alert]:
        return watched(nn.Sequential(nn.Linear(64, 10)), 40, loss_of=huge, lr=lr)

    alert = explained(watch(0.02), "exploding", "learning_rate")
    assert "learning rate of 0.02" in alert.evidence
    explained(watch(10.0), "nonfinite", "learning_rate")
    assert watch(1e-4) == []
    assert "a lower learning rate" in alert.remedies


def test_recurrent_weights_that_explode_are_named_with_their_growth() -> None:
    alert = explained(watched(Reader(2.0), 12, lr=1e-12), "exploding", "recurrence")
    assert "the 32 time steps of read" in alert.evidence
    assert figures(alert.evidence)[0] >= 3
