"""Language models on Python's own manual: post-norm without warm-up, and a learning rate at which the loss explodes.

A deep transformer that normalises after each block (Vaswani et al. 2017) cannot take the full learning rate from the
first step. Normalising before each block, and a warm-up, cure it (Xiong et al. 2020). The LSTM is trained by plain SGD
at 20. This is the learning rate of PyTorch's word-language-model example, which clips. ``auto_clip`` clips without a
number.

    python examples/gallery/language_model.py [--directory D] [--steps N]
"""

from __future__ import annotations

from common import CHARACTERS, Learner, Network, Pair, Row, Task, adam, batches, per_token, sgd, show, text
from torch import Tensor, nn

LENGTH, WIDTH, DEPTH = 32, 48, 12


class Transformer(nn.Module):
    """Characters through torch's own encoder, each place from those before it."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of each next character."""
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        hidden = self.embedding(codes) + self.places.weight
        scores: Tensor = self.head(self.encoder(hidden, mask=mask, is_causal=True))
        return scores


class Recurrent(nn.Module):
    """Characters through two LSTM layers."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, width)
        self.lstm, self.head = nn.LSTM(width, width, num_layers=2, batch_first=True), nn.Linear(width, CHARACTERS)

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of each next character."""
        scores: Tensor = self.head(self.lstm(self.embedding(codes))[0])
        return scores


def transformer(norm_first: bool, warmup: int = 0) -> Task:
    """Adam at 5e-3, warmed up or not."""
    return Task(Learner(Transformer(norm_first), adam(5e-3), per_token, warmup), batches(*text(LENGTH), size=16))


def recurrent(**gradwatch: bool) -> Task:
    """Plain SGD at 20, clipped or not."""
    return Task(Learner(Recurrent(), sgd(20.0, momentum=0.0), per_token), batches(*text(64), size=16), {}, gradwatch)


ROW = Row(
    name="language_model",
    title="Language models on Python's manual",
    steps=250,
    pairs=(
        Pair(
            Network("post-norm transformer, no warm-up", lambda: transformer(norm_first=False)),
            "vanishing stalled exploding",
            "normalisation_order learning_rate",
            (Network("pre-norm transformer, warm-up", lambda: transformer(norm_first=True, warmup=50)),),
        ),
        Pair(
            Network("LSTM, SGD at 20", recurrent),
            "exploding nonfinite",
            "learning_rate",
            (Network("LSTM, SGD at 20, auto_clip=True", lambda: recurrent(auto_clip=True)),),
        ),
    ),
)

if __name__ == "__main__":
    show(ROW)
