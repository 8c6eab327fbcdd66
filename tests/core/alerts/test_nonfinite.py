from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core.alerts.explain import explain
from lightning_gradwatch.core.detector import Detector
from lightning_gradwatch.core.history import History
from tests.core.alerts.trained import classify, explained, relu_net, watched
from tests.core.builders import finding, steps_of


def test_a_nonfinite_gradient_is_found_at_once_with_its_first_step_and_layer() -> None:
    detector = Detector(0.5)
    (finding,) = detector.update(steps_of(10, 1.0, math.nan, math.inf, 1.0, layer=3), is_scaled=False)
    assert (finding.kind, finding.step, finding.layers) == ("nonfinite", 11, ("l3",))
    assert detector.scores["nonfinite_steps"] == 2


def test_a_nonfinite_incident_ends_after_twenty_finite_steps() -> None:
    detector = Detector(0.5)
    detector.update(steps_of(0, math.nan, 1.0, math.nan), is_scaled=False)
    assert detector.update(steps_of(3, *[1.0] * 19), is_scaled=False) == []
    (ended,) = detector.update(steps_of(22, 1.0), is_scaled=False)
    assert (ended.step, ended.until_step) == (0, 2)


def test_under_a_loss_scaler_only_the_third_skip_in_a_row_counts() -> None:
    detector = Detector(0.5)
    assert detector.update(steps_of(0, 1.0, math.inf, math.inf, 1.0, math.inf), is_scaled=True) == []
    (finding,) = detector.update(steps_of(5, math.inf, math.inf), is_scaled=True)
    assert finding.step == 4
    assert detector.scores["nonfinite_steps"] == 0
    assert detector.scores["skipped_steps"] == 5


def test_a_loss_scaler_has_twenty_steps_to_find_its_level_but_none_for_a_loss_that_is_not_finite() -> None:
    detector = Detector(0.5)
    assert detector.update(steps_of(0, *[math.inf] * 19), is_scaled=True) == []
    (finding,) = detector.update(steps_of(19, math.inf), is_scaled=True)
    assert (finding.step, finding.value, finding.threshold) == (0, 20, 20)
    bad = replace(steps_of(0, *[math.inf] * 3), losses=(1.0, 1.0, math.nan))
    (finding,) = Detector(0.5).update(bad, is_scaled=True)
    assert (finding.step, finding.value, finding.threshold) == (0, 3, 3)


def test_a_nonfinite_loss_is_found_where_no_gradient_is() -> None:
    detector = Detector(0.5)
    seen = replace(steps_of(4, 1.0, 1.0), losses=(1.0, math.inf))
    (finding,) = detector.update(seen, is_scaled=False)
    assert (finding.kind, finding.step, finding.layers) == ("nonfinite", 5, ())


def test_a_bad_batch_is_named_with_its_step() -> None:
    for value in (math.nan, math.inf):

        def spoil(step: int, pixels: Tensor, value: float = value) -> Tensor:
            pixels = pixels.clone()
            pixels[0, 0] = value if step == 7 else pixels[0, 0]
            return pixels

        alert = explained(watched(relu_net(3), 10, feed=spoil), "nonfinite", "bad_data")
        assert "the batch of step 7 itself" in alert.evidence


def test_an_unstable_operation_is_told_by_where_it_breaks() -> None:
    def backward_only(output: Tensor, digit: Tensor) -> Tensor:
        return classify(output, digit) + (output - output).abs().sum().sqrt()

    def in_the_loss(output: Tensor, digit: Tensor) -> Tensor:
        return classify(output, digit) - (0 * output).sum().log()

    alert = explained(watched(relu_net(3), 3, loss_of=backward_only), "nonfinite", "unstable_op")
    assert alert.evidence.startswith("the loss was finite and only the backward pass, first in 4,")
    alert = explained(watched(relu_net(3), 3, loss_of=in_the_loss), "nonfinite", "unstable_op")
    assert alert.evidence.startswith("the loss was not finite before any gradient was")


@pytest.mark.parametrize("every", [1, 10])
def test_a_slip_in_the_schedule_is_told_from_an_unstable_operation(every: int) -> None:
    class Slipping(torch.optim.SGD):
        num_steps = 0

        def step(self, closure: Any = None) -> Any:
            self.num_steps += 1
            self.param_groups[0]["lr"] = 1e9 if self.num_steps >= 30 else 0.01
            return super().step(closure)

    alert = explained(watched(relu_net(3), 60, optimizer=Slipping, every=every, lr=0.01), "nonfinite", "learning_rate")
    assert alert.evidence == "the learning rate has just risen from 0.01 to 1e+09"


def test_a_float16_overflow_is_named() -> None:
    net = relu_net(3).to(torch.float16)
    explained(watched(net, 3, feed=lambda step, pixels: 20000 * pixels), "nonfinite", "half_precision")


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("batch", [True, False, None], ids=["bad", "sound", "not looked at"])
@pytest.mark.parametrize("loss", [True, False, None], ids=["bad", "sound", "not known"])
def test_nothing_is_said_of_what_was_not_looked_at(batch: bool | None, loss: bool | None, num_ranks: int) -> None:
    evidence = History().evidence
    evidence.steps.num_ranks = num_ranks
    for is_bad, bad, sound in (
        (batch, evidence.steps.bad_inputs, evidence.steps.sound_inputs),
        (loss, evidence.steps.bad_losses, evidence.steps.sound_losses),
    ):
        if is_bad is not None:
            (bad if is_bad else sound).append(7)
    told = explain(finding("nonfinite", "4"), evidence).evidence
    assert ("holds NaN" in told) == (batch is True)
    if batch is not True:
        assert bool(re.search(r"batch (and loss|and the steps before)[^;]* were", told)) <= (batch is False)
        assert bool(re.search(r"loss (of this rank )?was finite|batch and loss of this rank were", told)) == (
            loss is False
        )
        assert ("loss was not finite" in told) == (loss is True)


def test_a_batch_with_nan_is_not_blamed_where_such_batches_have_done_no_harm() -> None:
    """As where a missing value is NaN, and masked."""

    def spoilt(step: int, pixels: Tensor) -> Tensor:
        pixels = pixels.clone()
        pixels[0, 0] = math.nan
        return pixels

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.num_calls = relu_net(3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.num_calls += 1
            out: Tensor = self.net(x.nan_to_num()) - (0.0 if self.num_calls < 7 else (0 * x.nan_to_num()).sum().log())
            return out

    alert = explained(watched(Masked(), 10, feed=spoilt), "nonfinite", "unstable_op")
    assert "though their batches, too, held NaN" in alert.evidence
