"""What is said of a batch: that it is finite, that it is not, or nothing where not all of it could be looked at."""

from __future__ import annotations

import collections
import dataclasses
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.testing._internal.two_tensor import TwoTensor

from lightning_gradwatch.core.batch import MAX_PARTS, MAX_TENSORS, check_batch, join
from lightning_gradwatch.core.records import BatchCheck, Coverage

GOOD, NAN, INF = torch.ones(3), torch.tensor([1.0, math.nan]), torch.tensor([-math.inf, 0.0])


def is_bad(check: BatchCheck) -> bool | None:
    """What follows from it."""
    ends = [] if check.ends is None else [end.item() for end in check.ends]
    if check.is_bad or not all(map(math.isfinite, ends)):
        return True
    return False if check.coverage is Coverage.ALL else None


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Data:
    x: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any
    unset: Any = dataclasses.field(init=False)


class Plain:
    def __init__(self, x: Any) -> None:
        self._x = x

    @property
    def data(self) -> Any:
        raise AssertionError("it was asked")

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it was read")

    def __len__(self) -> int:
        raise AssertionError("it was counted")

    def __bool__(self) -> bool:
        raise AssertionError("it was judged")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it was compared")

    __hash__ = None  # type: ignore[assignment]


class Lazy(Mapping[str, Any]):
    """Reads from a disk, or a network."""

    def __init__(self, x: Any) -> None:
        self.held = {"x": x}

    def __getitem__(self, name: str) -> Any:
        raise AssertionError("it was read")

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("it was read")

    def __len__(self) -> int:
        raise AssertionError("it was counted")


class Items(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it was read")


class WithLabels(dict[str, Any]):
    """A dict with an attribute besides, as those of detection data sets."""

    def __init__(self, labels: Any) -> None:
        super().__init__(size=3)
        self.labels = labels


class Refusing(Tensor):
    """As annotated images are, and worse."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"{func} is not for me")


def named(x: Tensor) -> Any:
    return collections.namedtuple("named", "x")(x)


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda x: x,
    "tuple": lambda x: (x, torch.arange(3)),
    "list": lambda x: ["text", [None, x]],
    "dict": lambda x: {"a": {"b": x}, 3: b"bytes"},
    "deque": lambda x: collections.deque([x]),
    "named tuple": lambda x: Pair(x, 1),
    "another": named,
    "dataclass": Data,
    "with slots": Slotted,
    "object": Plain,
    "namespace": lambda x: types.SimpleNamespace(x=Plain(x)),
    "user dict": lambda x: collections.UserDict(a=x),
    "mapping": Lazy,
    "list that cannot be read": lambda x: Items([1, x]),
    "dict with an attribute": WithLabels,
    "behind four": lambda x: (GOOD, GOOD, GOOD, GOOD, x),
    "of which every tensor refuses": lambda x: x.as_subclass(Refusing),
    "a leaf": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_floats_are_looked_at_wherever_they_are(hold: Callable[[Any], Any]) -> None:
    assert is_bad(check_batch(hold(GOOD))) is False
    assert is_bad(check_batch(hold(NAN))) is True
    assert is_bad(check_batch(hold(INF))) is True


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_numbers_are_finite(dtype: torch.dtype) -> None:
    """Though their sum is not, nor what float32 makes of them."""
    greatest = torch.finfo(dtype).max
    for numbers in ([greatest] * 4, [-greatest] * 4, [greatest, -greatest]):
        large = torch.tensor(numbers, dtype=dtype)
        assert is_bad(check_batch((large, {"b": large}))) is False
        assert is_bad(join(check_batch(large), check_batch(large))) is False
        large[1] = math.inf
        assert is_bad(check_batch((torch.ones(2), large))) is True


def test_tensors_of_other_layouts_are_looked_at_or_left_out_and_never_fail() -> None:
    def of(x: Tensor) -> dict[str, Tensor]:
        square = x.expand(2, len(x)).contiguous()
        return {
            "strided nested": torch.nested.nested_tensor([x[:1], x]),
            "jagged nested": torch.nested.nested_tensor([x[:1], x], layout=torch.jagged),
            "coo": square.to_sparse(),
            "csr": square.to_sparse_csr(),
            "mkldnn": square.to_mkldnn(),
            "wrapper": TwoTensor(x, x),
            "conjugate": torch.complex(x, x).conj(),
            "expanded": x.expand(5, len(x)),
            "float8": torch.ones(2).to(torch.float8_e4m3fn),
            "meta": torch.empty(2, device="meta"),
            "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good, bad = of(GOOD), of(NAN)
    unseen = {"mkldnn", "wrapper", "float8", "meta"}
    assert {name for name, tensor in good.items() if is_bad(check_batch(tensor)) is None} == unseen
    is_seen = {name for name, tensor in bad.items() if is_bad(check_batch([tensor]))}
    assert is_seen == good.keys() - unseen - {"quantised"}  # which cannot hold NaN
    assert is_bad(check_batch((bad["wrapper"], GOOD))) is None
    assert is_bad(check_batch((bad["wrapper"], NAN))) is True
    packed = pack_sequence([torch.ones(3), torch.ones(1)])
    assert is_bad(check_batch(packed)) is False


@pytest.mark.parametrize(
    "batch",
    [
        torch.arange(3),
        {"tokens": torch.ones(3, dtype=torch.int64), "text": ["a", "b"], "mask": torch.tensor([True])},
        torch.empty(0, 3),
        (None, 3, True, "text", [1, 2, 3], (), {}),
        [1.5, {"lr": 0.1}],
        None,
    ],
    ids=repr,
)
def test_a_batch_without_a_float_that_could_be_bad_is_finite(batch: Any) -> None:
    check = check_batch(batch)
    assert (check.ends, check.coverage, check.is_bad) == (None, Coverage.ALL, False)


def test_numbers_on_the_host_are_looked_at() -> None:
    assert is_bad(check_batch({"x": GOOD, "weight": math.nan})) is True
    assert is_bad(check_batch({"x": GOOD, "weights": [1.0, -math.inf]})) is True
    assert is_bad(check_batch([np.float64("nan"), 1])) is True


def test_of_what_cannot_be_read_nothing_is_said() -> None:
    for stranger in (np.ones(3), iter([GOOD]), range(3), object(), lambda: GOOD):
        seen = is_bad(check_batch((stranger, GOOD)))
        assert seen is None or callable(stranger)
        assert is_bad(check_batch((stranger, NAN))) is True
    waiting = iter([GOOD])
    check_batch(waiting)
    assert next(waiting) is GOOD


def test_the_look_is_bounded_and_says_so() -> None:
    assert is_bad(check_batch([GOOD] * MAX_TENSORS)) is False
    assert is_bad(check_batch([GOOD] * (MAX_TENSORS + 1))) is None
    assert is_bad(check_batch([GOOD] * MAX_TENSORS + [NAN])) is None
    assert is_bad(check_batch((GOOD, list(range(MAX_PARTS - 2))))) is False
    assert is_bad(check_batch((GOOD, list(range(MAX_PARTS))))) is None
    deep: Any = NAN
    for _ in range(10 * sys.getrecursionlimit()):
        deep = [deep]
    assert check_batch(deep) == BatchCheck(None, Coverage.NOTHING)
    round_and_round: list[Any] = [GOOD]
    round_and_round.append({"again": round_and_round})
    assert is_bad(check_batch(round_and_round)) is False


def calls(batch: Any) -> int:
    """Python and C calls of one look."""
    seen = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        check_batch(batch)
    finally:
        sys.setprofile(None)
    return sum(event in ("call", "c_call") for event in seen)


def test_what_a_look_costs_does_not_grow_with_the_batch() -> None:
    few, many = (calls({"x": GOOD, "ids": [list(range(n)) for _ in range(n // 4)]}) for n in (8, 4096))
    assert many < few + 20 * MAX_PARTS
    words = {"x": GOOD, "texts": ["word"] * (MAX_PARTS // 2), "ids": list(range(MAX_PARTS // 4))}
    assert calls(words) < calls({"x": GOOD, "texts": ["word"], "ids": [1]}) + 5
    assert calls((GOOD, torch.arange(3))) < 40


def test_two_batches_of_one_step_are_known_together() -> None:
    good, bad, unseen = check_batch(GOOD), check_batch(NAN), check_batch(object())
    assert is_bad(join(good, good)) is False
    assert is_bad(join(good, bad)) is True
    assert is_bad(join(bad, unseen)) is True
    assert is_bad(join(good, unseen)) is None
    assert is_bad(join(check_batch(torch.arange(3)), good)) is False
    assert is_bad(join(check_batch(math.nan), good)) is True
    assert join(unseen, unseen).coverage is Coverage.NOTHING
    assert join(good, unseen).coverage is Coverage.PART


def test_a_look_leaves_nothing_behind() -> None:
    leaf = nn.Parameter(torch.ones(3))
    check = check_batch(leaf * 2)
    assert check.ends is not None
    assert not any(end.requires_grad for end in check.ends)
    assert leaf.grad is None
