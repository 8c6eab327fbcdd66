from __future__ import annotations

import pytest
import torch

from lightning_gradwatch.core.transfer import Transfer


def test_what_is_sent_arrives_whole_with_its_label() -> None:
    transfer: Transfer[str] = Transfer()
    tensors = {"a": torch.rand(2, 3), "none": torch.empty(0), "b": torch.tensor(float("inf"))}
    ((label, arrived),) = transfer.send("first", tensors)
    assert label == "first"
    assert all(torch.equal(arrived[name], tensors[name]) for name in tensors)
    assert transfer.receive() == []


def test_what_arrived_does_not_change_when_the_source_does() -> None:
    source = torch.ones(3)
    ((_, arrived),) = Transfer[None]().send(None, {"a": source})
    source.zero_()
    assert arrived["a"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_arrives_with_the_next_one_and_nothing_waits() -> None:
    transfer: Transfer[int] = Transfer()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert transfer.send(0, {"a": torch.full((4,), 7.0, device="cuda")}) == []
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ((label, arrived),) = transfer.send(1, {"a": torch.zeros(4, device="cuda")})
    assert label == 0
    assert arrived["a"].tolist() == [7.0] * 4
    assert [label for label, _ in transfer.receive()] == [1]
