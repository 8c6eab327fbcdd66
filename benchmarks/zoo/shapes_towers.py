"""Blind shapes: two towers, branches side by side, several heads on one trunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from .blocks import HE, XAVIER, Detached, Factory, Supervised, adam, frozen, mlp, pretrained, sgd, shift_bias
from .case import Case, Task, borderline, healthy, sick
from .data import digits, loader


class TwoTowers(nn.Module):
    """Matches the upper half of a digit with its lower half, as CLIP matches pictures and captions."""

    def __init__(self, upper: nn.Module, lower: nn.Module, temperature: float = 0.1) -> None:
        super().__init__()
        self.upper, self.lower, self.temperature = upper, lower, temperature

    def forward(self, images: Tensor) -> Tensor:
        """The similarity of every upper half with every lower half."""
        upper = F.normalize(self.upper(images[:, :32]), dim=1)
        lower = F.normalize(self.lower(images[:, 32:]), dim=1)
        scores: Tensor = upper @ lower.T / self.temperature
        return scores


def matching(scores: Tensor, _: Tensor) -> Tensor:
    """InfoNCE in both directions."""
    own = torch.arange(len(scores))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


class Siamese(nn.Module):
    """One tower that sees both images of a pair."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pairs: Tensor) -> Tensor:
        """The squared distance of each pair."""
        distance: Tensor = (self.tower(pairs[:, 0]) - self.tower(pairs[:, 1])).square().sum(1)
        return distance


class Branches(nn.Module):
    """Two branches side by side, each with half of the image, and a head on both (as in Inception)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores from the features of both."""
        features = torch.cat([self.first(images[:, :32]), self.second(images[:, 32:])], dim=1)
        scores: Tensor = self.head(features)
        return scores


class Heads(LightningModule):
    """Three tasks on one trunk: the digit, its parity, its brightness, each with a weight that may change by step."""

    def __init__(self, weights: Callable[[int], tuple[float, float, float]], lr: float = 2e-3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(mlp(4, gain=HE, outputs=64), nn.ReLU())
        self.digit, self.parity, self.brightness = nn.Linear(64, 10), nn.Linear(64, 2), mlp(2, inputs=64, outputs=1)
        self.weights, self.lr = weights, lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The weighted sum of three losses."""
        images, labels = batch
        features = self.trunk(images)
        losses = (
            F.cross_entropy(self.digit(features), labels),
            F.cross_entropy(self.parity(features), labels % 2),
            F.mse_loss(self.brightness(features), 10 * images.mean(1, keepdim=True)),
        )
        total: Tensor = sum(
            (weight * loss for weight, loss in zip(self.weights(self.global_step), losses, strict=True)),
            torch.zeros(()),
        )
        return total

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class DeeplySupervised(nn.Module):
    """A head behind every hidden layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.heads = nn.ModuleList(nn.Linear(64, 10) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of all heads, a head to a row."""
        scores = []
        for layer, head in zip(self.body, self.heads, strict=True):
            x = torch.tanh(layer(x))
            scores.append(head(x))
        return torch.stack(scores, dim=1)


def every_head(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of all heads."""
    return F.cross_entropy(scores.flatten(0, 1), labels.repeat_interleave(scores.shape[1]))


def half(depth: int, activation: Callable[[], nn.Module] = nn.GELU, gain: float | None = HE) -> nn.Module:
    """A tower over half an image that ends in 16 features."""
    return mlp(depth, activation, inputs=32, outputs=16, gain=gain)


def branch(depth: int, activation: Callable[[], nn.Module] = nn.ReLU, gain: float | None = HE) -> nn.Sequential:
    """The same with an activation at its end."""
    return nn.Sequential(half(depth, activation, gain), activation())


def towers(upper: nn.Module, lower: nn.Module, optimizer: Factory, temperature: float = 0.1) -> Task:
    """Train two towers by matching halves."""
    net = TwoTowers(upper, lower, temperature)
    return Task(Supervised(net, optimizer, matching), loader(*digits(), batch=64))


def branches(first: nn.Module, second: nn.Module, optimizer: Factory, **options: Any) -> Task:
    """Train two branches to classify digits."""
    return Task(Supervised(Branches(first, second), optimizer, **options), loader(*digits(), batch=64))


def siamese(tower: nn.Module, optimizer: Factory, **trainer: Any) -> Task:
    """Train one tower on pairs of digits, half of them alike."""
    images, labels = digits()
    source = torch.Generator().manual_seed(21)
    other = torch.randperm(len(images), generator=source)
    for digit in range(10):  # every second image meets one of its own class
        own = (labels == digit).nonzero().squeeze(1)
        other[own[::2]] = own[torch.randint(len(own), (len(own[::2]),), generator=source)]
    same = (labels == labels[other]).float()
    data = torch.stack([images, images[other]], dim=1), same
    return Task(Supervised(Siamese(tower), optimizer, margin), loader(*data, batch=64), trainer)


def margin(distance: Tensor, same: Tensor) -> Tensor:
    """Alike: near; different: at least 1 apart."""
    return (same * distance + (1 - same) * F.relu(1 - distance)).mean()


def locked_tower() -> nn.Module:
    """A frozen tower that has learned to classify lower halves, without its head."""
    images, labels = digits()
    net = nn.Sequential(branch(3), nn.Linear(16, 10))
    return frozen(pretrained(net, images[:, 32:], labels, 200))[0]  # type: ignore[index, no-any-return, unused-ignore]


def of_heads(weights: Callable[[int], tuple[float, float, float]]) -> Task:
    """Train three heads."""
    return Task(Heads(weights), loader(*digits(), batch=64))


def kill_second(module: Supervised) -> None:
    """Push the middle layer of the second branch far below zero."""
    shift_bias(module.net.get_submodule("second"), 1, -300.0)


CASES: tuple[Case, ...] = (
    sick(
        "towers_one_sigmoid",
        lambda: towers(half(4), half(10, nn.Sigmoid, None), sgd()),
        250,
        "vanishing",
        "saturating_activation",
        "towers_gelu",
        "ten sigmoids in the lower tower, GELU in the upper one: all lower halves stay neighbours; "
        "loss 4.2 to 4.2, 4.2 to 4.2",
        also="stalled",
    ),
    sick(
        "towers_one_detached",
        lambda: towers(half(4), Detached(half(4)), sgd()),
        250,
        "detached",
        "detached",
        "towers_gelu",
        "the lower tower is cut off and stays random, the upper one alone adapts; loss 4.2 to 2.3, 4.1 to 2.4",
    ),
    sick(
        "siamese_sigmoid",
        lambda: siamese(mlp(8, nn.Sigmoid, outputs=16), adam(2e-3)),
        250,
        "vanishing",
        "saturating_activation",
        "siamese_gelu",
        "one tower of sigmoids runs twice: all digits stay neighbours; loss 0.43 to 0.44, 0.45 to 0.45",
        also="stalled",
    ),
    sick(
        "branch_dead",
        lambda: branches(branch(3), shift_bias(branch(3), 1, -300.0), sgd(0.02)),
        250,
        "dead",
        "dead_relu cliff",
        "branches_alive",
        "one branch of two never fires, so half of the image is lost while the other learns; "
        "loss 2.3 to 0.27, 2.3 to 0.27",
    ),
    sick(
        "branch_sigmoid_deep",
        lambda: branches(branch(3), branch(10, nn.Sigmoid, None), sgd(0.02)),
        250,
        "vanishing",
        "saturating_activation",
        "branches_uneven",
        "one branch of ten sigmoids never learns, the other does; loss 2.3 to 0.25, 2.3 to 0.29",
    ),
    sick(
        "branch_dead_late",
        lambda: branches(branch(3), branch(3), sgd(0.02), events={150: kill_second}),
        300,
        "dead",
        "dead_relu cliff",
        "branches_alive",
        "one branch of two falls silent at step 150: the loss jumps and stays higher; loss 2.3 to 0.24, 2.2 to 0.34",
        onset=150,
    ),
    sick(
        "towers_too_cold",
        lambda: towers(half(4), half(4), sgd(), temperature=1e-3),
        250,
        "exploding nonfinite dead stalled vanishing",
        "learning_rate large_init saturated_output",
        "towers_gelu",
        "a temperature of 0.001 makes gradients a hundred times as large: the first steps throw all images together, "
        "and one in 64 is matched (twin: 60 %); loss 4.6 to 4.2, 4.2 to 4.2",
    ),
    healthy("towers_gelu", lambda: towers(half(4), half(4), sgd()), 250, "both towers learn; loss 4 to 1.2, 4 to 1.2"),
    healthy(
        "towers_cold",
        lambda: towers(half(4), half(4), adam(1e-3), temperature=0.02),
        250,
        "a temperature of 0.02, as CLIP ends with: learns; loss 10 to 2, 7.9 to 1.7",
    ),
    healthy(
        "towers_locked",
        lambda: towers(half(4), locked_tower(), adam(2e-3)),
        250,
        "one tower is pretrained and frozen on purpose, the other learns to match it; loss 4.1 to 2.1, 4.3 to 2.1",
    ),
    healthy(
        "siamese_gelu",
        lambda: siamese(mlp(8, nn.GELU, outputs=16, gain=HE), adam(2e-3)),
        250,
        "learns; loss 0.48 to 0.055, 0.48 to 0.061",
    ),
    healthy(
        "siamese_accumulated",
        lambda: siamese(mlp(4, nn.Tanh, outputs=16, gain=XAVIER), sgd(0.1), accumulate_grad_batches=4),
        100,
        "one tower run twice, four batches to a step: learns; loss 0.17 to 0.017, 0.17 to 0.016",
    ),
    healthy(
        "branches_alive",
        lambda: branches(branch(3), branch(3), sgd(0.02)),
        250,
        "both branches learn; loss 2.3 to 0.036, 2.2 to 0.033",
    ),
    healthy(
        "branches_uneven",
        lambda: branches(branch(3), branch(10), sgd(0.02)),
        250,
        "branches of three and of ten layers: both learn; loss 2.1 to 0.032, 2.3 to 0.023",
    ),
    healthy(
        "heads_three",
        lambda: of_heads(lambda _: (1.0, 1.0, 1.0)),
        250,
        "three tasks learn; loss 3.5 to 0.063, 3.5 to 0.041",
    ),
    healthy(
        "heads_ramped",
        lambda: of_heads(lambda step: (1.0, min(1.0, step / 150), min(1.0, step / 150))),
        300,
        "two of three loss weights rise from zero over 150 steps; all tasks learn; loss 2.1 to 0.035, 2.1 to 0.028",
    ),
    borderline(
        "heads_zero_weight",
        lambda: of_heads(lambda _: (1.0, 1.0, 0.0)),
        250,
        "dead detached",
        "",
        "the loss of one head has weight 0: no gradient there, perhaps on purpose; the rest learns; "
        "loss 2.7 to 0.02, 2.6 to 0.015",
    ),
    healthy(
        "heads_at_every_depth",
        lambda: Task(Supervised(DeeplySupervised(8), adam(2e-3), every_head), loader(*digits(), batch=64)),
        200,
        "a head behind each of eight layers: learns; loss 2.2 to 0.097, 2.2 to 0.081",
    ),
)
