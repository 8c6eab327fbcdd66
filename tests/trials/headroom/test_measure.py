"""The headroom of real models: what it is, and that nothing of the run is touched."""

from __future__ import annotations

import math
import random
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import Headroom, lr_headroom
from tests.tasks import Classifier, small_net

SIZE, BATCH = 8, 16


class Quadratic(nn.Module):
    """``0.5 w.H w`` with curvatures from 0.1 to 10."""

    def __init__(self, start: Tensor | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        rotation = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator))[0]
        self.curvature = rotation @ torch.diag(torch.logspace(-1, 1, SIZE)) @ rotation.T
        self.top = rotation[:, -1]
        self.w = nn.Parameter(torch.randn(SIZE, generator=generator) if start is None else start)

    def forward(self) -> Tensor:
        value: Tensor = 0.5 * self.w @ self.curvature @ self.w
        return value


def loss_of(model: nn.Module, _: Any) -> Tensor:
    value: Tensor = model()
    return value


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, SIZE, generator=generator), torch.arange(BATCH) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(SIZE, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )  # fmt: skip


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.25, 0.4, 1.0])
def test_on_a_quadratic_it_is_that_of_the_gradients_own_direction(rate: float) -> None:
    model = Quadratic()
    gradient = (model.curvature @ model.w).detach()
    expected = float(2 * gradient @ gradient / (rate * (gradient @ model.curvature @ gradient)))
    found = lr_headroom(model, None, loss_of, optimizer=torch.optim.SGD(model.parameters(), lr=rate))
    assert found.median == pytest.approx(math.inf if expected > 16 else expected, rel=0.01)
    assert found.rates == (rate,)


def test_along_the_top_eigenvector_it_is_two_over_rate_and_eigenvalue() -> None:
    model = Quadratic(Quadratic().top.clone())
    found = lr_headroom(model, None, loss_of, optimizer=torch.optim.SGD(model.parameters(), lr=0.08))
    assert found.median == pytest.approx(2 / (0.08 * 10), rel=0.01)


@pytest.mark.parametrize("name", ["momentum", "AdamW"])
def test_with_other_optimizers_it_is_that_of_a_dense_search(name: str) -> None:
    model = Quadratic()
    kinds: dict[str, Any] = {
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5, weight_decay=0.01),
        "AdamW": lambda: torch.optim.AdamW(model.parameters(), lr=0.2),
    }
    optimizer = kinds[name]()
    for _ in range(3):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    found = lr_headroom(model, None, loss_of, optimizer=optimizer)
    start = model.w.detach().clone()
    optimizer.zero_grad()
    model().backward()
    optimizer.step()
    update, curvature = (model.w.detach() - start).double(), model.curvature.double()
    multiples = torch.linspace(1e-3, 16, 160_000, dtype=torch.double)
    slope = start.double() @ curvature @ update
    rises = multiples * slope + multiples**2 * (update @ curvature @ update) / 2
    assert found.median == pytest.approx(float(multiples[(rises >= 0).nonzero()[0, 0]]), rel=0.01)


def test_nothing_of_the_run_is_touched_and_it_is_repeatable() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
    optimizer.step()
    before = deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    states = torch.get_rng_state(), random.getstate()
    first, second = (lr_headroom(model, batch(), nn.CrossEntropyLoss(), optimizer=optimizer) for _ in range(2))
    assert first == second
    assert first.median > 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    after = model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert all(torch.equal(grad, kept) for grad, kept in zip(after[2], before[2], strict=True))  # type: ignore[arg-type]
    assert str(after[1]) == str(before[1])


def test_of_a_loader_five_batches_are_measured() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(TensorDataset(*(part.repeat(10, *[1] * (part.ndim - 1)) for part in batch())), BATCH)
    found = lr_headroom(model, loader, nn.CrossEntropyLoss(), optimizer=optimizer)
    assert len(found.multiples) == 5
    assert "on 5 batches" in str(found)


def test_clipping_makes_room() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    free = lr_headroom(model, batch(), nn.CrossEntropyLoss(), optimizer=optimizer).median
    clipped = lr_headroom(model, batch(), nn.CrossEntropyLoss(), optimizer=optimizer, clip=0.01).median
    assert free < 1 < clipped


def test_a_lightning_module_brings_its_own_loss() -> None:
    model = Classifier(small_net(), lr=0.1)
    optimizer = model.configure_optimizers()
    found = lr_headroom(model, (torch.rand(BATCH, 64), torch.arange(BATCH) % 10), optimizer=optimizer)
    assert found.median > 1


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_that_of_the_run(precision: torch.dtype) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    exact = lr_headroom(model, batch(), nn.CrossEntropyLoss(), optimizer=optimizer).median
    found = lr_headroom(model, batch(), nn.CrossEntropyLoss(), optimizer=optimizer, precision=precision).median
    assert found == pytest.approx(exact, rel=0.3)


def test_an_update_that_leads_uphill_is_said_to_be_no_matter_of_the_rate() -> None:
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, maximize=True)
    found = lr_headroom(model, None, loss_of, optimizer=optimizer)
    assert found.num_uphill == 1
    assert "does not lead downhill on 1 of 1 batches" in str(found)


def test_a_loss_that_is_not_finite_has_none() -> None:
    model = net()
    inputs, targets = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = lr_headroom(model, (inputs * math.nan, targets), nn.CrossEntropyLoss(), optimizer=optimizer)
    assert math.isnan(found.median)
    assert "cannot be told" in str(found)


def test_memory_is_refused_before_it_is_short() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"needs .* MiB, and may take 0 MiB"):
        lr_headroom(model, batch(), nn.CrossEntropyLoss(), optimizer=optimizer, max_memory=100)


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="`optimizer` must be an optimizer"):
        lr_headroom(net(), batch(), nn.CrossEntropyLoss(), optimizer="Adam")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("multiples", "words"),
    [
        (
            (2.5,),
            "learning rate 2.5 (on one batch: single ones scatter): one step at 2.5 times the rate would still leave",
        ),
        ((2.5,), "That says nothing of the steps after it."),
        ((0.5, 0.8, 2.0), "Headroom of the learning rate 0.8 (0.5 to 2 on 3 batches): past the edge"),
        ((math.inf, math.nan), "learning rate >16 (>16 to >16 on 2 batches): one step at more than 16 times the rate"),
        ((math.nan,), "cannot be told"),
    ],
)
def test_it_reads_well(multiples: tuple[float, ...], words: str) -> None:
    assert words in str(Headroom(multiples))
    assert Headroom(multiples).as_dict()["text"] == str(Headroom(multiples))


def test_a_rate_a_hundred_times_too_high_is_told_by_how_much() -> None:
    model = Quadratic()
    gradient = (model.curvature @ model.w).detach()
    edge = float(2 * gradient @ gradient / (gradient @ model.curvature @ gradient))
    found = lr_headroom(model, None, loss_of, optimizer=torch.optim.SGD(model.parameters(), lr=100 * edge))
    assert found.median == pytest.approx(0.01, rel=0.01)
    assert found.num_uphill == 0


def test_small_gradients_in_float16_are_scaled_as_a_loss_scaler_does_it() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)

    def tiny(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1e-7 * nn.functional.cross_entropy(outputs, targets)

    for group in optimizer.param_groups:
        group["lr"] = 2e7
    found = lr_headroom(model, batch(), tiny, optimizer=optimizer, precision=torch.float16).median
    exact = lr_headroom(model, batch(), tiny, optimizer=optimizer).median
    assert found == pytest.approx(exact, rel=0.3)


def test_several_optimizers_are_measured_apart() -> None:
    model = nn.ModuleDict({"one": nn.Linear(SIZE, 3), "other": nn.Linear(SIZE, 3)})
    for rate, part in ((0.1, "one"), (1e4, "other")):
        optimizer = torch.optim.SGD(model[part].parameters(), lr=rate)

        def loss(model: nn.Module, batch: Any, part: str = part) -> Tensor:
            return nn.functional.cross_entropy(model.get_submodule(part)(batch[0]), batch[1])

        found = lr_headroom(model, [*batch(), 0], loss, optimizer=optimizer)
        assert (found.median < 1) == (part == "other")


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="`optimizer` must be that of the model's parameters"):
        lr_headroom(net(), batch(), nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(net().parameters(), lr=0.1))


def test_a_module_that_steps_its_optimizers_itself_is_refused_without_a_loss_for_a_part() -> None:
    model = Classifier(small_net(), lr=0.1)
    model.automatic_optimization = False
    with pytest.raises(ValueError, match="give `loss_fn` and `optimizer` for the part"):
        lr_headroom(model, (torch.rand(BATCH, 64), torch.arange(BATCH) % 10), optimizer=model.configure_optimizers())


def test_several_steps_of_a_training_are_told_from_several_batches() -> None:
    assert "0.43 (0.2 to 1.5 at 3 of the first steps): past the edge" in str(Headroom((0.2, 0.43, 1.5), over="steps"))
    assert "0.2 (at the first step): past the edge" in str(Headroom((0.2,), over="steps"))
    assert "does not lead downhill at 2 of 3 of the first steps" in str(Headroom((0.0, 0.0, 1.5), over="steps"))
