from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradwatch.core.figures import moment_figures, update_figures
from lightning_gradwatch.core.updates import UpdateMeter, thin

UNKNOWN = -1.0
TAKEN = torch.tensor(True)


def ratio(meter: UpdateMeter) -> Tensor:
    return update_figures(meter.sums)[0]


def unchanged(meter: UpdateMeter) -> Tensor:
    return update_figures(meter.sums)[1]


def meter_of(parameters: list[Tensor], optimizer: torch.optim.Optimizer | None = None) -> UpdateMeter:
    """Every parameter is a layer of its own."""
    optimizer = optimizer or torch.optim.SGD(parameters, lr=0.1)
    return UpdateMeter(parameters, range(len(parameters)), len(parameters), optimizer)


def step_of(parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> tuple[UpdateMeter, list[float]]:
    """The meter after one step, and the true ratios from full copies of the weights."""
    meter = meter_of(parameters, optimizer)
    before = [p.detach().clone() for p in parameters]
    meter.remember(TAKEN)
    optimizer.step()
    meter.compare()
    pairs = zip(parameters, before, strict=True)
    return meter, [float((p.detach() - b).norm() / b.norm()) for p, b in pairs]


def weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    made: list[Tensor] = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.Adam(p, lr=0.01),
]


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
def test_the_ratio_of_small_parameters_is_exact(make_optimizer: Any) -> None:
    parameters = weights((16, 16), (7,), (2, 3, 5))
    meter, expected = step_of(parameters, make_optimizer(parameters))
    assert ratio(meter).tolist() == pytest.approx(expected, rel=1e-4)
    assert unchanged(meter).tolist() == [0.0] * 3


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
def test_the_ratio_of_large_parameters_is_about_right(make_optimizer: Any) -> None:
    parameters = weights((300, 211), (64, 64), (32, 16, 3, 3))
    meter, expected = step_of(parameters, make_optimizer(parameters))
    assert ratio(meter).tolist() == pytest.approx(expected, rel=0.25)


def test_the_parameters_of_a_layer_count_by_their_size() -> None:
    parameters = weights((100, 100), (10,))
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    with torch.no_grad():
        for parameter, push in zip(parameters, (0.01, 10.0), strict=True):
            parameter.fill_(1.0)
            parameter.grad = torch.full_like(parameter, push)
    meter = UpdateMeter(parameters, [0, 0], 1, optimizer)
    meter.remember(TAKEN)
    optimizer.step()
    meter.compare()
    assert ratio(meter).item() == pytest.approx(math.sqrt((10_000 * 0.01**2 + 10 * 10.0**2) / 10_010), rel=0.01)


def test_a_parameter_that_is_not_reported_disturbs_no_layer() -> None:
    parameters = weights((5, 5), (6, 6))
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    meter = UpdateMeter(parameters, [1, 0], 1, optimizer)
    meter.remember(TAKEN)
    before = parameters[1].detach().clone()
    optimizer.step()
    meter.compare()
    moved = parameters[1].detach() - before
    assert ratio(meter).tolist() == pytest.approx([float(moved.norm() / before.norm())], rel=1e-4)


def test_channels_last_weights_are_measured_where_they_lie() -> None:
    torch.manual_seed(0)
    model: nn.Conv2d = nn.Conv2d(16, 32, 3, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model(torch.randn(2, 16, 8, 8)).square().mean().backward()
    assert not model.weight.is_contiguous()
    meter, expected = step_of([model.weight], torch.optim.SGD(model.parameters(), lr=0.1))
    assert ratio(meter).tolist() == pytest.approx(expected, rel=0.25)
    assert thin(model.weight).untyped_storage().data_ptr() == model.weight.untyped_storage().data_ptr()


def test_a_blank_input_feature_does_not_hide_the_update() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(784, 256, bias=False)
    images = torch.randn(32, 784)
    images[:, :28] = 0  # as the border of MNIST
    layer(images).square().mean().backward()
    meter, expected = step_of([layer.weight], torch.optim.SGD(layer.parameters(), lr=0.1))
    assert ratio(meter).tolist() == pytest.approx(expected, rel=0.25)


def test_an_update_that_bfloat16_loses_leaves_everything_unchanged() -> None:
    for lr, lost in ((1e-4, 1.0), (0.1, 0.0)):
        weight = nn.Parameter(torch.ones(20, 20, dtype=torch.bfloat16))
        weight.grad = torch.ones_like(weight)
        meter, _ = step_of([weight], torch.optim.SGD([weight], lr=lr))
        assert unchanged(meter).item() == lost
        assert (ratio(meter).item() == 0) == (lost == 1.0)


def test_only_elements_with_a_gradient_can_be_lost() -> None:
    weight = nn.Parameter(torch.ones(10, dtype=torch.bfloat16))
    weight.grad = torch.tensor([0.0] * 6 + [1e-4] * 3 + [1.0], dtype=torch.bfloat16)
    meter, _ = step_of([weight], torch.optim.SGD([weight], lr=1.0))
    assert unchanged(meter).item() == pytest.approx(3 / 4)


def test_weights_without_a_gradient_have_not_moved_and_lost_nothing() -> None:
    parameters = weights((4, 4), (4, 4))
    parameters[0].grad = None
    meter, _ = step_of(parameters, torch.optim.SGD(parameters, lr=0.1))
    assert ratio(meter)[0] == 0
    assert ratio(meter)[1] > 0
    assert unchanged(meter).tolist() == [UNKNOWN, 0.0]


def test_weights_of_zero_have_no_ratio() -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.ones(4)
    meter, _ = step_of([weight], torch.optim.SGD([weight], lr=0.1))
    assert ratio(meter).item() == UNKNOWN
    assert unchanged(meter).item() == 0.0


def test_sparse_gradients_are_survived() -> None:
    table = nn.Embedding(50, 4, sparse=True)
    table(torch.tensor([1, 3])).sum().backward()
    meter, expected = step_of([table.weight], torch.optim.SGD(table.parameters(), lr=0.1))
    assert ratio(meter).tolist() == pytest.approx(expected, rel=1e-4)
    assert unchanged(meter).item() == UNKNOWN


@pytest.mark.parametrize("shape", [(9,), (16, 20)])
def test_complex_weights_are_measured(shape: tuple[int, ...]) -> None:
    parameters = weights(shape, (8, 8), dtype=torch.complex64)
    meter, expected = step_of(parameters, torch.optim.SGD(parameters, lr=0.1))
    assert ratio(meter).tolist() == pytest.approx(expected, rel=0.25)


def test_a_comparison_without_a_memory_changes_nothing() -> None:
    parameters = weights((3,))
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    meter = meter_of(parameters, optimizer)
    meter.compare()
    assert ratio(meter).item() == UNKNOWN
    meter.remember(TAKEN)
    optimizer.step()
    meter.compare()
    seen = ratio(meter).item()
    optimizer.step()
    meter.compare()
    assert ratio(meter).item() == seen


def test_the_step_is_the_same_with_and_without_a_meter() -> None:
    with_meter, alone = weights((40, 40)), weights((40, 40))
    step_of(with_meter, torch.optim.Adam(with_meter))
    torch.optim.Adam(alone).step()
    assert torch.equal(with_meter[0], alone[0])


def test_adams_moments_of_a_constant_gradient_are_corrected_for_their_bias() -> None:
    weight = nn.Parameter(torch.ones(4))
    weight.grad = torch.tensor([1e-9, 1e-9, 1e-9, 1e-3])
    optimizer = torch.optim.Adam([weight], lr=0.01, eps=1e-8)
    meter = meter_of([weight], optimizer)
    for num_steps in range(1, 30):
        optimizer.step()
        below, signal = moment_figures(meter.moments(num_steps))
        assert below.item() == pytest.approx(3 / 4)
        assert signal.item() == pytest.approx(1, rel=1e-3)


def test_adams_moments_are_those_of_its_state() -> None:
    parameters = weights((8, 8), (5,))
    optimizer = torch.optim.AdamW(parameters, betas=(0.8, 0.95), eps=0.7)
    meter = meter_of(parameters, optimizer)
    for _ in range(6):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    below, signal = moment_figures(meter.moments(6))
    for i, parameter in enumerate(parameters):
        state = optimizer.state[parameter]
        first, second = state["exp_avg"] / (1 - 0.8**6), state["exp_avg_sq"] / (1 - 0.95**6)
        assert 0 < float((second.sqrt() < 0.7).float().mean()) < 1  # both kinds are there
        assert below[i].item() == pytest.approx(float((second.sqrt() < 0.7).float().mean()))
        assert signal[i].item() == pytest.approx(float((first**2 / second).mean()), rel=1e-4)


def test_the_signal_of_pure_noise_is_what_theory_says() -> None:
    weight = nn.Parameter(torch.zeros(256))
    optimizer = torch.optim.Adam([weight], betas=(0.9, 0.999))
    torch.manual_seed(0)
    for _ in range(400):
        weight.grad = torch.randn(256)
        optimizer.step()
    assert moment_figures(meter_of([weight], optimizer).moments(400))[1].item() == pytest.approx(
        (1 - 0.9) / (1 + 0.9), rel=0.25
    )


def test_without_moments_nothing_is_known_of_them() -> None:
    parameters = weights((3,), (4,))
    for optimizer, num_steps in (
        (torch.optim.SGD(parameters, lr=0.1, momentum=0.9), 1),
        (torch.optim.Adam(parameters), 0),
    ):
        optimizer.step()
        below, signal = moment_figures(meter_of(parameters, optimizer).moments(num_steps))
        assert below.tolist() == signal.tolist() == [UNKNOWN] * 2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from([torch.float32, torch.complex64]))
def test_at_most_256_elements_are_taken_and_all_of_a_small_tensor(shape: list[int], dtype: torch.dtype) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    numbers = tensor.numel() * (2 if tensor.is_complex() else 1)
    assert thin(tensor).numel() == numbers if numbers <= 256 else 16 <= thin(tensor).numel() <= 256


def held_bytes() -> int:
    gc.collect()
    held = {o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) is Tensor}
    return sum(held.values())


def test_no_copy_of_the_weights_is_held() -> None:
    weight = nn.Parameter(torch.ones(1000, 1000))
    weight.grad = torch.ones_like(weight)
    meter = meter_of([weight])
    before = held_bytes()
    meter.remember(TAKEN)
    assert held_bytes() - before < 10_000
    meter.compare()
    assert held_bytes() - before < 10_000


def test_small_parameters_of_one_shape_are_compared_together_and_each_gets_its_own_ratio() -> None:
    parameters = weights(*[(8, 8)] * 5, (3,), *[(64, 64)] * 4, (8, 8), (4,))
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** -(i % 4)
    parameters[1].grad = None
    meter, true = step_of(parameters, torch.optim.SGD(parameters, lr=0.1))
    exact = [i for i, parameter in enumerate(parameters) if parameter.numel() <= 256]
    assert ratio(meter)[exact].tolist() == pytest.approx([true[i] for i in exact], rel=1e-5)
    assert ratio(meter).tolist() == pytest.approx(true, rel=0.3)
    assert unchanged(meter).tolist() == [UNKNOWN if i == 1 else 0.0 for i in range(len(parameters))]
    assert not meter.sums.requires_grad
