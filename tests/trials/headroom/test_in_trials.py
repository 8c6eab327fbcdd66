"""The headroom in prescriptions and alerts: measured where the rate may be the cause, and heard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, Headroom, lr_headroom, prescribe
from lightning_gradwatch.core.alerts.causes import LR_REMEDIES
from lightning_gradwatch.outputs import alerts_file
from lightning_gradwatch.reading.trials import headroom as told_of
from lightning_gradwatch.reading.trials import shown
from lightning_gradwatch.trials.headroom.advice import advice
from tests.builders import as_logged
from tests.tasks import Classifier, deep_net, digits, fit, small_net

LOWER, *OTHERS = LR_REMEDIES


def too_fast(rate: float = 30.0) -> Any:
    torch.manual_seed(0)
    return Classifier(deep_net(nn.ReLU, 6), lr=rate, momentum=0.0)


@pytest.mark.parametrize(
    ("multiples", "expected"),
    [
        ((0.2, 0.3, 0.4), ("a learning rate below 0.03, as measured", *OTHERS)),
        ((0.2,), ("a learning rate below 0.02, as measured", *OTHERS)),
        ((0.7,), LR_REMEDIES),
        ((1.5,), LR_REMEDIES),
        ((1.5, 1.6, 1.4), LR_REMEDIES),
        ((math.inf,), LR_REMEDIES),
        ((0.0, 0.0, 0.0), LR_REMEDIES),
        ((math.nan,), LR_REMEDIES),
    ],
)
def test_a_guess_gives_way_to_what_is_sure(multiples: tuple[float, ...], expected: tuple[str, ...]) -> None:
    assert advice(LR_REMEDIES, Headroom(multiples, (0.1,))) == expected


def test_several_rates_are_told_by_their_factor() -> None:
    found = advice((LOWER,), Headroom((0.2,), (0.1, 0.01)))
    assert found == ("a learning rate below 0.2 times the present one, as measured",)


def test_what_is_not_of_the_rate_stays() -> None:
    assert advice(("ReLU",), Headroom((0.2,), (0.1,))) == ("ReLU",)


def test_a_prescription_has_it_where_a_remedy_changes_the_rate() -> None:
    model = too_fast()
    batches = digits(batch_size=64)
    found = prescribe(model, batches, candidates="lr.tenth", steps=2, progress=False)
    assert found.headroom is not None
    assert 1 <= len(found.headroom.multiples) < 5  # until it has diverged
    assert found.headroom.rates == (30.0,)
    assert 0 < found.headroom.median < 1
    assert str(found.headroom).split(" (")[0] in str(found)
    assert found.as_dict()["headroom"] == found.headroom.as_dict()
    assert str(found.headroom) in found._repr_html_()
    assert prescribe(model, batches, candidates="init.he", steps=2, progress=False).headroom is None


def test_momentum_that_gathers_in_the_first_steps_is_in_it() -> None:
    torch.manual_seed(0)
    model = Classifier(deep_net(nn.Tanh, 4), lr=1.5, momentum=0.9)
    batches, optimizer = digits(batch_size=64), model.configure_optimizers()
    at_the_start = lr_headroom(model, batches, optimizer=optimizer)
    found = prescribe(model, batches, optimizer=optimizer, candidates="lr.tenth", steps=2, progress=False).headroom
    assert found is not None
    assert len(found.multiples) == 5
    assert found.median < at_the_start.median / 2


def test_it_costs_the_model_nothing() -> None:
    model = too_fast()
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    prescribe(model, digits(batch_size=64), candidates="lr.tenth", steps=2, progress=False)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


class Fragile(nn.Module):
    """Fails from its fifth forward pass in a copy on."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.num = small_net(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.num += 1
        if self.num > 4:
            raise RuntimeError("no more")
        out: Tensor = self.net(x)
        return out


def test_what_cannot_be_measured_is_left_out() -> None:
    model = Fragile()
    found = prescribe(
        model, (torch.rand(8, 64), torch.arange(8) % 10), nn.CrossEntropyLoss(),
        candidates="lr.tenth", steps=1, progress=False, optimizer=torch.optim.SGD(model.parameters(), lr=1e5),
    )  # fmt: skip
    assert found.headroom is None


@pytest.mark.slow
def test_an_alert_of_a_run_says_it_and_so_do_file_and_tab(tmp_path: Path) -> None:
    watch = GradWatch(prescribe=True)
    fit(watch, too_fast(), directory=tmp_path, max_steps=20)
    (alert,) = [alert for alert in watch.alerts if alert.prescription is not None]
    assert alert.prescription is not None
    sentence = alert.prescription["headroom"]["text"]
    assert sentence in alert.message
    assert "past the edge" in sentence
    (line,) = [line for line in alerts_file.read(next(tmp_path.rglob("alerts.jsonl")).parent) if line["prescription"]]
    assert line["prescription"] is not None
    assert told_of(line["prescription"]) == sentence
    assert shown(as_logged(alert, prescription=line["prescription"]))["tried"]["headroom"] == sentence
