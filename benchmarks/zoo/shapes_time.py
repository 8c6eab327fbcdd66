"""Blind shapes: sequences read in both directions, encoder and decoder, and trouble that starts late."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .blocks import HE, XAVIER, Detached, Factory, Supervised, adam, mlp, on_digits, per_token, sgd
from .case import Case, Task, healthy, sick
from .data import adding, digits, loader, local, rows
from .late import from_step, setting, shifted
from .recurrent import LastStep, gru, lstm, reads, remembering, vanilla


class Everywhere(nn.Module):
    """Reads in both directions and answers from the state in the middle of the sequence."""

    def __init__(self, rnn: nn.RNNBase, outputs: int, place: float = 0.5) -> None:
        super().__init__()
        self.rnn, self.place = rnn, place
        self.head = nn.Linear(2 * rnn.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Scores from one place."""
        states = self.rnn(x)[0]
        scores: Tensor = self.head(states[:, int(self.place * x.shape[1])])
        return scores


class Translator(nn.Module):
    """An encoder, attention over its states, and a decoder that is fed the right answer so far."""

    def __init__(self, symbols: int = 10, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols + 1, width)
        self.encoder: nn.Module = First(nn.GRU(width, width, batch_first=True))
        self.decoder = First(nn.GRU(width, width, batch_first=True))
        self.query, self.head = nn.Linear(width, width), nn.Linear(2 * width, symbols)
        self.start = symbols

    def forward(self, source_and_target: Tensor) -> Tensor:
        """Scores of every symbol of the answer."""
        source, target = source_and_target.unbind(1)
        before = F.pad(target[:, :-1], (1, 0), value=self.start)
        memory, states = self.encoder(self.embed(source)), self.decoder(self.embed(before))
        weights = (self.query(states) @ memory.transpose(1, 2) / memory.shape[-1] ** 0.5).softmax(-1)
        scores: Tensor = self.head(torch.cat([states, weights @ memory], dim=-1))
        return scores


class First(nn.Module):
    """A recurrent layer that returns its states alone."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        """The states."""
        states: Tensor = self.rnn(x)[0]
        return states


class Ramped(LightningModule):
    """The whole loss is multiplied by a weight that rises from zero over 100 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, gain=HE)
        self.plain: list[float] = []  # the loss without its weight

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The weighted loss."""
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.plain.append(loss.item())
        return min(1.0, self.global_step / 100) * loss

    def configure_optimizers(self) -> Any:
        """Gradient descent, which feels the weight."""
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


@lru_cache
def reversal(length: int = 8, symbols: int = 10, count: int = 4096) -> tuple[Tensor, Tensor]:
    """Words and the same words backwards; the target also stands beside the source, for the decoder."""
    words = torch.randint(symbols, (count, length), generator=torch.Generator().manual_seed(61))
    return torch.stack([words, words.flip(1)], dim=1), words.flip(1)


@lru_cache
def far_ends(length: int, symbols: int = 4, count: int = 4096) -> tuple[Tensor, Tensor]:
    """Whether the first symbol and the last one are the same, with noise between."""
    source = torch.Generator().manual_seed(62)
    ends = torch.randint(symbols, (count, 2), generator=source)
    sequence = 0.1 * torch.randn(count, length, symbols, generator=source)
    every = torch.arange(count)
    sequence[every, 0, ends[:, 0]] += 1.0
    sequence[every, -1, ends[:, 1]] += 1.0
    return sequence, symbols * ends[:, 0] + ends[:, 1]


def translated(optimizer: Factory, *, is_cut: bool = False) -> Task:
    """Train the translator to spell backwards."""
    net = Translator()
    if is_cut:
        net.encoder = Detached(net.encoder)
    return Task(Supervised(net, optimizer, per_token), loader(*reversal(), batch=64))


def in_the_middle(rnn: nn.RNNBase, length: int, optimizer: Factory) -> Task:
    """Name the first and the last symbol from the middle."""
    return Task(Supervised(Everywhere(rnn, 16), optimizer), loader(*far_ends(length), batch=32))


def both_ways(kind: type[nn.RNN] | type[nn.LSTM], width: int = 24) -> Any:
    """A bidirectional layer."""
    return kind(4, width, batch_first=True, bidirectional=True)


def patient(rnn: nn.GRU) -> nn.GRU:
    """Open the update gates of a GRU, so that its state lasts for 50 steps or so."""
    size = rnn.hidden_size
    with torch.no_grad():
        cast(Tensor, rnn.bias_hh_l0)[size : 2 * size] = 4.0 * torch.rand(size) + 1.0
    return rnn


def bidirectional_memory(span: int) -> nn.LSTM:
    """An LSTM in both directions that keeps for up to `span` steps."""
    return remembering(cast(nn.LSTM, both_ways(nn.LSTM)), span)


def warm(steps: int) -> Any:
    """A rate that rises from exactly zero."""

    def schedule(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: min(1.0, step / steps))

    return schedule


def read_rows(optimizer: Factory, **options: Any) -> Task:
    """A GRU reads the rows of digits."""
    return Task(Supervised(LastStep(gru(8), 10), optimizer, **options), loader(*rows(), batch=32))


def compressed(**options: Any) -> Task:
    """An autoencoder with GELU on the digits."""
    images, _ = digits()
    net = nn.Sequential(mlp(4, nn.GELU, outputs=16, gain=HE), mlp(4, nn.GELU, inputs=16, outputs=64, gain=HE))
    return Task(Supervised(net, sgd(0.05), F.mse_loss, **options), loader(images, images))


def narrow_tanh(**options: Any) -> Task:
    """Six narrow tanh layers with Adam."""
    return on_digits(mlp(6, nn.Tanh, gain=XAVIER, width=32), adam(2e-3), **options)


CASES: tuple[Case, ...] = (
    sick(
        "rnn_middle_of_120",
        lambda: in_the_middle(both_ways(nn.RNN), 120, adam(3e-3)),
        200,
        "vanishing_through_time",
        "recurrence",
        "lstm_middle_of_120",
        "both directions forget before they reach the middle: chance level; loss 2.8 to 2.8, 2.8 to 2.8",
        also="stalled vanishing",
    ),
    sick(
        "gru_then_blank",
        lambda: reads(gru(8, 24), rows(blank=60), adam(5e-3), outputs=10),
        200,
        "vanishing_through_time",
        "recurrence",
        "gru_patient",
        "a default GRU forgets the digit over 60 blank steps: chance level; loss 2.3 to 2.3, 2.3 to 2.3",
        also="stalled vanishing",
    ),
    sick(
        "rnn_adding_T50_two_layers",
        lambda: reads(vanilla(2, 24, depth=2), adding(50), adam(2e-3), F.mse_loss, 1),
        250,
        "vanishing_through_time",
        "recurrence",
        "lstm_adding_T50",
        "two layers, both forget: predicts the mean; loss 0.15 to 0.16, 0.14 to 0.17",
        also="stalled vanishing",
    ),
    sick(
        "translator_cut",
        lambda: translated(adam(5e-3), is_cut=True),
        300,
        "detached",
        "detached",
        "translator",
        "the encoder's states are detached, so it stays random; loss 2.3 to 0.97, 2.3 to 0.91",
    ),
    sick(
        "gru_rate_jump",
        lambda: read_rows(adam(5e-3), events={150: setting("lr", 3.0)}),
        300,
        "exploding nonfinite dead stalled vanishing vanishing_through_time",
        "learning_rate large_init saturating_activation recurrence",
        "gru_rows",
        "a rate 600 times as high from step 150 on: all gates at their rails; loss 2.2 to 17, 2.3 to 33",
        onset=150,
    ),
    sick(
        "autoencoder_late_decay",
        lambda: compressed(events={150: setting("weight_decay", 0.5)}),
        350,
        "vanishing stalled",
        "weight_decay",
        "autoencoder_steady",
        "decay is switched on at step 150: the weights shrink to nothing and the output to the mean; "
        "loss 0.91 to 0.94, 0.95 to 0.95",
        also="dead",
        onset=150,
    ),
    sick(
        "late_dead_relu_sgd",
        lambda: on_digits(mlp(5, gain=HE), sgd(0.02), events={150: shifted(3, -300.0)}),
        300,
        "dead",
        "dead_relu cliff",
        "late_relu_twin",
        "the last hidden layer falls silent at step 150: back to chance level; loss 1.9 to 2.3, 1.9 to 2.3",
        also="stalled",
        onset=150,
    ),
    sick(
        "late_raw_pixels",
        lambda: on_digits(mlp(5, gain=HE), sgd(0.02), feed=from_step(150, lambda x: 97 * x + 790)),
        300,
        "exploding nonfinite dead stalled",
        "input_scale dead_relu learning_rate",
        "late_relu_twin",
        "raw pixels instead of standardised ones from step 150 on, for ReLU: the weights leap; loss NaN, NaN",
        also="vanishing",
        onset=150,
    ),
    sick(
        "late_rate_tanh",
        lambda: narrow_tanh(events={150: setting("lr", 1.0)}),
        300,
        "exploding nonfinite dead stalled vanishing",
        "learning_rate large_init saturating_activation",
        "tanh_steady",
        "a rate five hundred times as high from step 150 on: all units at their rails; loss 2 to 18, 2.1 to 20",
        onset=150,
    ),
    healthy(
        "lstm_middle_of_120",
        lambda: in_the_middle(bidirectional_memory(120), 120, adam(1e-2)),
        200,
        "forget gates that last, in both directions; loss 2.8 to 0.6, 2.8 to 0.24",
    ),
    healthy(
        "birnn_middle_of_9",
        lambda: in_the_middle(both_ways(nn.RNN), 9, adam(5e-3)),
        200,
        "both ends are near: learns; loss 2.8 to 0.016, 2.8 to 0.026",
    ),
    healthy(
        "gru_patient",
        lambda: reads(patient(gru(8, 24)), rows(blank=60), adam(5e-3), outputs=10),
        200,
        "update gates that keep: remembers; loss 2.3 to 0.89, 2.3 to 0.61",
    ),
    healthy(
        "gru_local_T80",
        lambda: reads(gru(2, 16), local(80), adam(5e-3), outputs=3),
        200,
        "80 steps, of which the last three matter: learns; loss 1.1 to 0.17, 1.1 to 0.14",
    ),
    healthy(
        "lstm_adding_T50",
        lambda: reads(lstm(2, span=50), adding(50), adam(1e-2), F.mse_loss, 1),
        250,
        "forget gates that last; loss 0.18 to 0.035, 0.18 to 0.02",
    ),
    healthy(
        "translator",
        lambda: translated(adam(5e-3)),
        300,
        "attends to the encoder: learns; loss 2.2 to 0.55, 2.2 to 0.59",
    ),
    healthy(
        "gru_rows", lambda: read_rows(adam(5e-3)), 300, "the right rate throughout; loss 2.2 to 0.061, 2.3 to 0.08"
    ),
    healthy(
        "gru_long_warmup",
        lambda: read_rows(adam(1e-2), schedule=warm(150)),
        300,
        "the rate rises from exactly zero over 150 steps: learns; loss 2.3 to 0.047, 2.3 to 0.045",
    ),
    healthy(
        "loss_ramped",
        lambda: Task(Ramped(), loader(*digits())),
        300,
        "the whole loss rises from zero; without its weight it falls from 2.5 to 0.003, 2.5 to 0.018",
    ),
    healthy(
        "first_batch_atypical",
        lambda: on_digits(mlp(6, gain=HE), adam(1e-3), feed=lambda step, x: 30 * x if step == 0 else x),
        250,
        "the first batch is thirty times as large as all others: learns; loss 2.5 to 0.12, 2.3 to 0.09",
    ),
    healthy("autoencoder_steady", lambda: compressed(), 350, "no decay; loss 0.91 to 0.18, 0.95 to 0.24"),
    healthy(
        "late_relu_twin",
        lambda: on_digits(mlp(5, gain=HE), sgd(0.02)),
        300,
        "undisturbed; loss 1.9 to 0.004, 1.9 to 0.0025",
    ),
    healthy("tanh_steady", lambda: narrow_tanh(), 300, "undisturbed; loss 2 to 0.032, 2.1 to 0.034"),
)
