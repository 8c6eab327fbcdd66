"""What GradWatch computes, it computes outside of what the user's code has set for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.core.alone import alone
from lightning_gradwatch.core.batch import check_batch
from lightning_gradwatch.core.watcher import Watcher
from tests.tasks import small_net

seen: list[str] = []


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


class Refusing(nn.Parameter):
    """Allows what training needs, and nothing else."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("linear", "__get__", "__set__"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise TypeError(f"{func.__name__} is none of your business")


def watched(setting: Callable[[], Any], create_graph: bool = False, refusing: bool = False) -> list[float]:
    """The total norms of a few steps; a publication, a histogram, a state and an end among them."""
    torch.manual_seed(0)
    net = small_net()
    if refusing:
        layer: Any = net[0]
        layer.weight = Refusing(layer.weight.data)
    watcher = Watcher(net, torch.optim.SGD(net.parameters(), lr=0.1))
    batch, norms = torch.randn(8, 64), []
    for step in range(12):
        watcher.arm()
        loss = net(batch).square().mean()
        net.zero_grad()
        loss.backward(create_graph=create_graph)
        with setting():
            watcher.note_backward()
            inputs = check_batch(batch)
            report = watcher.observe(loss=loss, inputs=inputs, publish=step % 4 == 3)
        norms += [norm for observation in report.observations for norm in observation.total_norms]
    with setting():
        watcher.load_state_dict(watcher.state_dict())
        watcher.flush()
    return norms


@contextmanager
def nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize("setting", [Operators, Functions, default_device, torch.enable_grad])
def test_nobody_elses_setting_reaches_us_and_we_reach_no_mode(setting: Callable[[], Any]) -> None:
    seen.clear()
    assert watched(setting) == watched(nothing)
    assert seen == []


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_gradient_may_ask_for_a_gradient() -> None:
    assert watched(nothing, create_graph=True) == watched(nothing)


def test_a_parameter_may_refuse_what_we_ask_of_it() -> None:
    assert watched(nothing, refusing=True) == watched(nothing)


def test_settings_are_as_before_whatever_happens() -> None:
    @alone
    def work(fails: bool) -> Tensor:
        assert not torch.is_grad_enabled()
        if fails:
            raise ValueError("this fails")
        return torch.zeros(2)

    with default_device(), Operators():
        seen.clear()
        assert work(False).device.type == "cpu"
        with pytest.raises(ValueError, match="this fails"):
            work(True)
        assert seen == []
        assert torch.zeros(2).device.type == "meta"
        assert seen
    assert torch.is_grad_enabled()
    with torch.no_grad():
        work(False)
        assert not torch.is_grad_enabled()


def test_the_norms_are_there() -> None:
    norms = watched(nothing)
    assert len(norms) == 12
    assert all(math.isfinite(norm) and norm > 0 for norm in norms)
