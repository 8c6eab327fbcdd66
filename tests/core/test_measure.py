from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core.figures import LayerFigures, combine
from lightning_gradwatch.core.groups import Groups
from lightning_gradwatch.core.measure import NormWindow, ParameterMeter
from lightning_gradwatch.core.norms import dense, nonzero_counts, norms
from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.core.shards import Shards
from tests.tasks import with_gradients


@pytest.mark.parametrize("shape", [(2**12, 2**12), (1025, 1025), (9_999_991,), (512, 512, 3, 3)])
def test_norms_of_large_gradients_are_right_to_six_digits(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gradient = 1e-3 * torch.rand(shape)
    last = (
        gradient.to(memory_format=torch.channels_last)
        if len(shape) == 4
        else gradient.mT
        if len(shape) == 2
        else gradient
    )
    expected = gradient.double().norm().item()
    assert Groups([gradient]).norms([gradient]).item() == pytest.approx(expected, rel=1e-6)
    assert Groups([gradient]).norms([last]).item() == pytest.approx(expected, rel=1e-6)
    with_gaps = gradient.repeat_interleave(2, 0)[::2]
    assert Groups([gradient]).norms([with_gaps]).item() == pytest.approx(expected, rel=1e-2)
    many = [torch.ones(3) for _ in range(5)]
    norms_of_all = Groups([*many, gradient]).norms([*many, gradient]).tolist()
    assert norms_of_all == pytest.approx([3**0.5] * 5 + [expected], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_norms_accumulate_in_float32_or_better(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = [(3 * torch.randn(300, 70)).to(dtype), torch.tensor(-2.0).to(dtype), torch.ones(3).to(dtype)]
    expected = [torch.linalg.vector_norm(dense(t).double()).item() for t in tensors]
    measured = norms(tensors)
    assert all(n.dtype is torch.float32 and n.shape == () for n in measured)
    assert [n.item() for n in measured] == pytest.approx(expected, rel=1e-5)


def test_scalar_parameters_are_measured_together_too() -> None:
    net = nn.ParameterList([nn.Parameter(torch.tensor(float(i))) for i in range(1, 7)])
    for parameter in net:
        parameter.grad = 2 * parameter.detach()
    window = NormWindow(list(net))
    assert window.push(None, None, False)
    assert window.norms[0].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


def test_half_precision_neither_overflows_nor_underflows() -> None:
    large, small = torch.full((10_000,), 1000.0).half(), torch.full((10_000,), 1e-4).half()
    assert large.norm().isinf()
    assert norms([large])[0].item() == pytest.approx(1e5, rel=1e-5)
    assert norms([small])[0].item() == pytest.approx(0.01, rel=1e-2)


def test_an_uncoalesced_sparse_gradient_counts_once() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 0, 2]]), torch.tensor([[1.0], [2.0], [4.0]]), (5, 1))
    assert norms([sparse, torch.ones(4)])[0].item() == pytest.approx(5.0)
    assert nonzero_counts([sparse])[0].item() == 2


def test_a_complex_gradient_is_measured_with_real_neighbours() -> None:
    assert [n.item() for n in norms([torch.tensor([3 + 4j]), torch.tensor([2.0])])] == [5.0, 2.0]
    assert norms([torch.tensor([3 + 4j]).conj()])[0].item() == 5.0


def test_the_total_is_torchs_own() -> None:
    torch.manual_seed(0)
    parameters = with_gradients(torch.randn(20, 30), torch.randn(7), torch.randn(()))
    window = NormWindow(parameters)
    window.push(None, None, gradients_scaled=False)
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = combine(window.rows()[:, :-3], torch.tensor([0, 0, 1]), 2)[0, 0]
    assert total.item() == pytest.approx(torch.nn.utils.get_total_norm(gradients).item(), rel=1e-6)


def test_a_missing_gradient_is_no_zero() -> None:
    parameters = with_gradients(torch.tensor([3.0, 4.0]), None, torch.zeros(2))
    window = NormWindow(parameters)
    assert window.push(torch.tensor(0.5), None, gradients_scaled=False)
    assert window.rows()[:, :-2].tolist() == [[5.0, MISSING, 0.0, 0.5]]
    assert combine(window.rows()[:, :-3], torch.tensor([0, 1, 2]), 3).tolist() == [[5.0, 5.0, MISSING, 0.0]]


def test_without_any_gradient_there_is_no_observation() -> None:
    window = NormWindow(with_gradients(None, None))
    assert not window.push(torch.tensor(1.0), None, gradients_scaled=False)
    assert len(window) == 0


def test_the_loss_scale_is_divided_out_of_what_carries_it() -> None:
    window = NormWindow(with_gradients(torch.tensor([1024.0]), None))
    scale = torch.tensor(512.0)
    window.push(torch.tensor(2048.0), scale, gradients_scaled=True)
    window.push(torch.tensor(2048.0), scale, gradients_scaled=False)
    rows = window.rows()
    assert rows[:, 0].tolist() == [2.0, 1024.0]
    assert rows[:, -3].tolist() == [4.0, 4.0]
    assert (rows[:, 1] < 0).all()


@pytest.mark.parametrize("loss", [None, torch.ones(2), torch.tensor(1j)])
def test_a_loss_that_is_no_number_is_unknown(loss: Tensor | None) -> None:
    window = NormWindow(with_gradients(torch.ones(1)))
    window.push(loss, None, gradients_scaled=False)
    assert math.isnan(window.rows()[0, -3].item())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_layer_spoils_itself_and_the_total_only(bad: float) -> None:
    window = NormWindow(with_gradients(torch.tensor([bad, 1.0]), torch.tensor([3.0])))
    window.push(None, None, gradients_scaled=False)
    total, first, second = combine(window.rows()[:, :-3], torch.tensor([0, 1]), 2)[0].tolist()
    assert not math.isfinite(total)
    assert not math.isfinite(first)
    assert second == 3.0


def test_weight_norms_and_zero_fractions_per_layer() -> None:
    parameters = with_gradients(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0]), None)
    meter, figures = ParameterMeter(parameters, Shards(parameters)), LayerFigures([0, 0, 1], 3, [3, 1, 2], [])
    assert figures.weight_norms(meter.weight_norms()).tolist() == pytest.approx([2.0, math.sqrt(2), MISSING])
    assert figures.zero_fractions(meter.nonzeros([p.grad for p in parameters])).tolist() == [0.75, MISSING, MISSING]


def test_the_window_is_bounded_and_can_be_restored() -> None:
    window = NormWindow(with_gradients(torch.ones(1)))
    steps = 0
    while not window.is_due(10**6):
        window.push(torch.tensor(float(steps)), None, gradients_scaled=False)
        steps += 1
    assert 2 <= steps <= 1024
    assert window.is_due(steps)
    window.clear()
    window.push(torch.tensor(7.0), None, gradients_scaled=False)
    other = NormWindow(with_gradients(torch.ones(1)))
    assert other.restore(window.rows().clone())
    assert other.rows()[:, :-2].tolist() == [[1.0, 7.0]]
    assert not NormWindow(with_gradients(torch.ones(1), torch.ones(1))).restore(window.rows())


def test_memory_stays_at_a_megabyte_with_thousands_of_parameters() -> None:
    window = NormWindow(with_gradients(*[torch.ones(1)] * 5000))
    window.push(None, None, gradients_scaled=False)
    assert window.rows().untyped_storage().nbytes() <= 2**20 + 4 * 5001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_measured_together_is_measured_as_if_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes = [(7, 3), (5,), (7, 3), (7, 3), (600, 600), (7, 3), (5,), (5,), (5,), (2, 2), (7, 3)]
    tensors = [torch.randn(shape).relu().to(dtype) for shape in shapes]
    tensors[2][0, 0], tensors[3][0, 1], tensors[5][:] = math.nan, -math.inf, -0.0
    groups = Groups(tensors)
    assert groups.nonzeros(tensors).tolist() == [torch.count_nonzero(t).item() for t in tensors]
    alone = [torch.linalg.vector_norm(t.float()).item() for t in tensors]
    assert groups.norms(tensors).tolist() == pytest.approx(alone, rel=1e-5, nan_ok=True)
    out = torch.empty(len(tensors) + 2)
    groups.norms(tensors, torch.tensor(7.0), torch.tensor(8.0), out=out)
    assert out.tolist() == pytest.approx([*alone, 7.0, 8.0], rel=1e-5, nan_ok=True)
