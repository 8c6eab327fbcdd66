"""Recurrent networks over 108 steps: a vanilla RNN forgets the digit that it read at the start; four cures.

The sequence is a digit, row by row, and then 100 empty time steps. The network must name the class at the end. The
gradient with respect to each time step shows how far back the network learns from: its memory horizon. Gates that start
open to the past (chrono initialisation: Tallec and Ollivier 2018) keep it. Attention reaches every time step at once.
Where the long wait is not needed, shorter sequences avoid it (truncated backpropagation through time).

    python examples/gallery/rnn.py [--directory D] [--steps N]
"""

from __future__ import annotations

from typing import Any

import torch
from common import Learner, Network, Pair, Row, Task, adam, batches, digits, show
from torch import Tensor, nn

ROWS, BLANK, WIDTH = 8, 100, 32


class LastState(nn.Module):
    """Reads a sequence and answers from its last state."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(WIDTH, 10)

    def forward(self, sequence: Tensor) -> Tensor:
        """Scores of the classes."""
        scores: Tensor = self.head(self.rnn(sequence)[0][:, -1])
        return scores


class Attention(LastState):
    """Answers from a weighted mean of all states, asked for by the last one."""

    def forward(self, sequence: Tensor) -> Tensor:
        """Scores of the classes."""
        states = self.rnn(sequence)[0]
        weights = (states @ states[:, -1:].transpose(1, 2)).softmax(dim=1)
        scores: Tensor = self.head((weights * states).sum(dim=1))
        return scores


def remembering(rnn: nn.RNNBase) -> nn.RNNBase:
    """Bias the gate that keeps the state, the second in torch's layout of LSTM and GRU, towards the whole sequence."""
    first = rnn.get_parameter("bias_ih_l0").data.split(WIDTH)[1]
    second = rnn.get_parameter("bias_hh_l0").data.split(WIDTH)[1]
    first.copy_(torch.log(1 + (ROWS + BLANK - 2) * torch.rand(WIDTH)))
    second.zero_()
    return rnn


def task(net: nn.Module, blank: int = BLANK) -> Task:
    """Name the digit after the empty steps."""
    images, labels = digits()
    sequences = torch.cat([images.reshape(-1, ROWS, 8), torch.zeros(len(images), blank, 8)], dim=1)
    return Task(Learner(net, adam(3e-3)), batches(sequences, labels, size=32))


def through_time(module: Any, batch: tuple[Tensor, Tensor]) -> list[float]:
    """Norm of the gradient with respect to each time step of the input."""
    sequence, target = batch
    sequence.requires_grad_()
    loss = nn.functional.cross_entropy(module.net(sequence), target)
    (gradient,) = torch.autograd.grad(loss, sequence)
    norms: list[float] = gradient.norm(dim=(0, 2)).tolist()
    return norms


def rnn(kind: type[nn.RNN | nn.LSTM | nn.GRU]) -> nn.RNNBase:
    """A recurrent layer with torch's initialisation."""
    return kind(8, WIDTH, batch_first=True)


ROW = Row(
    name="rnn",
    title="Recurrent sequence model over 108 steps",
    steps=400,
    pairs=(
        Pair(
            Network("vanilla RNN", lambda: task(LastState(rnn(nn.RNN)))),
            "vanishing_through_time",
            "recurrence",
            (
                Network("LSTM, forget bias", lambda: task(LastState(remembering(rnn(nn.LSTM))))),
                Network("GRU, update bias", lambda: task(LastState(remembering(rnn(nn.GRU))))),
                Network("RNN, truncated to 16 steps", lambda: task(LastState(rnn(nn.RNN)), blank=8)),
                Network("RNN with attention", lambda: task(Attention(rnn(nn.RNN)))),
            ),
        ),
    ),
    profile=through_time,
    axis="time step",
)

if __name__ == "__main__":
    show(ROW)
