"""Blind shapes: sets, graphs given as adjacency matrices, mixtures of experts, sparse tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from .blocks import HE, Factory, Supervised, adam, mlp, on_digits, sgd
from .case import Case, Task, healthy, sick
from .data import VOCABULARY, digits, loader, text


class SetNetwork(nn.Module):
    """Every element alone through `element`, then a pooling, then `whole` (DeepSets; with a maximum, PointNet)."""

    def __init__(self, element: nn.Module, pool: Callable[[Tensor], Tensor], whole: nn.Module) -> None:
        super().__init__()
        self.element, self.pool, self.whole = element, pool, whole

    def forward(self, points: Tensor) -> Tensor:
        """The answer for each set."""
        answer: Tensor = self.whole(self.pool(self.element(points)))
        return answer


def mean_pool(features: Tensor) -> Tensor:
    """The mean over the elements."""
    return features.mean(1)


def sum_pool(features: Tensor) -> Tensor:
    """The sum over the elements."""
    return features.sum(1)


def max_pool(features: Tensor) -> Tensor:
    """The maximum over the elements, which lets the gradient through to one of them."""
    return features.amax(1)


@lru_cache
def clouds() -> tuple[Tensor, Tensor]:
    """The digits as sets of 64 points: row, column and brightness of a pixel, in any order."""
    images, labels = digits()
    axis = torch.linspace(-1, 1, 8)
    grid = torch.cartesian_prod(axis, axis).expand(len(images), 64, 2)
    points = torch.cat([grid, images.unsqueeze(-1)], dim=-1)
    order = torch.rand(len(images), 64, generator=torch.Generator().manual_seed(31)).argsort(1)
    return points.gather(1, order.unsqueeze(-1).expand(-1, -1, 3)), labels


@lru_cache
def samples(size: int, count: int = 1024) -> tuple[Tensor, Tensor]:
    """Sets of numbers from a normal distribution, and the logarithm of its deviation."""
    source = torch.Generator().manual_seed(32)
    spread = torch.randn(count, 1, generator=source)
    numbers = torch.randn(count, size, generator=source) * (0.5 * spread).exp()
    return numbers.unsqueeze(-1), spread


class Graph(nn.Module):
    """Nodes take the mean of their neighbours in every layer; the graph is a matrix."""

    def __init__(self, depth: int, width: int = 32, *, skips: bool = False, outputs: int = 10) -> None:
        super().__init__()
        features, neighbours, _ = graph()
        self.register_buffer("features", features)
        self.register_buffer("neighbours", neighbours)
        self.first = nn.Linear(features.shape[1], width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 2))
        self.last, self.skips = nn.Linear(width, outputs), skips

    def forward(self, nodes: Tensor) -> Tensor:
        """Scores of these nodes."""
        x = torch.relu(self.neighbours @ self.first(self.features))
        for layer in self.hidden:
            new = torch.relu(self.neighbours @ layer(x))
            x = x + new if self.skips else new
        scores: Tensor = (self.neighbours @ self.last(x))[nodes]
        return scores


@lru_cache
def graph(count: int = 200, near: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Digits as nodes: their pixels, the matrix that averages over the nearest ones, and their labels."""
    images, labels = (tensor[:count] for tensor in digits())
    closest = torch.cdist(images, images).topk(near, largest=False).indices
    edges = torch.zeros(count, count).scatter_(1, closest, 1.0)
    edges = torch.maximum(edges, edges.T)
    return images, edges / edges.sum(1, keepdim=True), labels


def on_graph(net: nn.Module, optimizer: Factory, **options: Any) -> Task:
    """Classify all nodes at once: one batch is the whole graph."""
    labels = graph()[2]
    nodes = torch.arange(len(labels))
    return Task(Supervised(net, optimizer, **options), loader(nodes, labels, batch=len(nodes)))


class Experts(nn.Module):
    """Four narrow experts, mixed by a gate that all of them hang on."""

    def __init__(self, favour: float = 0.0, width: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList(mlp(3, inputs=64, outputs=10, width=width, gain=HE) for _ in range(4))
        with torch.no_grad():
            self.gate.bias[0] += favour

    def forward(self, images: Tensor) -> Tensor:
        """The experts' scores, weighted."""
        weights = self.gate(images).softmax(1)
        scores = torch.stack([expert(images) for expert in self.experts], dim=1)
        mixed: Tensor = (weights.unsqueeze(-1) * scores).sum(1)
        return mixed


class BestExpert(nn.Module):
    """The same with one expert per image, the one that the gate likes best."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList(mlp(3, inputs=64, outputs=10, width=16, gain=HE) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        """The chosen expert's scores, times the gate's weight."""
        weight, choice = self.gate(images).softmax(1).max(1)
        scores = images.new_zeros(len(images), 10)
        for index, expert in enumerate(self.experts):
            own = (choice == index).nonzero().squeeze(1)
            if len(own):
                scores = scores.index_add(0, own, expert(images[own]))
        weighted: Tensor = weight.unsqueeze(-1) * scores
        return weighted


class BagOfCharacters(LightningModule):
    """Guesses the next character from the last eight, with a table whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.table = nn.Embedding(8 * VOCABULARY, 32, sparse=True)
        self.head = mlp(2, inputs=32, outputs=VOCABULARY, gain=HE)
        self.places = VOCABULARY * torch.arange(8)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Update the table with one optimizer and the head with another."""
        codes, following = batch
        loss = F.cross_entropy(self.head(self.table(codes + self.places).sum(1)), following[:, -1])
        both: Any = self.optimizers()
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in both:
            optimizer.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        """SparseAdam for the table, Adam for the head."""
        return [torch.optim.SparseAdam(self.table.parameters(), 5e-3), torch.optim.Adam(self.head.parameters(), 3e-3)]


def element(depth: int, activation: Callable[[], nn.Module], gain: float | None, inputs: int = 3) -> nn.Module:
    """What happens to each element."""
    return nn.Sequential(mlp(depth, activation, inputs=inputs, outputs=32, width=32, gain=gain), activation())


def whole(activation: Callable[[], nn.Module] = nn.ReLU, outputs: int = 10) -> nn.Module:
    """What happens to the pooled set."""
    return mlp(3, activation, inputs=32, outputs=outputs, width=32, gain=HE)


def on_clouds(net: nn.Module, optimizer: Factory) -> Task:
    """Classify digits that are sets of points."""
    return Task(Supervised(net, optimizer), loader(*clouds(), batch=64))


def on_samples(net: nn.Module, optimizer: Factory, size: int = 256) -> Task:
    """Estimate the spread of a set of numbers."""
    return Task(Supervised(net, optimizer, F.mse_loss), loader(*samples(size), batch=32))


def pinned() -> nn.Module:
    """A sum over 256 elements, unscaled, that drives the tanh units behind it to their rails."""
    return SetNetwork(element(3, nn.Softplus, HE, 1), sum_pool, nn.Sequential(nn.Tanh(), whole(nn.Tanh, 1)))


def unpinned() -> nn.Module:
    """The same with a mean."""
    return SetNetwork(element(3, nn.Softplus, HE, 1), mean_pool, nn.Sequential(nn.Tanh(), whole(nn.Tanh, 1)))


CASES: tuple[Case, ...] = (
    sick(
        "set_sum_saturates",
        lambda: on_samples(pinned(), sgd(0.02)),
        250,
        "vanishing dead",
        "saturating_activation cliff large_init",
        "set_mean",
        "a sum over 256 elements pins the tanh units behind it, so the part before it gets nothing; "
        "loss 1.6 to 0.96, 1.1 to 0.86",
        also="stalled",
    ),
    sick(
        "set_sum_explodes",
        lambda: on_samples(SetNetwork(element(3, nn.ReLU, HE, 1), sum_pool, whole(outputs=1)), sgd(0.02)),
        120,
        "exploding nonfinite dead",
        "learning_rate large_init dead_relu",
        "set_mean_relu",
        "a sum over 256 elements makes outputs and gradients hundreds of times too large for the rate; loss NaN, NaN",
        also="stalled vanishing",
    ),
    sick(
        "pointnet_sigmoid",
        lambda: on_clouds(SetNetwork(element(8, nn.Sigmoid, None), max_pool, whole()), adam(2e-3)),
        150,
        "vanishing",
        "saturating_activation",
        "pointnet",
        "eight sigmoids per point: chance level; loss 2.4 to 2.3, 2.4 to 2.3",
        also="stalled",
    ),
    sick(
        "graph_deep_plain",
        lambda: on_graph(Graph(16), sgd(0.02)),
        200,
        "vanishing",
        "small_init no_skip_or_norm",
        "graph_deep_skips",
        "sixteen graph layers with neither skip nor norm: chance level; loss 2.3 to 2.3, 2.3 to 2.3",
        also="stalled",
    ),
    sick(
        "graph_frozen_rate",
        lambda: on_graph(Graph(3), sgd(1e-6)),
        200,
        "stalled",
        "learning_rate",
        "graph_full_batch",
        "full batch: the loss falls by a hair in every step and is where it was; loss 2.3 to 2.3, 2.3 to 2.3",
    ),
    sick(
        "experts_one_favoured",
        lambda: on_digits(Experts(favour=200.0), adam(3e-3)),
        250,
        "dead",
        "large_init saturating_activation saturated_output cliff",
        "experts_mixed",
        "the gate is certain of one narrow expert: the other three run and get exactly nothing; "
        "loss 2.4 to 1.6, 2.3 to 1.5",
    ),
    healthy(
        "set_mean",
        lambda: on_samples(unpinned(), sgd(0.02)),
        250,
        "the mean instead of the sum: learns; loss 1.1 to 0.012, 0.63 to 0.015",
    ),
    healthy(
        "set_mean_relu",
        lambda: on_samples(SetNetwork(element(3, nn.ReLU, HE, 1), mean_pool, whole(outputs=1)), sgd(0.02)),
        120,
        "a mean over 256 elements divides every element's gradient by 256, and it learns; loss 1.1 to 0.022, 1 to 0.13",
    ),
    healthy(
        "set_of_points",
        lambda: on_clouds(SetNetwork(element(3, nn.ReLU, HE), mean_pool, whole()), adam(5e-3)),
        250,
        "a mean over 64 points: learns; loss 2.3 to 0.78, 2.3 to 1.2",
    ),
    healthy(
        "pointnet",
        lambda: on_clouds(SetNetwork(element(8, nn.GELU, HE), max_pool, whole()), adam(2e-3)),
        150,
        "the maximum lets few points through: learns; loss 2.5 to 1, 2.4 to 1.4",
    ),
    healthy(
        "graph_full_batch",
        lambda: on_graph(Graph(3), sgd(0.1)),
        200,
        "the whole graph is one batch; loss 2.2 to 0.017, 2.2 to 0.016",
    ),
    healthy(
        "graph_deep_skips",
        lambda: on_graph(Graph(16, skips=True), sgd(0.02)),
        200,
        "sixteen, with skips; loss 2.8 to 0.02, 3.3 to 0.18",
    ),
    healthy(
        "experts_mixed",
        lambda: on_digits(Experts(), adam(3e-3)),
        250,
        "the gate starts undecided; loss 2.3 to 0.29, 2.4 to 0.47",
    ),
    healthy(
        "experts_best_of",
        lambda: on_digits(BestExpert(), adam(3e-3)),
        250,
        "one expert per image; loss 2.2 to 0.1, 2.3 to 0.12",
    ),
    healthy(
        "sparse_table",
        lambda: Task(BagOfCharacters(), loader(*text(8, 4096), batch=64)),
        600,
        "sparse gradients, two optimizers: learns; loss 7.8 to 2.5, 8.6 to 2.5",
    ),
)
