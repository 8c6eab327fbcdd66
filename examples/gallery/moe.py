"""Mixture of experts on the digits: a hard choice leaves the router without a gradient; weighting by it cures it.

Each image is sent to one of several experts. If the chosen expert's answer is used as it is, nothing tells the router
how good its choice was, and it never learns. In the usual form, the answer is multiplied by the probability that the
router gave it. A second loss keeps the experts evenly used (Fedus et al. 2022).

    python examples/gallery/moe.py [--directory D] [--steps N]
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from common import Network, Pair, Row, Task, batches, digits, show
from torch import Tensor, nn
from torch.nn import functional as F

EXPERTS, WIDTH, NARROW = 8, 32, 2


class Mixture(nn.Module):
    """Sends each vector to the expert that the router prefers."""

    def __init__(self, is_weighted: bool) -> None:
        super().__init__()
        self.router, self.is_weighted = nn.Linear(WIDTH, EXPERTS), is_weighted
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, NARROW), nn.ReLU(), nn.Linear(NARROW, WIDTH)) for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts' answers, and the loss that keeps the experts evenly used."""
        probabilities = self.router(x).softmax(dim=1)
        weight, choice = probabilities.max(dim=1, keepdim=True)
        output = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (choice[:, 0] == index).nonzero()[:, 0]
            if len(rows):
                answer = expert(x[rows])
                output = output.index_add(0, rows, weight[rows] * answer if self.is_weighted else answer)
        share = F.one_hot(choice[:, 0], EXPERTS).float().mean(0)
        balance: Tensor = EXPERTS * (share * probabilities.mean(0)).sum()
        return output, balance if self.is_weighted else balance.detach()


class Classifier(pl.LightningModule):
    """A linear layer, the mixture and a head."""

    def __init__(self, is_weighted: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU()), nn.Linear(WIDTH, 10)
        self.mixture = Mixture(is_weighted)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, logged, and a little of the balance."""
        images, labels = batch
        hidden, balance = self.mixture(self.stem(images))
        loss = F.cross_entropy(self.head(hidden), labels)
        self.log("loss", loss, prog_bar=True)
        total: Tensor = loss + 0.01 * balance
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


ROW = Row(
    name="moe",
    title="Mixture of experts on digits",
    steps=400,
    pairs=(
        Pair(
            Network("hard choice of the expert", lambda: Task(Classifier(is_weighted=False), batches(*digits()))),
            "detached",
            "detached",
            (Network("weighted by the router", lambda: Task(Classifier(is_weighted=True), batches(*digits()))),),
        ),
    ),
)

if __name__ == "__main__":
    show(ROW)
