"""Networks in plain torch, from their published shapes: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        is_same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if is_same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, outputs, height / stride, width / stride)``."""
        return F.relu(self.shortcut(x) + self.branch(x))


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> nn.Module:
    """ResNet-50 by default: 25.6 million parameters in 161 tensors."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inputs = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Bottleneck(inputs, width * 2**stage, 2 if stage and not block else 1))
            inputs = 4 * width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Block(nn.Module):
    """A pre-norm transformer block (Radford et al. 2019)."""

    def __init__(self, width: int, heads: int, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape as ``x``, ``(batch, length, width)``."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        output: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return output


class GPT(nn.Module):
    """A language model; GPT-2 small by default: 124 million parameters, the embedding tied to the head."""

    def __init__(self, depth: int = 12, width: int = 768, heads: int = 12, words: int = 50257, length: int = 1024):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, True) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape ``(batch, length, words)``."""
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class ViT(nn.Module):
    """A vision transformer; ViT-B/16 by default: 86 million parameters (https://arxiv.org/abs/2010.11929)."""

    def __init__(self, depth: int = 12, width: int = 768, heads: int = 12, size: int = 224, patch: int = 16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape ``(batch, 1000)``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def mlp(depth: int = 20, width: int = 64, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class ManySmall(nn.Module):
    """Twice as many tensors of 16 numbers as there are layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.LayerNorm(16) for _ in range(layers - 1)), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape ``(batch, 10)``."""
        logits: Tensor = self.layers(x)
        return logits


Batch = tuple[Tensor, Tensor]


def rows(count: int, width: int, classes: int = 10) -> Batch:
    """Random vectors and classes."""
    return torch.randn(count, width), torch.randint(0, classes, (count,))


def images(count: int, size: int) -> Batch:
    """Random images and classes."""
    return torch.randn(count, 3, size, size), torch.randint(0, 1000, (count,))


def text(count: int, length: int, words: int) -> Batch:
    """Random tokens, their own targets."""
    tokens = torch.randint(0, words, (count, length))
    return tokens, tokens


@dataclass(frozen=True)
class Workload:
    """A training whose cost is measured.

    Attributes:
        title: For the table.
        model: Makes the network.
        batch: Makes the batch of every step.
        dtype: Of autocast; None for none.
        compile: Whether the blocks go through torch.compile.
        is_channels_last: Whether images and weights lie channel by channel.
    """

    title: str
    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    dtype: torch.dtype | None = torch.bfloat16
    compile: bool = False
    is_channels_last: bool = False


FULL = {
    "mlp": Workload("20-layer MLP", mlp, lambda: rows(128, 64), None),
    "gpt": Workload("GPT-2 small, 8 x 1,024 tokens, bf16", GPT, lambda: text(8, 1024, 50257)),
    "resnet": Workload("ResNet-50, 64 images of 256 px, bf16", resnet, lambda: images(64, 256), is_channels_last=True),
    "gpt compiled": Workload("the same GPT-2, blocks compiled", GPT, lambda: text(8, 1024, 50257), compile=True),
    "vit": Workload("ViT-B/16, 64 images of 224 px, bf16", ViT, lambda: images(64, 224)),
    "small": Workload("10,000 small tensors", lambda: ManySmall(5000), lambda: rows(32, 16), None),
    "1.3B": Workload(
        "1.3 billion parameters, 2 x 1,024 tokens, bf16",
        lambda: GPT(24, 2048, 16),
        lambda: text(2, 1024, 50257),
    ),
}
DRY = {
    "mlp": Workload("MLP", lambda: mlp(4), lambda: rows(8, 64), None),
    "gpt": Workload("GPT", lambda: GPT(2, 32, 2, 50, 16), lambda: text(2, 8, 50)),
    "resnet": Workload("ResNet", lambda: resnet((1, 1), 8), lambda: images(2, 32), is_channels_last=True),
    "gpt compiled": Workload(
        "GPT, blocks compiled", lambda: GPT(2, 32, 2, 50, 16), lambda: text(2, 8, 50), compile=True
    ),
    "vit": Workload("ViT", lambda: ViT(2, 32, 2, 32, 8), lambda: images(2, 32)),
    "small": Workload("small tensors", lambda: ManySmall(50), lambda: rows(4, 16), None),
}
