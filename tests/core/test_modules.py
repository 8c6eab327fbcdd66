from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.core import modules


def shared() -> nn.Module:
    """One block in two places, one weight in two layers, a name that stands for nothing, and buffers."""
    block, tied = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 3)
    net = nn.ModuleDict({"first": block, "again": block, "tied": tied})
    tied.weight = block[0].weight  # type: ignore[assignment]  # of a Sequential any module may come
    tied.register_parameter("nothing", None)
    net.register_module("none", None)
    return net


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.LazyLinear(3))


def containers() -> nn.Module:
    net = nn.Module()
    net.listed = nn.ParameterList([torch.ones(2), torch.ones(3)])
    net.mapped = nn.ParameterDict({"a": torch.ones(2), "b": nn.Parameter(torch.ones(1))})
    return net


def scripted() -> nn.Module:
    return nn.Sequential(torch.jit.trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2)), nn.Linear(2, 2))


def compiled() -> nn.Module:
    net: Any = torch.compile(nn.Linear(2, 2), backend="eager")
    return nn.ModuleDict({"net": net, "head": nn.Linear(2, 2)})


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("make", [shared, parametrized, containers, scripted, compiled, lambda: nn.LSTM(2, 3, 2)])
@pytest.mark.parametrize("with_aliases", [False, True])
def test_names_and_order_are_those_of_torch(make: Any, with_aliases: bool) -> None:
    model, once = make(), not with_aliases
    found = [(name, id(m)) for name, m in modules.named_modules(model, with_aliases)]
    assert found == [(name, id(m)) for name, m in model.named_modules(remove_duplicate=once)]
    tensors = [(name, id(p)) for name, p in modules.named_parameters(model, with_aliases)]
    assert tensors == [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=once)]
    assert [id(p) for p in modules.parameters(model)] == [id(p) for p in model.parameters()]
    assert [(name, id(b)) for name, b in modules.named_buffers(model)] == [(n, id(b)) for n, b in model.named_buffers()]


def refused(*_: Any, **__: Any) -> Any:
    raise RuntimeError("on purpose")


class Contrary(nn.Module):
    """Whatever may be asked of it, it refuses; it still computes."""

    def __init__(self) -> None:
        super().__init__()
        self._modules["inner"] = nn.Linear(2, 2)
        self._parameters["scale"] = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self._modules["inner"](x) * self._parameters["scale"]  # type: ignore[misc]  # it is there
        return output

    parameters = named_parameters = modules = named_modules = children = named_children = refused
    get_submodule = get_parameter = buffers = named_buffers = __getattr__ = refused
    __eq__ = __hash__ = __repr__ = __bool__ = __len__ = __iter__ = __contains__ = refused


def test_what_a_class_overrides_is_not_asked() -> None:
    model = nn.Module()
    model.add_module("odd", Contrary())
    assert [name for name, _ in modules.named_modules(model)] == ["", "odd", "odd.inner"]
    names = ["odd.scale", "odd.inner.weight", "odd.inner.bias"]
    assert [name for name, _ in modules.named_parameters(model)] == names
    assert not any(modules.is_compiled(module) for module in modules.modules(model))


def test_a_property_may_have_the_name_of_a_submodule() -> None:
    class Shadowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Linear(2, 2)

        @property  # type: ignore[no-redef]  # torch allows it
        def layers(self) -> list[nn.Module]:
            return [self._modules["layers"]]  # type: ignore[list-item]

    assert [name for name, _ in modules.named_modules(Shadowed())] == ["", "layers"]


@pytest.mark.parametrize("with_aliases", [False, True])
def test_a_walk_through_a_module_inside_itself_ends(with_aliases: bool) -> None:
    outer, inner = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    outer.append(inner)
    inner.register_module("up", outer)
    found: Iterator[tuple[str, nn.Module]] = modules.named_modules(outer, with_aliases)
    assert [name for name, _ in found] == ["", "0", "1", "1.0"]


def test_a_module_that_was_never_initialised_is_empty() -> None:
    assert modules.parameters(nn.Linear.__new__(nn.Linear)) == []


def test_modules_that_torch_compile_has_taken_over_are_known() -> None:
    wrapped: Any = torch.compile(nn.Linear(2, 2), backend="eager")
    in_place = nn.Linear(2, 2)
    in_place.compile(backend="eager")
    assert modules.is_compiled(wrapped)
    assert modules.is_compiled(in_place)
    assert not modules.is_compiled(nn.Linear(2, 2))
