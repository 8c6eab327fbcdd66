from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_gradwatch.core.histogram import EDGES, MAX_ELEMENTS, log_histograms, spread
from lightning_gradwatch.core.records import NUM_BINS


def test_counts_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(32, 32) * 1e-7
    counts = log_histograms([gradient], [0], 1, turn=0)[0]
    expected, _ = np.histogram(np.log10(gradient.abs().numpy().ravel()), EDGES)
    assert np.abs(counts[:NUM_BINS].numpy() - expected).sum() <= 4  # rounding at an edge moves a count to the next bin
    assert counts.sum() == gradient.numel()


def test_zeros_and_nonfinite_values_are_counted_apart() -> None:
    gradient = torch.tensor([0.0, 0.0, -0.0, math.nan, math.inf, -math.inf, 1.5])
    *bins, zeros, nonfinite = log_histograms([gradient], [0], 1, turn=0)[0].tolist()
    assert (sum(bins), zeros, nonfinite) == (1, 3, 3)


def test_the_whole_range_of_float32_has_a_bin() -> None:
    extremes = torch.tensor([1e-45, 3e38])
    counts = log_histograms([extremes], [0], 1, turn=0)[0]
    assert counts[:NUM_BINS].sum() == 2
    assert counts[0] == 1  # the smallest denormal, 10**-44.85
    assert EDGES[int(counts[:NUM_BINS].nonzero()[-1])] <= math.log10(3e38)


def test_layers_are_kept_apart_and_unreported_ones_left_out() -> None:
    gradients = [torch.ones(3), torch.full((2,), 1e-3), torch.ones(5), torch.ones(4)]
    counts = log_histograms(gradients, [1, 0, 1, 2], 2, turn=0)
    assert counts.sum(1).tolist() == [2, 8]


def test_small_gradients_of_one_shape_are_counted_together_as_each_alone() -> None:
    torch.manual_seed(0)
    shapes = [(33, 3), (33, 3), (0,), (33, 3), (50, 70), (33, 3), (50, 70), (33, 3), (200, 30), (50, 70), (50, 70), ()]
    gradients = [torch.randn(shape).relu() for shape in shapes]
    layers = [0, 1, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8]
    together = log_histograms(gradients, layers, 8, turn=5)
    alone = [log_histograms([gradient], [0], 1, turn=5) for gradient in gradients]
    assert torch.equal(together[0], alone[0][0])
    assert torch.equal(together[3], alone[5][0])
    assert torch.equal(together[7], alone[10][0])
    assert torch.allclose(together.sum(1), torch.tensor([99.0, 99, 3599, 99, 3599, 6000, 3500, 3500]))


def test_a_gradient_with_gaps_is_read_where_it_lies() -> None:
    index = torch.arange(10_000.0)
    assert torch.equal(spread(index.repeat_interleave(2)[::2], turn=3), spread(index, turn=3))
    assert spread(torch.ones(1).expand(5000), turn=3).sum() > 300


def test_the_loss_scale_is_divided_out() -> None:
    scaled = log_histograms([torch.full((4,), 1024.0)], [0], 1, 0, scale=torch.tensor(1024.0))
    plain = log_histograms([torch.full((4,), 1.0)], [0], 1, 0)
    assert torch.equal(scaled, plain)


@pytest.mark.parametrize("shape", [(1_000_003,), (1000, 1000), (64, 3, 7, 7), (512, 512, 3, 3), (4097,), (4096,), ()])
def test_the_subsample_is_bounded_and_reads_all_rows_and_columns(shape: tuple[int, ...]) -> None:
    index = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    chosen = spread(index, turn=3).long()
    assert min(index.numel(), MAX_ELEMENTS) / 3 <= len(chosen) <= MAX_ELEMENTS
    if index.numel() > 50 * MAX_ELEMENTS and len(shape) == 2:
        assert len(set((chosen % shape[1]).tolist())) > 0.9 * shape[1]
        assert len(set((chosen // shape[1]).tolist())) > 0.9 * shape[0]


GRADIENTS = {
    "bell-shaped": lambda: torch.randn(700, 700),
    "heavy-tailed": lambda: torch.randn(700, 700).exp() ** 3,
    "rows of different size": lambda: torch.randn(701, 700) * torch.logspace(-6, 0, 701)[:, None],
    "mostly zero": lambda: torch.randn(300, 1000).relu() * (torch.rand(300, 1000) < 0.1),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_sampling_error_is_the_stated_one(kind: str) -> None:
    torch.manual_seed(0)
    gradient, num_turns = GRADIENTS[kind](), 50
    logs = np.log10(gradient[gradient != 0].abs().double().numpy())
    share = np.append(np.histogram(logs, EDGES)[0], gradient.numel() - len(logs)) / gradient.numel()
    turns = [log_histograms([gradient], [0], 1, turn)[0].numpy() for turn in range(num_turns)]
    seen = np.array([counts[: NUM_BINS + 1] / counts.sum() for counts in turns])
    stated = np.sqrt(share * (1 - share) / MAX_ELEMENTS)
    held = share > 5 / MAX_ELEMENTS
    errors = np.sqrt(np.mean((seen - share) ** 2, axis=0))[held] / stated[held]
    assert errors.max() < 1.45  # of some 20 estimates from 50 turns each, a standard error of 10 %
    assert errors.mean() > 0.5  # and it is no census
    assert np.abs((seen.mean(0) - share)[held] / stated[held]).max() < 4 / num_turns**0.5
    assert stated.max() <= 0.5 / MAX_ELEMENTS**0.5 < 0.016


def test_half_precision_and_sparse_gradients_are_counted() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([1.0, 1.0]), (3,))
    counts = log_histograms([torch.ones(2).bfloat16(), torch.ones(2).half(), sparse, torch.ones(1) * 1j], [0] * 4, 1, 0)
    assert counts[0, :NUM_BINS].sum() == 2 + 2 + 1 + 1
