from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_gradwatch.core.window import PublicationWindow


def test_statistics_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    values = torch.rand(37, 4)
    window = PublicationWindow()
    for piece in values.split(5):
        window.add(piece)
    summary = window.summary()
    assert summary is not None
    assert summary.num_steps == 37
    assert torch.equal(summary.last, values[-1])
    assert summary.min.numpy() == pytest.approx(values.numpy().min(0))
    assert summary.max.numpy() == pytest.approx(values.numpy().max(0))
    assert summary.median.numpy() == pytest.approx(np.median(values.numpy(), axis=0))


def test_a_spike_is_not_lost_however_long_the_window() -> None:
    window = PublicationWindow()
    for i in range(5000):
        window.add(torch.tensor([[100.0 if i == 17 else 1.0]]))
    summary = window.summary()
    assert summary is not None
    assert (summary.num_steps, summary.min.item(), summary.median.item(), summary.max.item()) == (5000, 1.0, 1.0, 100.0)
    norms = window.state_dict()["norms"]
    assert isinstance(norms, torch.Tensor)
    assert norms.shape[0] <= 1024


def test_missing_and_nonfinite_norms_enter_no_statistics() -> None:
    window = PublicationWindow()
    window.add(torch.tensor([[1.0, -1.0], [math.nan, -1.0], [math.inf, -1.0], [3.0, -1.0]]))
    summary = window.summary()
    assert summary is not None
    assert [summary.min[0].item(), summary.median[0].item(), summary.max[0].item()] == [1.0, 2.0, 3.0]
    assert summary.max[1].isnan()


def test_an_empty_window_has_no_summary() -> None:
    window = PublicationWindow()
    assert window.summary() is None
    window.add(torch.empty(0, 3))
    assert window.summary() is None
    window.add(torch.ones(1, 3))
    window.clear()
    assert window.summary() is None


def test_columns_can_be_moved_dropped_and_added() -> None:
    torch.manual_seed(0)
    before, after = torch.rand(5, 3), torch.rand(2, 3)
    window = PublicationWindow()
    window.add(before)
    window.rearrange([0, None, 1])
    window.add(after)
    summary = window.summary()
    assert summary is not None
    columns = [torch.cat([before[:, 0], after[:, 0]]), after[:, 1], torch.cat([before[:, 1], after[:, 2]])]
    for found, expected in ((summary.min, np.min), (summary.median, np.median), (summary.max, np.max)):
        assert found.numpy() == pytest.approx([expected(column.numpy()) for column in columns])
    assert summary.num_steps == 7


def test_a_change_of_layers_starts_the_window_anew() -> None:
    window = PublicationWindow()
    window.add(torch.ones(3, 2))
    window.add(torch.ones(1, 5))
    summary = window.summary()
    assert summary is not None
    assert summary.num_steps == 1
    assert summary.last.shape == (5,)


def test_state_goes_on() -> None:
    window, other = PublicationWindow(), PublicationWindow()
    window.add(torch.tensor([[5.0], [1.0]]))
    other.load_state_dict(window.state_dict())
    for w in (window, other):
        w.add(torch.tensor([[3.0]]))
    first, second = window.summary(), other.summary()
    assert first is not None
    assert second is not None
    assert first.median.item() == second.median.item() == 3.0
    assert second.max.item() == 5.0
