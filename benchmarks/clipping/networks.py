"""The small networks that are trained."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CHARACTERS = 128


class Recurrent(nn.Module):
    """A character-level language model of LSTM layers."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_CHARACTERS, 32)
        self.lstm = nn.LSTM(32, width, num_layers=depth, batch_first=True)
        self.head = nn.Linear(width, NUM_CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of each next character."""
        logits: Tensor = self.head(self.lstm(self.embedding(text))[0])
        return logits


class Block(nn.Module):
    """Attention and a feed-forward network, each normalised before it or after it has been added."""

    def __init__(self, width: int, norm_first: bool, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.norm_first = num_heads, norm_first
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def attend(self, x: Tensor) -> Tensor:
        """Causal attention."""
        queries, keys, values = self.project(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        merged: Tensor = self.merge(heads.transpose(1, 2).flatten(2))
        return merged

    def forward(self, x: Tensor) -> Tensor:
        """One refinement of the sequence."""
        if self.norm_first:
            x = x + self.attend(self.first_norm(x))
            refined: Tensor = x + self.feed(self.second_norm(x))
            return refined
        x = self.first_norm(x + self.attend(x))
        output: Tensor = self.second_norm(x + self.feed(x))
        return output


class Transformer(nn.Module):
    """A character-level language model of two blocks."""

    def __init__(self, length: int, norm_first: bool, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_CHARACTERS, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, norm_first) for _ in range(2)))
        self.head = nn.Linear(width, NUM_CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of each next character."""
        logits: Tensor = self.head(self.blocks(self.embedding(text) + self.places))
        return logits


class Residual(nn.Module):
    """A deep residual network of linear layers, without normalisation."""

    def __init__(self, depth: int = 16, width: int = 64) -> None:
        super().__init__()
        layers = [nn.Linear(width, width) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
            with torch.no_grad():
                layer.weight.mul_(depth**-0.5)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each class."""
        for layer in self.layers:
            x = x + layer(x.relu())
        logits: Tensor = self.head(x)
        return logits


def convolutional() -> nn.Sequential:
    """A classifier of 8x8 images, without normalisation."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths."""
    layers = [layer for fan in pairwise(widths) for layer in (nn.Linear(*fan), activation())]
    return nn.Sequential(*layers[:-1])


def plain(depth: int = 12, width: int = 64) -> nn.Sequential:
    """A deep classifier without residual connections or normalisation, He-initialised."""
    net = mlp(64, *[width] * depth, 10)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return net


def normalised() -> nn.Sequential:
    """A convolutional classifier with batch normalisation."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for fan_in, fan_out in pairwise((1, 16, 32, 32)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


class Gated(nn.Module):
    """A GRU that answers with one number at the end of a sequence of pairs."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.gru = nn.GRU(2, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """One number per sequence."""
        answer: Tensor = self.head(self.gru(pairs)[0][:, -1])
        return answer


class Patches(nn.Module):
    """A vision transformer on the sixteen 2x2 patches of an 8x8 image."""

    def __init__(self, width: int = 24, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
                for _ in range(depth)
            )
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        patches = self.embedding(images.view(-1, 1, 8, 8)).flatten(2).mT
        logits: Tensor = self.head(self.blocks(patches + self.places).mean(1))
        return logits


class Autoencoder(nn.Module):
    """A variational autoencoder of 8x8 images."""

    def __init__(self, width: int = 96, code: int = 8) -> None:
        super().__init__()
        self.encoder = mlp(64, width, 2 * code)
        self.head = mlp(code, width, 64)
