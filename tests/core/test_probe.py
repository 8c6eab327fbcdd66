from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.core.inputs import InputFacts
from lightning_gradwatch.core.layers import named_layers
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.core.tensors import tensors_in


def backward(model: nn.Module, *inputs: Any, **keywords: Any) -> Probe:
    probe = make_probe(model)
    probe.attach()
    output = next(t for t in tensors_in(model(*inputs, **keywords)) if t.requires_grad)
    output.square().sum().backward()
    return probe


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())


def test_norms_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 5), nn.Linear(5, 3)
    x = torch.randn(6, 4)
    hidden = first(x)
    output = second(hidden.tanh())
    expected = torch.autograd.grad(output.square().sum(), [hidden, output])
    probe = backward(nn.Sequential(first, nn.Tanh(), second), x)
    assert probe.order.names == ["0", "2"]
    for name, gradient in zip(("0", "2"), expected, strict=True):
        norm = probe.account.norm(name)
        assert norm is not None
        assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-6)


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 3)
        self.seen: list[Tensor] = []

    def forward(self, *, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.cell(input=x)
            x.retain_grad()
            self.seen.append(x)
        return x


def test_repeated_and_keyword_calls_add_up_in_squares() -> None:
    model = Repeated()
    probe = backward(model, x=torch.randn(2, 3))
    squares = sum(float(t.grad.square().sum()) for t in model.seen if t.grad is not None)
    norm = probe.account.norm("cell")
    assert norm is not None
    assert norm.item() == pytest.approx(squares**0.5, rel=1e-6)


def test_inplace_activations_are_survived() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    assert backward(model, torch.randn(2, 3)).account.norm("0") is not None


def test_double_backward_is_survived() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    probe = make_probe(model)
    probe.attach()
    x = torch.randn(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    norm = probe.account.norm("0")
    assert norm is not None
    assert not norm.requires_grad


@dataclass
class Output:
    text: str
    logits: Tensor


@pytest.mark.parametrize(
    "wrap", [lambda t: (None, t), lambda t: [t], lambda t: {"a": 1, "b": t}, lambda t: Output("", t)]
)
def test_outputs_may_be_containers(wrap: Any) -> None:
    class Wrapped(nn.Linear):
        def forward(self, input: Tensor) -> Any:  # noqa: A002 - the name of the method it overrides
            return wrap(super().forward(input))

    assert backward(Wrapped(3, 2), torch.randn(2, 3)).account.norm("(model)") is not None


class Lazy(Mapping[str, Tensor]):
    """Makes its values when they are asked for."""

    def __init__(self, made: Tensor) -> None:
        self.made = made

    def __getitem__(self, key: str) -> Tensor:
        return nn.functional.dropout(self.made)

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


@dataclass
class Drawing:
    made: Tensor

    def __getattribute__(self, name: str) -> Any:
        torch.rand(1)
        return super().__getattribute__(name)


@dataclass
class Slotted:
    __slots__ = ("made",)
    made: Tensor


class Endless(list[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return itertools.repeat(self[0])


def within_itself(made: Tensor) -> list[Any]:
    ring: list[Any] = [made]
    ring += [ring] * 40
    return ring


@pytest.mark.parametrize("wrap", [Lazy, Drawing, Slotted, lambda t: Endless([t]), within_itself, lambda t: (t, [t])])
def test_containers_are_read_once_where_they_store_and_nothing_of_theirs_runs(wrap: Any) -> None:
    class Wrapped(nn.Linear):
        def forward(self, input: Tensor, kept: Any = None) -> Any:  # noqa: A002 - the name of the method it overrides
            self.made = super().forward(input)
            return wrap(self.made)

    model, x = Wrapped(3, 2), torch.randn(2, 3)
    probe = make_probe(model)
    probe.attach(thorough=True, causes=True)
    given = wrap(x)
    state = torch.get_rng_state()
    model(x, kept=given)
    assert torch.equal(torch.get_rng_state(), state)
    model.made.sum().backward()
    norm = probe.account.norm("(model)")
    assert norm is not None
    assert norm.item() == pytest.approx(2)
    assert next(tensors_in(given)) is x


def test_tiny_gradients_do_not_vanish_in_their_own_squares_over_calls() -> None:
    model = Repeated()
    probe = make_probe(model)
    probe.attach()
    (model(x=torch.randn(2, 3)).sum() * 1e-15).backward()
    norm = probe.account.norm("cell")
    assert norm is not None
    assert 0 < norm.item() < 1e-12


def test_norm_layers_have_a_place_in_the_order_only() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    probe = backward(model, torch.randn(2, 3))
    assert probe.order.names == ["0", "1", "2"]
    assert probe.account.norm("1") is None


def test_no_hook_is_left_behind() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    probe = backward(model, torch.randn(2, 3))
    assert hooks_on(model) == 2
    probe.attach()
    assert hooks_on(model) == 2
    probe.detach()
    probe.detach()
    assert hooks_on(model) == 0
    assert probe.account.norm("0") is None


def test_an_empty_probe_is_harmless() -> None:
    probe = Probe({}, ())
    probe.attach()
    assert not probe.is_attached
    assert named_layers(nn.ReLU()) == {}


def norms_scaled_by(probe: Probe, model: nn.Module, x: Tensor, scale: float) -> dict[str, Tensor]:
    probe.attach()
    (model(x).square().sum() * scale).backward()
    found = {name: norm for name in ("0", "2") if (norm := probe.account.norm(name)) is not None}
    probe.account.is_read = True
    probe.detach()
    return found


def test_norms_that_float32_holds_are_taken_in_it_and_those_that_fall_below_are_found_again() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    probe = make_probe(model)
    first = norms_scaled_by(probe, model, x, 1.0)
    probe.trust({name: norm.item() for name, norm in first.items()})
    trusted = norms_scaled_by(probe, model, x, 1e-4)
    assert {norm.dtype for norm in trusted.values()} == {torch.float32}
    for name, norm in trusted.items():
        assert norm.item() == pytest.approx(1e-4 * first[name].item(), rel=1e-5)
    probe.trust(dict.fromkeys(trusted, 0.0))  # what a norm that fell too far reads
    small = norms_scaled_by(probe, model, x, 1e-30)
    for name, norm in small.items():
        assert norm.item() == pytest.approx(1e-30 * first[name].item(), rel=1e-5)


def test_layers_that_run_repeatedly_are_never_trusted_to_float32() -> None:
    model = Repeated()
    probe = backward(model, x=torch.randn(2, 3))
    probe.trust({"cell": 1.0})
    probe.detach()
    probe.attach()
    model(x=torch.randn(2, 3)).square().sum().backward()
    norm = probe.account.norm("cell")
    assert norm is not None
    assert norm.dtype == torch.float64


def test_a_layer_to_which_nothing_is_passed_back_is_unseen_and_no_failure() -> None:
    """Such as the last state of a layer with a backward hook, which torch passes through a node of its own."""
    model = nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 5))
    model[1].register_full_backward_hook(lambda *_: None)
    probe = make_probe(model)
    probe.attach()
    model(torch.randn(2, 3))[0].sum().backward()
    assert probe.failure is None
    assert all(probe.account.norm(name) is not None for name in ("0", "1"))


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_in_eval_mode_runs_as_one_kernel_as_without_us(training: bool) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(training)
    probe = make_probe(model)
    probe.attach()
    with torch.no_grad(), Kernels() as kernels:
        model(torch.randn(2, 3, 8))
    assert ("aten::_transformer_encoder_layer_fwd" in kernels.seen) != training
    assert probe.is_attached == training


class Kernels(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func._schema.name)
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Names of the functions that are called, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Names of the operators that run, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def wide_net() -> nn.Sequential:
    """Its inputs are more than wait to be described together."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)])


@pytest.mark.parametrize("mode", [Functions, Operators])
def test_a_mode_of_the_user_sees_nothing_of_ours(mode: Any) -> None:
    model, x = wide_net(), torch.randn(256, 64)
    probe, seen = make_probe(model), []
    for is_watched in (False, True):
        if is_watched:
            probe.attach(thorough=True, causes=True)
        model.zero_grad()
        with mode() as around:
            model(x).square().sum().backward()
        seen.append(around.seen)
    assert seen[0] == seen[1]
    assert probe.failure is None
    for name in probe.order.names:
        assert probe.account.norm(name) is not None
        assert probe.inputs(name) is not None


def test_inputs_that_cannot_be_described_cost_no_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("these inputs are broken")

    monkeypatch.setattr(InputFacts, "add", broken)
    model = wide_net()
    probe = make_probe(model)
    probe.attach(thorough=True, causes=True)
    model(torch.ones(2, 64)).sum().backward()
    assert not probe.left_out
    assert probe.account.norm("0") is not None
    with pytest.raises(ValueError, match="these inputs are broken"):
        probe.inputs("0")


def test_a_thorough_look_notes_who_feeds_a_layer_also_where_inputs_are_not_described() -> None:
    model = wide_net()
    probe = make_probe(model)
    probe.attach(thorough=True)
    model(torch.ones(2, 64)).sum().backward()
    names = list(named_layers(model))
    assert probe.order.fed == set(names[1:])
    assert all(probe.inputs(name) is None for name in names)


def run_fake(model: nn.Module) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.empty(4, 64))


def run_on_meta(model: nn.Module) -> None:
    weights = {name: p.detach().to("meta").requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, weights, (torch.empty(4, 64, device="meta"),)).sum().backward()


def run_traced(model: nn.Module) -> None:
    torch.jit.trace(model, torch.ones(4, 64), check_trace=False)  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("run", [run_fake, run_on_meta, run_traced])
def test_a_pass_without_numbers_or_that_is_written_down_changes_no_figure(run: Any) -> None:
    x, found = torch.randn(256, 64), []
    for is_between in (False, True):
        model = wide_net()
        probe = make_probe(model)
        probe.attach(thorough=True, causes=True)
        output = model(x)
        if is_between:
            run(model)
        output.square().sum().backward()
        assert probe.failure is None
        found.append([[probe.account.norm(name), probe.inputs(name)] for name in probe.order.names])
    for alone, other in zip(*found, strict=True):
        assert all(a is not None and torch.equal(a, b) for a, b in zip(alone, other, strict=True))


class Deep(nn.Module):
    """Layers within layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.inner = Deep(depth - 1) if depth > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x @ self.weight)
        return made


def frames_left(model: nn.Module, depth: int) -> int:
    """How many more calls Python's stack has room for at the bottom of the network."""
    left: list[int] = []

    def dive(number: int) -> None:
        left[0] = number
        dive(number + 1)

    def look(*_: Any) -> None:
        left[:] = [0]
        with pytest.raises(RecursionError):
            dive(1)

    bottom = model.get_submodule(".".join(["inner"] * depth))
    bottom.forward = look  # type: ignore[assignment]
    model(torch.ones(2, 3))
    return left[0]


def test_hooks_take_a_twentieth_of_the_stack_at_most_however_deep_layers_are_nested() -> None:
    depth = 150
    model = Deep(depth)
    alone = frames_left(model, depth)
    probe = make_probe(model)
    probe.attach()
    assert frames_left(model, depth) >= alone - sys.getrecursionlimit() // 20 - 5
    probe.detach()
    del model.get_submodule(".".join(["inner"] * depth)).forward
    assert backward(model, torch.ones(2, 3)).account.norm(".".join(["inner"] * 3)) is not None
