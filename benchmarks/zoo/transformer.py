"""Transformers on text and on the patches of the digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Supervised, adam, on_digits, per_token
from .case import Case, Task, borderline, healthy, sick
from .data import VOCABULARY, loader, text
from .healthy_mlp import warm_up


class Attention(nn.Module):
    """Multi-head self-attention; `sharpness` scales its scores."""

    def __init__(self, width: int, heads: int, causal: bool, sharpness: float = 1.0) -> None:
        super().__init__()
        self.projected, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal, self.sharpness = heads, causal, sharpness

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        query, key, value = self.projected(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(self.sharpness * query, key, value, is_causal=self.causal)
        output: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return output


class Block(nn.Module):
    """Attention and a perceptron, each normalised before (or after) and beside a skip (or not)."""

    def __init__(
        self,
        width: int,
        *,
        causal: bool = False,
        order: str = "pre",
        skip: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU,
        sharpness: float = 1.0,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, 4, causal, sharpness)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), activation(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.order, self.skip = order, skip

    def forward(self, x: Tensor) -> Tensor:
        """Apply both parts."""
        for norm, part in zip(self.norms, (self.attention, self.feed), strict=True):
            beside = x
            x = part(norm(x)) if self.order == "pre" else part(x)
            x = beside + x if self.skip else x
            x = norm(x) if self.order == "post" else x
        return x


class LanguageModel(nn.Module):
    """Characters with learned positions; the output may share the embedding's weights."""

    def __init__(self, blocks: nn.Module, width: int = 48, length: int = 32, tied: bool = False) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks, self.norm = blocks, nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            nn.init.normal_(self.embedding.weight, std=0.1)
            self.head.weight = self.embedding.weight

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of the next character at every position."""
        hidden = self.embedding(codes) + self.positions.weight[: codes.shape[1]]
        scores: Tensor = self.head(self.norm(self.blocks(hidden)))
        return scores


class Vision(nn.Module):
    """Sixteen 2x2 patches of a digit, with learned positions."""

    def __init__(self, blocks: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks, self.norm, self.head = blocks, nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes."""
        tokens = self.patches(images.reshape(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
        scores: Tensor = self.head(self.norm(self.blocks(tokens + self.positions)).mean(1))
        return scores


def stack(depth: int, width: int, **options: Any) -> nn.Sequential:
    """Several blocks."""
    return nn.Sequential(*(Block(width, **options) for _ in range(depth)))


class Stock(nn.Module):
    """PyTorch's own encoder, used causally."""

    def __init__(self, depth: int, width: int, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, each position from those before it."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        output: Tensor = self.encoder(x, mask=mask, is_causal=True)
        return output


def writes(blocks: nn.Module, lr: float = 3e-3, tied: bool = False, **options: Any) -> Task:
    """Train a language model on Python's manual."""
    model = LanguageModel(blocks, tied=tied)
    return Task(Supervised(model, adam(lr), per_token, **options), loader(*text(32), batch=16))


def sees(blocks: nn.Module, lr: float = 3e-3, **options: Any) -> Task:
    """Train a vision transformer on the digits."""
    return on_digits(Vision(blocks), adam(lr), batch=32, **options)


CASES: list[Case] = [
    sick(
        "postln_deep_nowarmup",
        lambda: writes(Stock(12, 48, norm_first=False), 5e-3),
        150,
        "vanishing stalled exploding",
        "normalisation_order learning_rate",
        "preln_deep",
        "post-norm, deep, full rate at once: stays at the letter frequencies",
        remedy="prenorm",
    ),
    sick(
        "postnorm_lm_deep",
        lambda: writes(stack(12, 48, causal=True, order="post"), 5e-3),
        150,
        "vanishing stalled exploding",
        "normalisation_order learning_rate",
        "prenorm_lm_deep",
        "post-norm, deep, full rate at once: stays at the letter frequencies",
        remedy="prenorm",
        held_out=True,
    ),
    sick(
        "vit_without_skip",
        lambda: sees(stack(8, 32, skip=False, order="none")),
        200,
        "vanishing",
        "no_skip_or_norm small_init",
        "prenorm_vit",
        "neither skip nor norm in the blocks: chance level",
        remedy="norm.* residual.*",
        also="stalled",
        held_out=True,
    ),
    borderline(
        "attn_saturated",
        lambda: writes(stack(4, 48, causal=True, sharpness=60.0)),
        200,
        "vanishing stalled exploding",
        "large_init",
        "attention starts one-hot: somewhat worse",
        twin="preln_lm",
    ),
    healthy("preln_lm", lambda: writes(stack(4, 48, causal=True)), 200, "learns"),
    healthy("tied_lm", lambda: writes(stack(2, 48, causal=True), 2e-3, tied=True), 300, "shared weights: learns"),
    healthy("preln_deep", lambda: writes(Stock(12, 48, norm_first=True), 5e-3), 150, "learns"),
    healthy(
        "postln_warmup",
        lambda: writes(stack(3, 48, causal=True, order="post"), 1e-3, schedule=warm_up(60)),
        250,
        "post-norm, but shallow and warmed up: learns",
        held_out=True,
    ),
    healthy("prenorm_vit", lambda: sees(stack(8, 32)), 200, "learns"),
    healthy("prenorm_lm_deep", lambda: writes(stack(12, 48, causal=True), 5e-3), 150, "learns", held_out=True),
    healthy(
        "vit_sigmoid_prenorm",
        lambda: sees(stack(3, 32, activation=nn.Sigmoid)),
        200,
        "sigmoids, but beside skips: learns",
    ),
]
