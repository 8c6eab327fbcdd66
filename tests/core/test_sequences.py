from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.core import probe as probe_module
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.core.samples import Inputs

STEPS, BATCH, WIDTH = 12, 3, 4
RECURRENT = [nn.RNN, nn.LSTM, nn.GRU]


class Reader(nn.Module):
    """Reads a sequence with a recurrent layer and judges the last output."""

    def __init__(self, kind: Any = nn.GRU, lengths: list[int] | None = None, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = kind(WIDTH, 5, **options)
        self.judge = nn.Linear(5 * (2 if options.get("bidirectional") else 1), 1)
        self.lengths = lengths

    def forward(self, x: Tensor) -> Tensor:
        time = 1 if self.read.batch_first and x.ndim == 3 else 0
        if self.lengths is None:
            return self.judge(self.read(x)[0].select(time, -1))
        packed = pack_padded_sequence(x, self.lengths, batch_first=self.read.batch_first, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.read(packed)[0], batch_first=self.read.batch_first)
        return self.judge(padded.sum(time))


def probed(model: nn.Module, *inputs: Tensor, **keywords: Tensor) -> Probe:
    probe = make_probe(model)
    probe.attach()
    model(*inputs, **keywords).square().sum().backward()
    assert probe.failure is None
    return probe


def over_time(gradient: Tensor, time: int) -> list[float]:
    return [float(part.double().norm()) for part in gradient.unbind(time)]


def oracle(model: nn.Module, x: Tensor, time: int) -> list[float]:
    x = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    return over_time(gradient, time)


def sequence(batch_first: bool) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(BATCH, STEPS, WIDTH) if batch_first else torch.randn(STEPS, BATCH, WIDTH)


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("batch_first", [False, True])
def test_norms_over_time_are_those_of_autograd(kind: Any, batch_first: bool) -> None:
    model, x = Reader(kind, batch_first=batch_first), sequence(batch_first)
    expected = oracle(model, x, time=int(batch_first))
    seen = probed(model, x).sequences()
    assert list(seen) == ["read"]
    assert seen["read"].tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[0] < expected[-1]  # the order is told apart


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_sequences_have_a_norm_for_each_time_step(kind: Any, batch_first: bool) -> None:
    model, x = Reader(kind, [5, STEPS, 9], batch_first=batch_first), sequence(batch_first)
    expected = oracle(model, x, time=int(batch_first))
    assert probed(model, x).sequences()["read"].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_sequence_without_a_batch_has_its_time_first(batch_first: bool) -> None:
    model, x = Reader(batch_first=batch_first), sequence(False)[:, 0]
    assert probed(model, x).sequences()["read"].tolist() == pytest.approx(oracle(model, x, 0), rel=1e-5)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}])
def test_stacked_and_bidirectional_layers_are_followed_to_their_input(options: dict[str, Any]) -> None:
    model, x = Reader(nn.LSTM, **options), sequence(False)
    assert probed(model, x).sequences()["read"].tolist() == pytest.approx(oracle(model, x, 0), rel=1e-5)


def test_a_computed_input_and_keywords_are_followed() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.read = nn.Linear(WIDTH, WIDTH), nn.GRU(WIDTH, 5)
            self.given = torch.empty(0)

        def forward(self, x: Tensor) -> Tensor:
            self.given = self.embed(x)
            self.given.retain_grad()
            out: Tensor = self.read(hx=torch.ones(1, BATCH, 5), input=self.given)[0][-1]
            return out

    model = Embedded()
    seen = probed(model, sequence(False)).sequences()["read"]
    assert model.given.grad is not None
    assert seen.tolist() == pytest.approx(over_time(model.given.grad, 0), rel=1e-5)


class Loop(nn.Module):
    """Calls a cell once per time step."""

    def __init__(self, cell: nn.Module, start: Callable[[], Any]) -> None:
        super().__init__()
        self.cell, self.start = cell, start
        self.outputs: list[tuple[Tensor, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        state = self.start()
        for given in x:
            state = self.cell(given, state)
            parts = state if isinstance(state, tuple) else (state,)
            for part in parts:
                part.retain_grad()
            self.outputs.append(parts)
        return parts[0]


@pytest.mark.parametrize(
    ("cell", "start"),
    [
        (nn.RNNCell(WIDTH, 5), lambda: torch.zeros(BATCH, 5)),
        (nn.GRUCell(WIDTH, 5), lambda: torch.zeros(BATCH, 5)),
        (nn.LSTMCell(WIDTH, 5), lambda: (torch.zeros(BATCH, 5), torch.zeros(BATCH, 5))),
    ],
)
def test_a_cell_in_a_loop_has_a_norm_for_each_call(cell: nn.Module, start: Any) -> None:
    model = Loop(cell, start)
    seen = probed(model, sequence(False)).sequences()["cell"]
    expected = [sum(float(p.grad.square().sum()) for p in o if p.grad is not None) ** 0.5 for o in model.outputs]
    assert seen.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_few_calls_or_steps_are_no_sequence() -> None:
    assert probed(Loop(nn.RNNCell(WIDTH, 5), lambda: torch.zeros(BATCH, 5)), sequence(False)[:7]).sequences() == {}
    assert probed(Reader(), sequence(False)[:7]).sequences() == {}


def train(model: nn.Module, probe: Probe | None) -> list[Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = sequence(True)
    for _ in range(3):
        if probe is not None:
            probe.attach(thorough=True, causes=True)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        if probe is not None:
            assert probe.sequences()
            probe.detach()
    assert not x.requires_grad
    return list(model.parameters())


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("lengths", [None, [5, STEPS, 9]])
def test_weights_stay_bit_identical_with_the_probe_attached(kind: Any, lengths: list[int] | None) -> None:
    alone, watched = Reader(kind, lengths, batch_first=True), Reader(kind, lengths, batch_first=True)
    start = [p.detach().clone() for p in alone.parameters()]
    without, with_probe = train(alone, None), train(watched, make_probe(watched))
    assert all(torch.equal(a, b) for a, b in zip(without, with_probe, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(without, start, strict=True))


def test_an_input_that_asks_for_a_gradient_gets_the_same_one() -> None:
    model, x = Reader(), sequence(False).requires_grad_()
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    probed(model, x)
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


def test_outside_of_training_the_input_is_left_as_it_is() -> None:
    model = Reader()
    probe = make_probe(model)
    probe.attach()
    with torch.no_grad():
        assert not model.read(sequence(False))[0].requires_grad
    assert probe.sequences() == {}


def test_a_frozen_recurrent_layer_does_not_start_to_ask_for_a_gradient() -> None:
    model = Reader(nn.LSTM)
    model.read.requires_grad_(False)
    assert not model.read(sequence(False))[0].requires_grad
    probe = make_probe(model)
    probe.attach()
    assert not model.read(sequence(False))[0].requires_grad


class Own(nn.GRU):
    """Works in place on what it is given, as a subclass may, and looks at it with numpy."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:  # type: ignore[override]  # noqa: A002
        self.given, self.mean = input, input.numpy().mean()
        return super().forward(nn.functional.dropout(input, 0.1, inplace=True), hx)


class Checked(nn.GRU):
    """Leaves ``forward`` as it is, and looks at the input elsewhere."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:  # noqa: A002
        self.given = input
        super().check_input(input, batch_sizes)


def patched() -> nn.GRU:
    layer, given = nn.GRU(WIDTH, 5), nn.GRU.forward

    def forward(input: Tensor, hx: Tensor | None = None) -> Any:  # noqa: A002
        layer.given = input  # type: ignore[assignment]
        return given(layer, input, hx)

    layer.forward = forward  # type: ignore[method-assign, assignment]
    return layer


@pytest.mark.parametrize("make", [lambda: Own(WIDTH, 5), lambda: Checked(WIDTH, 5), patched])
def test_code_of_the_user_receives_the_very_tensor_that_it_was_given(make: Any) -> None:
    layer, x = make(), sequence(False)
    probe = make_probe(layer)
    probe.attach()
    layer(x)[0].sum().backward()
    assert vars(layer)["given"] is x
    assert not x.requires_grad
    assert probe.sequences() == {}
    assert probe.account.norm("(model)") is not None  # only the profile over time is lost
    assert probe.failure is None


def look_at_inputs(layer: nn.Module, where: str, seen: list[Any]) -> RemovableHandle:
    def look(module: nn.Module, args: tuple[Any, ...], *_: Any) -> None:
        if module is layer:
            seen.append(args[0])

    if where == "before":
        return layer.register_forward_pre_hook(look)
    if where == "after":
        return layer.register_forward_hook(look, always_call=True)
    if where == "backward":
        return layer.register_full_backward_hook(look)
    return nn.modules.module.register_module_forward_hook(look)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # so it does without us
@pytest.mark.parametrize("where", ["before", "after", "everywhere", "backward"])
@pytest.mark.parametrize("is_early", [True, False])
def test_hooks_of_the_user_see_the_very_tensor_that_was_given(where: str, is_early: bool) -> None:
    model, x, seen = Reader(), sequence(False), []  # type: ignore[var-annotated]
    probe = make_probe(model)
    if is_early:
        handle = look_at_inputs(model.read, where, seen)
    probe.attach()
    if not is_early:
        handle = look_at_inputs(model.read, where, seen)
    model(x).sum().backward()
    handle.remove()
    assert seen[0] is (None if where == "backward" else x)  # data has no gradient
    assert probe.sequences() == {}
    assert probe.account.norm("read") is not None
    assert probe.failure is None


def test_a_computed_input_is_followed_whoever_looks_at_it() -> None:
    class Doubled(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:  # type: ignore[override]  # noqa: A002
            return super().forward(input.mul_(2), hx)

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Doubled(WIDTH, 5))
    probe = make_probe(model)
    probe.attach()
    hidden = model[0](sequence(False)[:, 0])
    look_at_inputs(model[1], "before", [])
    model[1](hidden)[0][-1].sum().backward()
    assert len(probe.sequences()["1"]) == STEPS
    assert probe.failure is None


@pytest.mark.parametrize("name", ["readable", "norms_over_time"])
def test_a_profile_over_time_that_fails_costs_no_other_figure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("this profile is broken")

    monkeypatch.setattr(probe_module, name, broken)
    probe = probed(Reader(), sequence(False))
    with pytest.raises(ValueError, match="this profile is broken"):
        probe.sequences()
    assert probe.account.norm("read") is not None


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_layer_saves_as_much_when_it_runs_again(use_reentrant: bool) -> None:
    model, x = nn.GRU(WIDTH, 5), sequence(False)
    probe = make_probe(model)
    probe.attach()
    entered = x if not use_reentrant else x.clone().requires_grad_()
    out = torch.utils.checkpoint.checkpoint(lambda t: model(t)[0], entered, use_reentrant=use_reentrant)
    probe.pause()  # as in a validation between the forward pass and the backward pass
    out.sum().backward()
    assert model.weight_ih_l0.grad is not None


def test_derivatives_along_the_input_pass_through() -> None:
    model, x = nn.RNN(WIDTH, 5), sequence(False)
    probe = make_probe(model)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        alone = torch.autograd.forward_ad.unpack_dual(model(dual)[0]).tangent
        probe.attach()
        watched = torch.autograd.forward_ad.unpack_dual(model(dual)[0]).tangent
    assert alone is not None
    assert torch.equal(alone, watched)


def test_the_gradient_of_the_gradient_of_a_sequence_is_the_same() -> None:
    model, x = Reader(nn.RNN), sequence(False)
    parameters = list(model.parameters())

    def penalty() -> list[Tensor]:
        gradients = torch.autograd.grad(model(x).sum(), parameters, create_graph=True)
        total = torch.stack([g.square().sum() for g in gradients]).sum()
        return list(torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True))

    alone = penalty()
    probe = make_probe(model)
    probe.attach()
    watched = penalty()
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    assert probe.failure is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_thorough_probe_describes_what_each_layer_was_given(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)).to(dtype)
    with torch.no_grad():
        model[0].get_parameter("bias").fill_(-100.0)
    probe = make_probe(model)
    probe.attach(thorough=True, causes=True)
    x = torch.randn(8, 4, dtype=dtype)
    model(x).sum().backward()
    first, second, nonzeros = probe.inputs("0"), probe.inputs("2"), probe.account.nonzero_fraction("0")
    assert first is not None
    assert second is not None
    assert Inputs(*first.tolist()).high == x.max().item()
    assert Inputs(*second.tolist()).dead_units == 1.0
    if dtype is torch.float16:
        assert nonzeros is not None
        assert nonzeros.item() == 0.0
    else:
        assert nonzeros is None
