"""The place where NaN is born is found in a replay of the step, and nothing of the user's is changed by it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from benchmarks.births import cases as births
from benchmarks.births.cases import CASES
from lightning_gradwatch import find_birth

SOURCE = Path(births.__file__).read_text().splitlines()


@pytest.mark.parametrize("name", CASES)
def test_it_is_found_where_it_is(name: str) -> None:
    case = CASES[name]
    model, batch, loss_fn = case.sick()
    birth = find_birth(model, batch, loss_fn, **case.given(model, is_sick=True))
    assert birth is not None
    assert birth.stage == case.stage, birth
    assert case.what in str(birth), birth
    assert birth.module == case.module, birth
    assert birth.samples == case.samples, birth
    assert birth.is_compiled == case.is_compiled
    has_own_line = case.module == "1" and name != "autocast"  # that one is torch's, called by torch's
    if has_own_line or name in ("loss_head", "recurrent") or name.startswith("checkpointed"):
        assert "born" in SOURCE[birth.line - 1] or "lambda" in birth.code, birth
        assert birth.file == "cases.py"


@pytest.mark.parametrize("name", CASES)
def test_the_healthy_twin_has_none(name: str) -> None:
    case = CASES[name]
    model, batch, loss_fn = case.healthy()
    assert find_birth(model, batch, loss_fn, **case.given(model, is_sick=False)) is None


def test_what_matters_to_nobody_is_left_out() -> None:
    assert find_birth(births.net(births.with_metric), (births.inputs(), births.labels()), nn.CrossEntropyLoss()) is None


@pytest.mark.parametrize("name", ["division", "where", "optimizer", "checkpointed_backward"])
def test_model_optimizer_and_random_numbers_are_as_before(name: str) -> None:
    case = CASES[name]
    model, batch, loss_fn = case.sick()
    given = case.given(model, is_sick=True)
    weights, random = deepcopy(model.state_dict()), torch.get_rng_state()
    state = deepcopy(given["optimizer"].state_dict()) if "optimizer" in given else None
    find_birth(model, batch, loss_fn, **given)
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if state is not None:
        assert given["optimizer"].state_dict() == state


def test_random_numbers_are_those_of_the_step() -> None:
    def rarely(x: Tensor) -> Tensor:
        return x / (torch.rand(()) > 0.5)

    seen = set()
    for seed in range(6):
        state = torch.Generator().manual_seed(seed).get_state()
        expected = float(torch.rand((), generator=torch.Generator().manual_seed(seed))) > 0.5
        batch = (births.inputs(), births.labels())
        birth = find_birth(births.net(rarely), batch, nn.CrossEntropyLoss(), random_state=state)
        assert (birth is None) == expected
        seen.add(expected)
    assert seen == {True, False}


class TwoNetworks(pl.LightningModule):
    """Optimized by hand: the second network is the one that is sick."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = births.net(torch.tanh), births.net(births.log_zero)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for net, optimizer in zip((self.first, self.second), self.optimizers(), strict=True):  # type: ignore[arg-type]
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.first, self.second)]


def test_it_is_found_in_a_second_optimizers_network() -> None:
    model = TwoNetworks()
    before = deepcopy(model.state_dict())
    birth = find_birth(model, (births.inputs(), births.labels()))
    assert birth is not None
    assert (birth.stage, birth.module) == ("forward", "second.1")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_are_bad_already_are_named() -> None:
    model = births.net(torch.tanh)
    with torch.no_grad():
        model[2].bias.fill_(torch.nan)  # type: ignore[operator]
    birth = find_birth(model, (births.inputs(), births.labels()), nn.CrossEntropyLoss())
    assert birth is not None
    assert (birth.stage, birth.module) == ("weights", "2.bias")


def test_running_statistics_that_the_step_has_spoilt_are_not_blamed() -> None:
    model = nn.Sequential(births.Layer(births.log_zero), nn.BatchNorm1d(births.SIZE), nn.Linear(births.SIZE, 3))
    batch = (births.inputs(), births.labels())
    model(batch[0])  # the step itself, which leaves NaN in them
    assert not bool(model[1].running_mean.isfinite().any())  # type: ignore[union-attr, operator]
    birth = find_birth(model, batch, nn.CrossEntropyLoss())
    assert birth is not None
    assert (birth.stage, birth.module) == ("forward", "0")


def test_nan_from_elsewhere_is_shown_where_it_comes_in() -> None:
    constant = torch.tensor(torch.nan)
    model = births.net(lambda x: x + constant)
    birth = find_birth(model, (births.inputs(), births.labels()), nn.CrossEntropyLoss())
    assert birth is not None
    assert (birth.stage, birth.module, birth.operation) == ("forward", "1", "")
    assert "no operation of this step has made" in birth.what
    assert "constant" in birth.code


def test_it_is_refused_before_memory_or_time_run_out() -> None:
    model, batch, loss_fn = CASES["division"].sick()
    with pytest.raises(RuntimeError, match=r"may take.*To cure it: free memory"):
        find_birth(model, batch, loss_fn, max_memory=10.0)
    with pytest.raises(RuntimeError, match=r"takes longer than.*a larger `max_seconds`"):
        find_birth(model, batch, loss_fn, max_seconds=1e-9)
    with pytest.raises(ValueError, match="`max_seconds` must be a number above 0"):
        find_birth(model, batch, loss_fn, max_seconds=0)
