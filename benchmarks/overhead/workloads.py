"""What is trained: from a small MLP, where Python is the cost, to a transformer of 92 million parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """A training to be watched.

    Attributes:
        title: What it is, for the table.
        make_model: Makes the network.
        make_batch: Makes the one batch that every step trains on.
        num_pairs: How many times a contestant and the bare Trainer take turns.
        num_dear_steps: Steps of each turn for what takes many times as long as the training itself.
        is_large: Whether a step takes seconds, so that each turn is of these few steps for all.
        optimizer: Makes the optimizer.
        num_threads: Threads of torch on a CPU; one where the kernels are too small for two.
    """

    title: str
    make_model: Callable[[], nn.Module]
    make_batch: Callable[[], Batch]
    num_pairs: int
    num_dear_steps: int
    is_large: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    num_threads: int = 1


class Task(pl.LightningModule):
    """Trains a workload's network; the loss goes to the loggers."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = workload.make_model()
        self._make_optimizer = workload.optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        output = self.model(batch[0])
        logits = output.logits if hasattr(output, "logits") else output
        return F.cross_entropy(logits.flatten(0, -2), batch[1].flatten())

    def configure_optimizers(self) -> Any:
        """As the workload has it."""
        return self._make_optimizer(self.parameters(), lr=1e-4)


class Repeat:
    """The same batch for ever."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch


def mlp(depth: int = 20, width: int = 64) -> nn.Module:
    """Linear layers with ReLUs between them."""
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class ManySmall(nn.Module):
    """A thousand tensors of a few numbers each: 500 scales with their shifts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.LayerNorm(16) for _ in range(499)], nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        output: Tensor = self.layers(x)
        return output


def resnet50() -> nn.Module:
    """ResNet-50, from its configuration."""
    from transformers import ResNetConfig, ResNetForImageClassification

    model: nn.Module = ResNetForImageClassification(ResNetConfig.from_dict({"num_labels": 1000}))
    return model


def gpt2_small() -> nn.Module:
    """GPT-2 small with a vocabulary of 8,192: 12 blocks of width 768, 92 million parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model: nn.Module = GPT2LMHeadModel(GPT2Config(vocab_size=8192, n_positions=512, use_cache=False))
    return model


def _rows(num_rows: int, width: int) -> Batch:
    torch.manual_seed(0)
    return torch.randn(num_rows, width), torch.randint(0, 10, (num_rows,))


def _images(num_images: int, size: int) -> Batch:
    torch.manual_seed(0)
    return torch.randn(num_images, 3, size, size), torch.randint(0, 1000, (num_images,))


def _text(num_sequences: int, length: int) -> Batch:
    torch.manual_seed(0)
    tokens = torch.randint(0, 8192, (num_sequences, length))
    return tokens, tokens


WORKLOADS = {
    "mlp": Workload("20-layer MLP", mlp, lambda: _rows(128, 64), 20, 5),
    "small": Workload("1,000 small tensors", ManySmall, lambda: _rows(32, 16), 6, 1),
    "cnn": Workload("ResNet-50, 32 images of 128 px", resnet50, lambda: _images(32, 128), 2, 1, True, num_threads=2),
    "gpt": Workload(
        "GPT-2 small, 1,024 tokens", gpt2_small, lambda: _text(2, 512), 2, 1, True, torch.optim.AdamW, num_threads=2
    ),
}
QUICK = {"mlp": Workload("20-layer MLP", mlp, lambda: _rows(128, 64), 4, 3)}
