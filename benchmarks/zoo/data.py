"""Real and synthetic data, built once and served in ready-made batches."""

from __future__ import annotations

from functools import lru_cache
from pydoc_data.topics import topics
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

VOCABULARY = 96  # printable ASCII and one symbol for the rest


def loader(*tensors: Tensor, batch: int = 64) -> DataLoader[Any]:
    """Shuffled batches, indexed in one go (far quicker than collating sample by sample)."""
    dataset = TensorDataset(*tensors)
    sampler = BatchSampler(RandomSampler(dataset), min(batch, len(dataset)), drop_last=True)
    return DataLoader(dataset, batch_size=None, sampler=sampler)


@lru_cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 standardised 8x8 images, flat, and their labels."""
    bunch = load_digits()
    images = torch.as_tensor(bunch.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.as_tensor(bunch.target)


def pixels() -> tuple[Tensor, Tensor]:
    """The digits as sequences of 64 pixels."""
    images, labels = digits()
    return images.unsqueeze(-1), labels


def rows(blank: int = 0) -> tuple[Tensor, Tensor]:
    """The digits as sequences of 8 rows, followed by `blank` empty steps."""
    images, labels = digits()
    sequence = images.reshape(-1, 8, 8)
    return torch.cat([sequence, torch.zeros(len(images), blank, 8)], dim=1), labels


@lru_cache
def wine() -> tuple[Tensor, Tensor]:
    """178 wines in their raw units (one feature near 1000), 3 classes."""
    bunch = load_wine()
    return torch.as_tensor(bunch.data, dtype=torch.float32), torch.as_tensor(bunch.target)


@lru_cache
def cancer() -> tuple[Tensor, Tensor]:
    """569 tumours in their raw units (features from 0.001 to 4000), 2 classes."""
    bunch = load_breast_cancer()
    return torch.as_tensor(bunch.data, dtype=torch.float32), torch.as_tensor(bunch.target)


def standardised(table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The same table with every feature at mean 0 and deviation 1."""
    features, labels = table
    return (features - features.mean(0)) / features.std(0), labels


@lru_cache
def text(length: int, count: int = 2048) -> tuple[Tensor, Tensor]:
    """Windows of Python's own reference manual, and the same windows one character on."""
    manual = "\n".join(topics[name] for name in sorted(topics))[: count * length + 1]
    codes = torch.tensor([ord(c) - 32 if 32 <= ord(c) < 127 else VOCABULARY - 1 for c in manual])
    return codes[:-1].reshape(count, length), codes[1:].reshape(count, length)


@lru_cache
def recall(length: int, symbols: int = 8, count: int = 4096) -> tuple[Tensor, Tensor]:
    """Name the first symbol of a sequence after a stretch of noise."""
    source = torch.Generator().manual_seed(1)
    labels = torch.randint(symbols, (count,), generator=source)
    sequence = 0.1 * torch.randn(count, length, symbols, generator=source)
    sequence[torch.arange(count), 0, labels] += 1.0
    return sequence, labels


@lru_cache
def local(length: int, count: int = 4096) -> tuple[Tensor, Tensor]:
    """Which of the last three inputs is the largest; the rest does not matter."""
    sequence = torch.randn(count, length, 2, generator=torch.Generator().manual_seed(2))
    return sequence, sequence[:, -3:, 0].argmax(dim=1)


@lru_cache
def adding(length: int, count: int = 4096) -> tuple[Tensor, Tensor]:
    """Sum the two marked numbers, one in each half (targets are centred)."""
    source = torch.Generator().manual_seed(3)
    values = torch.rand(count, length, generator=source)
    marks = torch.zeros(count, length)
    every = torch.arange(count)
    for start in (0, length // 2):
        marks[every, start + torch.randint(length // 2, (count,), generator=source)] = 1.0
    return torch.stack([values, marks], dim=-1), (values * marks).sum(dim=1, keepdim=True) - 1.0


@lru_cache
def parity(bits: int, relevant: int, count: int = 4096) -> tuple[Tensor, Tensor]:
    """The parity of a few of the bits: a plateau first, then sudden progress."""
    signs = torch.randint(2, (count, bits), generator=torch.Generator().manual_seed(4)).float() * 2 - 1
    return signs, (signs[:, :relevant].prod(dim=1) > 0).long()


@lru_cache
def waves(noise: float = 0.1, amplitude: float = 1.0, count: int = 2048) -> tuple[Tensor, Tensor]:
    """A noisy smooth function of four variables to regress."""
    source = torch.Generator().manual_seed(5)
    points = torch.randn(count, 4, generator=source)
    values = torch.sin(points @ torch.randn(4, 1, generator=source)) + points[:, :1] * points[:, 1:2]
    return points, amplitude * (values + noise * torch.randn(count, 1, generator=source))
