"""Recurrent networks: memory over many steps, real sequences and text."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Factory, Loss, Supervised, adam, per_token, sgd
from .case import Case, Task, healthy, sick
from .data import VOCABULARY, adding, loader, local, pixels, recall, rows, text

Lstm = TypeVar("Lstm", nn.LSTM, nn.LSTMCell)


class LastStep(nn.Module):
    """Reads a sequence and answers from the last state (or, bidirectional, from the mean of all)."""

    def __init__(self, rnn: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Scores at the end of the sequence."""
        states = self.rnn(x)[0]
        scores: Tensor = self.head(states.mean(1) if self.rnn.bidirectional else states[:, -1])
        return scores


class CellLoop(nn.Module):
    """The same, with a cell that is called once per step."""

    def __init__(self, cell: nn.RNNCell | nn.LSTMCell, outputs: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Scores at the end of the sequence."""
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        scores: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return scores


class Recurrent(nn.Module):
    """A recurrent language model."""

    def __init__(self, width: int = 64, depth: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.rnn = nn.LSTM(width, width, num_layers=depth, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of the next character at every position."""
        scores: Tensor = self.head(self.rnn(self.embedding(codes))[0])
        return scores


class Attending(nn.Module):
    """A bidirectional GRU whose states are pooled by learned attention."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(inputs, width, batch_first=True, bidirectional=True)
        self.score, self.head = nn.Linear(2 * width, 1), nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Scores from the attended states."""
        states = self.rnn(x)[0]
        scores: Tensor = self.head((self.score(states).softmax(1) * states).sum(1))
        return scores


def remembering(rnn: Lstm, span: int) -> Lstm:
    """Open the forget gates and close the input gates, for spans up to `span` steps."""
    size = rnn.hidden_size
    with torch.no_grad():
        for name, bias in rnn.named_parameters():
            if name.startswith("bias_ih"):
                bias[size : 2 * size] = torch.log(torch.rand(size) * (span - 1) + 1)
                bias[:size] = -bias[size : 2 * size]
            elif name.startswith("bias_hh"):
                bias.zero_()
    return rnn


def vanilla(inputs: int, width: int = 32, nonlinearity: str = "tanh", depth: int = 1) -> nn.RNN:
    """A vanilla recurrent layer with PyTorch's initialisation."""
    return nn.RNN(inputs, width, depth, nonlinearity=nonlinearity, batch_first=True)


def lstm(inputs: int, width: int = 32, span: int | None = None) -> nn.LSTM:
    """An LSTM, by default with PyTorch's initialisation."""
    layer = nn.LSTM(inputs, width, batch_first=True)
    if span is not None:
        remembering(layer, span)
    return layer


def gru(inputs: int, width: int = 32) -> nn.GRU:
    """A GRU with PyTorch's initialisation."""
    return nn.GRU(inputs, width, batch_first=True)


def amplifying(gain: float, inputs: int, nonlinearity: str = "relu") -> nn.RNN:
    """A recurrent layer that multiplies its state by `gain` in every step."""
    layer = vanilla(inputs, nonlinearity=nonlinearity)
    nn.init.orthogonal_(cast(Tensor, layer.weight_hh_l0), gain)
    return layer


def identity(inputs: int) -> nn.RNN:
    """A ReLU recurrence that starts as the identity."""
    layer = vanilla(inputs, nonlinearity="relu")
    nn.init.eye_(cast(Tensor, layer.weight_hh_l0))
    nn.init.zeros_(cast(Tensor, layer.bias_hh_l0))
    nn.init.zeros_(cast(Tensor, layer.bias_ih_l0))
    return layer


def reads(
    net: nn.RNNBase | nn.Module,
    sequences: tuple[Tensor, Tensor],
    optimizer: Factory,
    loss: Loss = F.cross_entropy,
    outputs: int = 8,
    batch: int = 32,
    **trainer: Any,
) -> Task:
    """Train a reader of sequences; a bare recurrent layer is given a head."""
    reader = LastStep(net, outputs) if isinstance(net, nn.RNNBase) else net
    return Task(Supervised(reader, optimizer, loss), loader(*sequences, batch=batch), trainer)


def language(depth: int, length: int, batch: int) -> Task:
    """Train a recurrent language model on Python's manual."""
    return Task(Supervised(Recurrent(depth=depth), adam(5e-3), per_token), loader(*text(length), batch=batch))


CASES: list[Case] = [
    sick(
        "rnn_recall_T100",
        lambda: reads(vanilla(8, 16), recall(100), adam(3e-3)),
        600,
        "vanishing_through_time",
        "recurrence",
        "lstm_narrow_recall_T100",
        "the first step is forgotten: at or near chance level",
        remedy="recurrent.*",
        also="stalled vanishing",
    ),
    sick(
        "lstm_default_recall_T100",
        lambda: reads(lstm(8), recall(100), adam(5e-3)),
        700,
        "vanishing_through_time",
        "recurrence",
        "lstm_recall_T100",
        "a forget gate of 1/2 per step forgets: chance level",
        remedy="recurrent.*",
        also="stalled vanishing",
    ),
    sick(
        "rnn_adding_T100",
        lambda: reads(vanilla(2), adding(100), adam(3e-3), F.mse_loss, 1),
        600,
        "vanishing_through_time",
        "recurrence",
        "lstm_adding_T100",
        "predicts the mean",
        remedy="recurrent.*",
        also="stalled vanishing",
    ),
    sick(
        "lstm_stacked_recall_T120",
        lambda: reads(nn.LSTM(8, 24, 2, batch_first=True), recall(120), adam(5e-3)),
        500,
        "vanishing_through_time",
        "recurrence",
        "lstm_recall_T120",
        "two layers, both forget: chance level",
        remedy="recurrent.*",
        also="stalled vanishing",
        held_out=True,
    ),
    sick(
        "rnn_cell_recall_T60",
        lambda: reads(CellLoop(nn.RNNCell(8, 32), 8), recall(60), adam(2e-3)),
        400,
        "vanishing_through_time",
        "recurrence",
        "lstm_cell_recall_T60",
        "one call per step: chance level",
        remedy="recurrent.*",
        also="stalled vanishing",
        held_out=True,
    ),
    sick(
        "rnn_digits_then_blank",
        lambda: reads(vanilla(8), rows(blank=90), adam(3e-3), outputs=10),
        400,
        "vanishing_through_time",
        "recurrence",
        "lstm_digits_then_blank",
        "digits forgotten over 90 blank steps",
        remedy="recurrent.*",
        also="stalled vanishing",
        held_out=True,
    ),
    sick(
        "rnn_explode_T60",
        lambda: reads(amplifying(2.0, 8), recall(60), sgd(0.01)),
        60,
        "exploding nonfinite",
        "recurrence large_init",
        "rnn_identity_T60",
        "the state doubles in every step: NaN",
        remedy="init.* recurrent.orthogonal recurrent.identity",
    ),
    sick(
        "rnn_explode_rows_T40",
        lambda: reads(amplifying(2.0, 8), rows(blank=32), adam(1e-3), outputs=10, gradient_clip_val=1.0),
        300,
        "exploding nonfinite",
        "recurrence large_init",
        "rnn_identity_rows_T40",
        "the state grows in every step; clipping keeps it finite, no more",
        remedy="init.* recurrent.orthogonal recurrent.identity",
        also="dead",
        held_out=True,
    ),
    healthy(
        "lstm_narrow_recall_T100",
        lambda: reads(lstm(8, 16, span=100), recall(100), adam(3e-3)),
        600,
        "the forget bias lets it remember",
    ),
    healthy(
        "lstm_recall_T100",
        lambda: reads(lstm(8, span=100), recall(100), adam(5e-3)),
        700,
        "the forget bias lets it remember",
    ),
    healthy(
        "lstm_recall_T120",
        lambda: reads(lstm(8, span=120), recall(120), adam(5e-3)),
        500,
        "the forget bias lets it remember",
        held_out=True,
    ),
    healthy(
        "lstm_cell_recall_T60",
        lambda: reads(CellLoop(remembering(nn.LSTMCell(8, 32), 60), 8), recall(60), adam(2e-3)),
        400,
        "one call per step, and it remembers",
        held_out=True,
    ),
    healthy(
        "lstm_adding_T100",
        lambda: reads(lstm(2, span=100), adding(100), adam(3e-3), F.mse_loss, 1),
        600,
        "remembers both numbers",
    ),
    healthy(
        "lstm_digits_then_blank",
        lambda: reads(lstm(8, span=100), rows(blank=90), adam(3e-3), outputs=10),
        400,
        "remembers the digit",
        held_out=True,
    ),
    healthy("rnn_identity_T60", lambda: reads(identity(8), recall(60), adam(1e-3)), 300, "a recurrence that keeps"),
    healthy(
        "rnn_identity_rows_T40",
        lambda: reads(identity(8), rows(blank=32), adam(1e-3), outputs=10),
        300,
        "a recurrence that keeps",
        held_out=True,
    ),
    healthy("rnn_short_T8", lambda: reads(vanilla(8), rows(), adam(5e-3), outputs=10), 300, "eight steps only"),
    healthy(
        "rnn_local_T100",
        lambda: reads(vanilla(2), local(100), adam(3e-3), outputs=3),
        400,
        "forgets the start, which it does not need",
    ),
    healthy(
        "gru_pixels_T64",
        lambda: reads(gru(1), pixels(), adam(1e-2), outputs=10),
        400,
        "starts with a short memory and grows a longer one",
    ),
    healthy("lstm_lm_T128", lambda: language(2, 128, 8), 100, "text: learns"),
    healthy(
        "bilstm_rows",
        lambda: reads(nn.LSTM(8, 24, batch_first=True, bidirectional=True), rows(), adam(5e-3), outputs=10),
        250,
        "reads in both directions",
    ),
    healthy(
        "gru_attention_pooling",
        lambda: reads(Attending(1, 16, 10), pixels(), adam(1e-2)),
        200,
        "attention reaches every step",
        held_out=True,
    ),
]
