"""Real data that needs no download: digits, and Python's own manual."""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

CHARACTERS = 96
"""Printable ASCII and one for the rest."""


def batches(*tensors: Tensor, size: int = 64) -> DataLoader[Any]:
    """Shuffled batches."""
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=True, drop_last=True)


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits of scikit-learn as standardised vectors of 64 pixels, and their labels."""
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    pixels = pixels.float()
    return (pixels - pixels.mean()) / pixels.std(), labels


def text(length: int, count: int = 2048) -> tuple[Tensor, Tensor]:
    """Windows of Python's own reference manual as character codes, and the same windows one character on."""
    manual = "\n".join(topics[name] for name in sorted(topics))[: count * length + 1]
    codes = torch.tensor([ord(c) - 32 if 32 <= ord(c) < 127 else CHARACTERS - 1 for c in manual])
    return codes[:-1].reshape(count, length), codes[1:].reshape(count, length)
