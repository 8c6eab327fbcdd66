"""Numbers of ranks become those of the whole; what needs several processes is in ``tests/setups/test_sharded.py``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_gradwatch.core.records import MISSING
from lightning_gradwatch.core.shards import Cut, Shards, is_spread, local, local_parts, num_shards

PLAIN = [nn.Parameter(torch.ones(3)), torch.ones(2)]
NUMBERS = {"norms": torch.tensor([5.0, MISSING]), "loss": torch.tensor(2.0)}
KINDS: dict[str, Any] = {"norms": "norm", "loss": "mean"}


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A group of one rank, with real collectives."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.fixture
def eight() -> Iterator[DeviceMesh]:
    """The first of eight ranks in two dimensions, of which the others are not there: nothing can be sent."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield init_device_mesh("cpu", (2, 4))
    torch.distributed.destroy_process_group()


def spread(mesh: DeviceMesh, *placements: Any) -> Any:
    return DTensor.from_local(torch.ones(4, 4), mesh, placements, run_check=False)


def test_where_nothing_is_spread_nothing_is_done() -> None:
    shards = Shards(PLAIN)
    assert (shards.is_spread, shards.agrees, shards.shares) == (False, True, [1.0, 1.0])
    assert shards.local_parts(PLAIN, PLAIN) is PLAIN
    assert shards.reduce(NUMBERS, KINDS) == NUMBERS
    assert not any(map(is_spread, PLAIN))
    assert local(PLAIN[0]) is PLAIN[0]
    assert num_shards(PLAIN[0]) == 1


def test_ranks_that_each_hold_everything_may_see_different_numbers(eight: DeviceMesh) -> None:
    shards = Shards(PLAIN)
    assert (shards.is_spread, shards.agrees, shards.shares) == (False, False, [1.0, 1.0])


def test_a_tensor_of_any_class_is_spread_if_it_is_a_dtensor(alone: DeviceMesh) -> None:
    tensor = spread(alone, Shard(0))
    assert is_spread(tensor)
    assert is_spread(nn.Parameter(tensor))
    assert type(local(tensor)) is torch.Tensor
    assert not is_spread(torch.Tensor._make_subclass(type("Other", (torch.Tensor,), {}), torch.ones(1)))


@pytest.mark.parametrize(
    ("placements", "number"),
    [
        ((Replicate(), Replicate()), 1),
        ((Shard(0), Replicate()), 2),
        ((Replicate(), Shard(1)), 4),
        ((Shard(0), Shard(0)), 8),
        ((Partial(), Shard(0)), 4),
    ],
)
def test_a_rank_contributes_what_it_holds_alone(eight: DeviceMesh, placements: Any, number: int) -> None:
    """All ranks together add up to one, replicas included."""
    tensor = spread(eight, *placements)
    assert num_shards(tensor) == number
    shards = Shards([tensor, PLAIN[0]])
    assert shards.is_spread
    assert shards.agrees
    assert shards.shares == [number / 8, 1 / 8]


def test_of_one_rank_the_whole_is_what_it_has_and_what_it_lacks_stays_missing(alone: DeviceMesh) -> None:
    shards = Shards([spread(alone, Shard(0)), PLAIN[0]])
    numbers = {
        "norm": torch.tensor([[3.0, MISSING], [0.0, 4.0]]),
        "count": torch.tensor([7.0, 0.0]),
        "sum": torch.tensor([[1.5], [MISSING]]),
        "rms": torch.tensor(2.5),
        "mean": torch.tensor([MISSING, 0.25]),
        "gone": torch.tensor([1.0, 2.0]),
    }
    kinds: dict[str, Any] = {name: name for name in numbers} | {"gone": "count"}
    whole = shards.reduce(numbers, kinds, absent=["gone"])
    assert list(whole) == list(numbers)
    for name, values in numbers.items():
        expected = torch.full_like(values, MISSING) if name == "gone" else values
        torch.testing.assert_close(whole[name], expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_passed_on(alone: DeviceMesh, bad: float) -> None:
    shards = Shards([spread(alone, Shard(0))] * 2)
    whole = shards.reduce(
        {"norm": torch.tensor([bad, 1.0]), "mean": torch.tensor(bad)}, {"norm": "norm", "mean": "mean"}
    )
    torch.testing.assert_close(whole["norm"], torch.tensor([bad, 1.0]), equal_nan=True)
    torch.testing.assert_close(whole["mean"], torch.tensor(bad), equal_nan=True)


def test_where_no_step_was_taken_since_the_last_copy_there_is_nothing_to_add_up(alone: DeviceMesh) -> None:
    shards = Shards([spread(alone, Shard(0))])
    whole = shards.reduce({"norms": torch.empty(0, 1), "facts": torch.empty(0, 3)}, {"norms": "norm", "facts": "mean"})
    assert {name: values.shape for name, values in whole.items()} == {"norms": (0, 1), "facts": (0, 3)}


def test_pieces_of_one_flat_tensor_are_spread_and_their_wrapper_tells_the_shape(eight: DeviceMesh) -> None:
    flat = nn.Parameter(torch.ones(5))
    pieces = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.empty(0))]
    shards = Shards(pieces, [Cut(torch.Size((4, 5)), 4, flat), Cut(torch.Size((2,)), 4, flat)])
    assert (shards.is_spread, shards.are_whole, shards.agrees, shards.shares) == (True, False, True, [0.5, 0.5])
    assert not shards.have_gradients()
    flat.grad = torch.ones(5)
    assert shards.have_gradients()
    replicated = Shards(pieces, [Cut(piece.shape, 1, flat) for piece in pieces])
    assert (replicated.is_spread, replicated.are_whole, replicated.shares) == (True, True, [1 / 8, 1 / 8])


def test_partial_sums_are_added_up_and_keep_their_shapes(alone: DeviceMesh) -> None:
    first, second = torch.arange(6.0).view(2, 3), torch.tensor([7.0])
    tensors = [
        DTensor.from_local(first, alone, [Partial()], run_check=False),
        spread(alone, Shard(0)),
        DTensor.from_local(second, alone, [Partial()], run_check=False),
        PLAIN[0],
    ]
    parts = local_parts(tensors)
    assert [type(part) for part in parts[:3]] == [torch.Tensor] * 3
    assert torch.equal(parts[0], first)
    assert torch.equal(parts[2], second)
    assert torch.equal(parts[1], torch.ones(4, 4))
    assert parts[3] is PLAIN[0]
