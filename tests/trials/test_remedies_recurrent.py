from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from tests.trials.models import (
    LastStep,
    assert_same,
    cross_entropy,
    decades_through_time,
    digits,
    mlp,
    pasted,
    refused,
    sequences,
    treated,
)


class Cells(nn.Module):
    """A cell that is called once per step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        scores: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return scores


class Stateful(LastStep):
    """Hands a first hidden state in."""

    def forward(self, x: Tensor) -> Tensor:
        output, hidden = self.rnn(x, torch.zeros(1, len(x), 16))
        assert hidden.shape == (1, len(x), 16)
        scores: Tensor = self.head(output[:, -1])
        return scores


def rnn(kind: Any = nn.RNN, **options: Any) -> LastStep:
    torch.manual_seed(0)
    return LastStep(kind(4, 16, batch_first=True, **options))


def cells(kind: Any = nn.RNNCell) -> Cells:
    torch.manual_seed(0)
    return Cells(kind(4, 16))


@pytest.mark.parametrize("key", ["recurrent.lstm", "recurrent.gru", "recurrent.identity"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.1}, {"nonlinearity": "relu"}])
def test_a_vanilla_layer_remembers(key: str, options: dict[str, Any]) -> None:
    net, batch = rnn(**options), sequences(60)
    model = treated(key, net, batch).model
    assert model(batch[0]).shape == net(batch[0]).shape
    assert decades_through_time(net, batch) > 6
    assert abs(decades_through_time(model, batch)) < 2.5
    assert_same(model.head.state_dict(), net.head.state_dict())


def test_orthogonal_weights_lose_less() -> None:
    net, batch = rnn(), sequences(60)
    model = treated("recurrent.orthogonal", net, batch).model
    assert decades_through_time(model, batch) < decades_through_time(net, batch) / 2
    weight = model.rnn.weight_hh_l0
    torch.testing.assert_close(weight @ weight.T, torch.eye(16))
    gates = treated("recurrent.orthogonal", rnn(nn.LSTM), batch).model.rnn.weight_hh_l0
    projected = treated("recurrent.orthogonal", nn.LSTM(4, 16, proj_size=8), batch).model.weight_hh_l0
    for gate in projected.split(16):
        torch.testing.assert_close(gate.T @ gate, torch.eye(8))
    for gate in gates.split(16):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_gates_that_start_open_keep_the_gradient(kind: Any) -> None:
    net = (cells if issubclass(kind, nn.RNNCellBase) else rnn)(kind)
    batch = sequences(60)
    model = treated("recurrent.forget_bias", net, batch).model
    assert abs(decades_through_time(model, batch)) < 2 < decades_through_time(net, batch)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, dict(net.named_parameters())[n])}
    assert {name.split(".")[1].removesuffix("_l0") for name in changed} == {"bias_ih", "bias_hh"}


def test_the_bias_is_of_about_the_logarithm_of_the_length() -> None:
    for facts, batch, length in (({"num_time_steps": 500}, sequences(60), 500), ({}, sequences(60), 60)):
        bias = treated("recurrent.forget_bias", rnn(nn.LSTM), batch, **facts).model.rnn.bias_ih_l0.detach()
        assert math.log(length / 4) < float(bias[16:32].max()) <= math.log(length - 1)
        assert float(bias[16:32].min()) >= 0
        torch.testing.assert_close(bias[:16], -bias[16:32])


def test_a_cell_becomes_a_gated_one_that_is_called_alike() -> None:
    net, batch = cells(), sequences(40)
    model = treated("recurrent.gru", net, batch).model
    assert type(model.cell) is nn.GRUCell
    assert abs(decades_through_time(model, batch)) < 2 < decades_through_time(net, batch)
    assert "no trained RNN" in refused("recurrent.lstm", net, batch)
    identity = treated("recurrent.identity", net, batch).model
    assert abs(decades_through_time(identity, batch)) < 2
    shown = pasted("recurrent.identity", net)
    assert torch.equal(shown(batch[0]), identity(batch[0]))


@pytest.mark.parametrize(
    ("key", "net"),
    [
        ("recurrent.gru", cells()),
        ("recurrent.gru", rnn(num_layers=2, dropout=0.3, bidirectional=True)),
        ("recurrent.lstm", rnn(bidirectional=True)),
        ("recurrent.forget_bias", rnn(nn.GRU)),
        ("recurrent.forget_bias", cells(nn.LSTMCell)),
    ],
)
def test_the_code_for_this_very_model_knows_its_length(key: str, net: nn.Module) -> None:
    ill = treated(key, net, sequences(37))
    assert "T = 37" in ill.code
    torch.manual_seed(7)
    exec(ill.code, {"model": net, "nn": nn, "torch": torch})
    assert_same(net.state_dict(), ill.model.state_dict())
    outputs = []
    for model in (net, ill.model):
        torch.manual_seed(8)
        outputs.append(model(sequences(37)[0]))
    assert torch.equal(*outputs)


def test_a_state_that_is_handed_in_fits_a_gru_and_no_lstm() -> None:
    torch.manual_seed(0)
    net = Stateful(nn.RNN(4, 16, batch_first=True))
    assert treated("recurrent.gru", net, sequences()).model(sequences()[0]).shape == (8, 4)
    assert "an LSTM has a pair" in refused("recurrent.lstm", net, sequences())


class HandWritten(nn.Module):
    """A recurrence of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.keep, self.head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            state = torch.tanh(self.read(step) + self.keep(state))
        scores: Tensor = self.head(state)
        return scores


@pytest.mark.parametrize("key", ["recurrent.orthogonal", "recurrent.identity"])
def test_a_hand_written_recurrence_is_drawn_anew(key: str) -> None:
    net, batch = HandWritten(), sequences(60)
    ill = treated(key, net, batch)
    assert decades_through_time(net, batch) > 2 * decades_through_time(ill.model, batch)
    torch.testing.assert_close(ill.model.keep.weight @ ill.model.keep.weight.T, torch.eye(16))
    assert torch.equal(ill.model.read.weight, net.read.weight)
    torch.manual_seed(7)
    exec(ill.code, {"model": net, "nn": nn})
    assert_same(net.state_dict(), ill.model.state_dict())


def test_packed_sequences_and_both_directions() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(4, 16, bidirectional=True), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            packed = pack_sequence([row[: 30 - 2 * index] for index, row in enumerate(x)])
            padded, lengths = pad_packed_sequence(self.rnn(packed)[0])
            assert lengths.max() == 30
            return self.head(padded.sum(0))

    for key in ("recurrent.lstm", "recurrent.gru"):
        model = treated(key, Packed(), sequences(30)).model
        assert model(sequences(30)[0]).shape == (8, 4)
        assert 1 < float(model.rnn.bias_ih_l0_reverse[16:32].detach().max()) <= math.log(29)


def test_dtype_mode_and_names_stay() -> None:
    net = rnn().double().eval()
    batch = sequences()[0].double(), sequences()[1]
    model = treated("recurrent.gru", net, batch).model
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not model.rnn.training
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("recurrent.lstm", nn.RNN),
        ("recurrent.gru", nn.RNN),
        ("recurrent.identity", nn.RNN),
        ("recurrent.orthogonal", nn.RNN),
        ("recurrent.orthogonal", nn.GRU),
        ("recurrent.forget_bias", nn.LSTM),
        ("recurrent.forget_bias", nn.GRU),
    ],
)
def test_the_code_shown_does_what_is_tried(key: str, kind: Any) -> None:
    net, batch = rnn(kind, num_layers=2), sequences(100)
    shown, tried = pasted(key, net), treated(key, net, batch).model
    assert_same(shown.state_dict(), tried.state_dict())
    assert torch.equal(shown(batch[0]), tried(batch[0]))


def test_what_does_not_fit_is_refused() -> None:
    assert "no trained RNN" in refused("recurrent.gru", mlp(4, nn.ReLU), digits())
    assert "no trained LSTM" in refused("recurrent.forget_bias", rnn(), sequences())
    assert "no biases" in refused("recurrent.forget_bias", rnn(nn.GRU, bias=False), sequences())
    assert "one step" in refused("recurrent.forget_bias", rnn(nn.GRU), sequences(1))
    frozen = rnn()
    frozen.rnn.requires_grad_(False)
    assert "no trained RNN" in refused("recurrent.gru", frozen, sequences())
    assert cross_entropy(frozen, sequences()).isfinite()
