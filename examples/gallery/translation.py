"""Machine translation, English to German, letter by letter: a tanh RNN forgets the sentence; attention keeps it.

The pairs are the messages of two web frameworks, Django and Wagtail, from their German catalogues (both BSD-3-Clause;
fetched by prepare.py, not part of this repository). The plain RNN must carry a sentence through up to eighty time steps
in one state. LSTM and GRU carry it better. With attention (Luong et al. 2015) they need not carry it at all. Neither do
the two transformers: torch's, normalised before each block, and Marian, with a warm-up, from its configuration in
Hugging Face's transformers.

    python examples/gallery/translation.py [--directory D] [--steps N]
"""

from __future__ import annotations

import gettext
import warnings
from functools import lru_cache
from typing import Any

import pytorch_lightning as pl
import torch
from common import Network, Pair, Row, Task, batches, show, warmed_up
from prepare import CATALOGUES
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel

LONGEST, WIDTH = 80, 64
PAD, START = 0, 1
if not any(CATALOGUES.glob("**/*.mo")):
    raise FileNotFoundError(f"no catalogues in {CATALOGUES}: python examples/gallery/prepare.py")

ALPHABET = "\0\1" + "".join(map(chr, range(32, 127))) + "äöüÄÖÜß\n"


@lru_cache
def sentences() -> tuple[Tensor, Tensor]:
    """English padded on the left and German on the right, as places in the alphabet, shape ``(pairs, LONGEST)``."""
    pairs: dict[str, str] = {}
    for path in sorted(CATALOGUES.glob("**/*.mo")):
        with path.open("rb") as file:
            known = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        pairs |= {key: value for key, value in known.items() if isinstance(key, str)}
    kept = [
        pair for pair in pairs.items() if all(12 <= len(text) < LONGEST and {*text} <= {*ALPHABET} for text in pair)
    ]
    english, german = ([[ALPHABET.index(c) for c in text] for text in texts] for texts in zip(*kept, strict=True))
    source = torch.tensor([[PAD] * (LONGEST - len(codes)) + codes for codes in english])
    return source, torch.tensor([codes + [PAD] * (LONGEST - len(codes)) for codes in german])


class EncoderDecoder(nn.Module):
    """Two recurrent layers, the second of which starts from the last state of the first and may attend to all."""

    def __init__(self, kind: type[nn.RNN | nn.LSTM | nn.GRU], attends: bool) -> None:
        super().__init__()
        self.source, self.target = (nn.Embedding(len(ALPHABET), WIDTH) for _ in range(2))
        self.encoder, self.decoder = (kind(WIDTH, WIDTH, batch_first=True) for _ in range(2))
        self.head = nn.Linear(2 * WIDTH if attends else WIDTH, len(ALPHABET))
        self.attends = attends

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        """Scores of each next letter, from the source and the letters before."""
        seen, state = self.encoder(self.source(source))
        hidden, _ = self.decoder(self.target(before), state)
        if self.attends:
            scores = (hidden @ seen.transpose(1, 2)).masked_fill((source == PAD)[:, None], -torch.inf)
            hidden = torch.cat([hidden, scores.softmax(dim=2) @ seen], dim=2)
        output: Tensor = self.head(hidden)
        return output


class Transformer(nn.Module):
    """torch's own, normalised before each block."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(len(ALPHABET), WIDTH), nn.Embedding(LONGEST, WIDTH)
        with warnings.catch_warnings():  # of a shortcut for inference that pre-norm does not have
            warnings.filterwarnings("ignore", "enable_nested_tensor is True")
            self.net = nn.Transformer(WIDTH, 4, 2, 2, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, len(ALPHABET))

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        """Scores of each next letter, from the source and the letters before."""
        mask, padding = nn.Transformer.generate_square_subsequent_mask(LONGEST, dtype=torch.bool), source == PAD
        first, second = (self.letters(text) + self.places.weight for text in (source, before))
        masks = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
        output: Tensor = self.head(self.net(first, second, tgt_mask=mask, **masks))
        return output


class Marian(nn.Module):
    """Hugging Face's Marian, small and untrained."""

    def __init__(self) -> None:
        super().__init__()
        size = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
        size |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
        size |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 2 * WIDTH)
        tokens = {"pad_token_id": PAD, "decoder_start_token_id": START, "eos_token_id": PAD, "forced_eos_token_id": PAD}
        rest = {"max_position_embeddings": LONGEST, "scale_embedding": True, "init_std": 0.1, "dropout": 0.0}
        self.net = MarianMTModel(MarianConfig(vocab_size=len(ALPHABET), d_model=WIDTH, **size, **tokens, **rest))

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        """Scores of each next letter, from the source and the letters before."""
        mask = (source != PAD).long()
        scores: Tensor = self.net(input_ids=source, attention_mask=mask, decoder_input_ids=before).logits
        return scores


class Translator(pl.LightningModule):
    """Learns each letter of the German sentence from the English one and the letters before."""

    def __init__(self, net: nn.Module, warmup: int) -> None:
        super().__init__()
        self.net, self.warmup = net, warmup

    def loss_of(self, source: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per letter."""
        before = F.pad(target[:, :-1], (1, 0), value=START)
        return F.cross_entropy(self.net(source, before).flatten(0, 1), target.flatten(), ignore_index=PAD)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.loss_of(*batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam, warmed up."""
        return warmed_up(torch.optim.Adam(self.parameters(), lr=2e-3), self.warmup)


def through_time(module: Any, batch: tuple[Tensor, Tensor]) -> list[float]:
    """Norm of the gradient at each letter of the source."""
    seen: list[Tensor] = []
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    handles = [part.register_forward_hook(lambda _, __, output: seen.append(output)) for part in embeddings]
    loss = module.loss_of(*batch)
    for handle in handles:
        handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen[0])  # the source's letters are looked up first
    norms: list[float] = gradient.norm(dim=(0, 2)).tolist()
    return norms


def task(net: nn.Module, warmup: int = 0) -> Task:
    """Translate."""
    return Task(Translator(net, warmup), batches(*sentences(), size=32))


ROW = Row(
    name="translation",
    title="Machine translation, English to German",
    steps=250,
    pairs=(
        Pair(
            Network("tanh RNN encoder-decoder", lambda: task(EncoderDecoder(nn.RNN, attends=False))),
            "vanishing_through_time",
            "recurrence",
            (
                Network("LSTM with attention", lambda: task(EncoderDecoder(nn.LSTM, attends=True))),
                Network("GRU with attention", lambda: task(EncoderDecoder(nn.GRU, attends=True))),
                Network("Transformer, pre-norm", lambda: task(Transformer())),
                Network("Marian, from its configuration, warm-up", lambda: task(Marian(), warmup=60)),
            ),
        ),
    ),
    profile=through_time,
    axis="letter of the English sentence",
    measure="loss per letter",
)

if __name__ == "__main__":
    show(ROW)
