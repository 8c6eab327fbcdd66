"""Blind shapes: heads, losses and targets, and runs that are done."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from .blocks import HE, Factory, Loss, Supervised, adam, mlp, on_digits, scale_layer, sgd, shift_bias
from .case import Case, Task, borderline, healthy, sick
from .data import cancer, digits, loader, standardised, wine


class Clamp(nn.Module):
    """Cuts outputs at 0 and 1, where images live."""

    def forward(self, x: Tensor) -> Tensor:
        """Between 0 and 1."""
        return x.clamp(0, 1)


class Scaled(nn.Module):
    """Turns standardised outputs into the unit of the targets."""

    def __init__(self, net: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.net, self.scale, self.shift = net, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """Outputs in that unit."""
        outputs: Tensor = self.net(x)
        return self.scale * outputs + self.shift


class Bandit(LightningModule):
    """Learns to name digits from rewards alone (REINFORCE): 1 for the right name, 0 for any other."""

    def __init__(self, policy: nn.Module, lr: float = 3e-3) -> None:
        super().__init__()
        self.policy, self.lr = policy, lr
        self.rewards: list[float] = []  # the mean reward of every step

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The surrogate whose gradient is that of the expected reward."""
        images, labels = batch
        chances = torch.distributions.Categorical(logits=self.policy(images))
        actions = chances.sample()
        reward = (actions == labels).float()
        self.rewards.append(float(reward.mean()))
        surrogate: Tensor = -((reward - reward.mean()) * chances.log_prob(actions)).mean()
        return surrogate

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def binary(loss: Callable[[Tensor, Tensor], Tensor], shift: float = 0.0) -> Loss:
    """A loss of one output per sample and a label of 0 or 1, shifted."""
    return lambda output, target: loss(output.squeeze(1), target.float() + shift)


def focal(output: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that counts easy samples less."""
    each = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    missed = 1 - torch.exp(-each)
    return (missed**gamma * each).mean()


def perceptron(output: Tensor, target: Tensor) -> Tensor:
    """Zero as soon as every label has the highest score by 0.5."""
    own = output.gather(1, target.unsqueeze(1))
    others = output.scatter(1, target.unsqueeze(1), -torch.inf).amax(1, keepdim=True)
    return F.relu(0.5 + others - own).square().mean()


def value_of(output: Tensor, target: Tensor) -> Tensor:
    """Squared error between one output and the digit as a number, 0 to 9."""
    return F.mse_loss(output.squeeze(1), target.float())


def on_cancer(net: nn.Module, optimizer: Factory, loss: Loss, batch: int = 64) -> Task:
    """Tell tumours apart."""
    return Task(Supervised(net, optimizer, loss), loader(*standardised(cancer()), batch=batch))


@lru_cache
def rare() -> tuple[Tensor, Tensor]:
    """Tumours, of which every twentieth is of the rare class."""
    features, labels = standardised(cancer())
    common, few = (labels == 1).nonzero().squeeze(1), (labels == 0).nonzero().squeeze(1)[:18]
    chosen = torch.cat([common, few])
    return features[chosen], 1 - labels[chosen]


@lru_cache
def houses(count: int = 2048) -> tuple[Tensor, Tensor]:
    """Eight features of a house, standardised, and its price near 200,000 with a deviation of about 100,000."""
    source = torch.Generator().manual_seed(51)
    features = torch.randn(count, 8, generator=source)
    worth = torch.tanh(features @ torch.randn(8, 3, generator=source)).sum(1) + 0.5 * features[:, 0] * features[:, 1]
    return features, (2e5 + 6e4 * worth + 5e3 * torch.randn(count, generator=source)).unsqueeze(1)


def priced(net: nn.Module, optimizer: Factory, *, in_units: bool = True) -> Task:
    """Estimate prices, in their own unit or standardised."""
    features, prices = houses()
    goal = prices if in_units else (prices - prices.mean()) / prices.std()
    return Task(Supervised(net, optimizer, F.mse_loss), loader(features, goal))


def bright(net: nn.Module, optimizer: Factory) -> Task:
    """Reconstruct images with pixels between 0 and 1."""
    images, _ = digits()
    pixels = (images - images.min()) / (images.max() - images.min())
    return Task(Supervised(net, optimizer, F.mse_loss), loader(images, pixels))


def hourglass(end: nn.Module, bias: float) -> nn.Module:
    """An autoencoder whose outputs all start near a given bias."""
    net = scale_layer(mlp(4, outputs=64, width=32, gain=HE), -1, 0.05)
    return nn.Sequential(shift_bias(net, -1, bias), end)


def all_wines(net: nn.Module, optimizer: Factory, loss: Loss = F.cross_entropy) -> Task:
    """Classify wines, all in one batch."""
    return Task(Supervised(net, optimizer, loss), loader(*standardised(wine()), batch=178))


def exact_line(optimizer: Factory) -> Task:
    """A linear map without noise, which a linear layer finds to the last digit."""
    points = torch.randn(256, 8, generator=torch.Generator().manual_seed(52))
    goal = points @ torch.linspace(-1, 1, 8).unsqueeze(1)
    return Task(Supervised(nn.Linear(8, 1), optimizer, F.mse_loss), loader(points, goal, batch=256))


def memorised() -> Task:
    """One small batch, again and again."""
    images, labels = digits()
    return Task(Supervised(mlp(4, gain=HE), adam(3e-3)), loader(images[:64], labels[:64], batch=64))


def rewarded(certainty: float = 1.0) -> Task:
    """Train a policy whose first scores are multiplied."""
    policy = mlp(3, gain=HE)
    last = policy[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(certainty)
    return Task(Bandit(policy), loader(*digits(), batch=128))


CASES: tuple[Case, ...] = (
    sick(
        "softmax_of_one",
        lambda: on_cancer(
            nn.Sequential(mlp(3, inputs=30, outputs=1, gain=HE), nn.Softmax(1)), adam(), binary(F.binary_cross_entropy)
        ),
        200,
        "dead stalled",
        "saturated_output",
        "sigmoid_of_one",
        "a softmax over one unit is 1, whatever the network does: no gradient at all; loss 37 to 38, 37 to 36",
        also="vanishing",
    ),
    sick(
        "sigmoid_for_digits",
        lambda: on_digits(nn.Sequential(mlp(4, outputs=1, gain=HE), nn.Sigmoid()), sgd(0.05), loss=value_of),
        250,
        "dead stalled vanishing",
        "saturated_output",
        "linear_for_digits",
        "targets of 0 to 9 for a sigmoid: it goes to its rail of 1 and stays; loss 22 to 20, 20 to 20",
    ),
    sick(
        "clamped_outputs",
        lambda: bright(hourglass(Clamp(), -1.0), adam(2e-3)),
        200,
        "dead stalled",
        "saturated_output",
        "open_outputs",
        "every output starts below 0, where the clamp is flat: no gradient; loss 0.23 to 0.23, 0.23 to 0.24",
        also="vanishing",
    ),
    sick(
        "prices_adam",
        lambda: priced(mlp(4, inputs=8, outputs=1, gain=HE), adam(3e-5)),
        200,
        "stalled",
        "learning_rate",
        "prices_standardised",
        "prices near 200,000: the outputs hardly leave zero in 200 steps; loss 4.8e+10 to 4.7e+10, 4.7e+10 to 4.7e+10",
    ),
    sick(
        "prices_sgd",
        lambda: priced(mlp(4, inputs=8, outputs=1, gain=HE), sgd(0.02)),
        150,
        "exploding nonfinite dead",
        "learning_rate dead_relu",
        "prices_standardised",
        "prices near 200,000: the first gradients are as large, and the weights leap; loss NaN, NaN",
        also="stalled vanishing",
    ),
    sick(
        "full_batch_crawls",
        lambda: all_wines(mlp(3, inputs=13, outputs=3, gain=HE), sgd(1e-7)),
        300,
        "stalled",
        "learning_rate",
        "full_batch_wine",
        "all data in one batch: the loss falls in every single step, and nowhere; loss 1.3 to 1.3, 1.5 to 1.5",
    ),
    sick(
        "bandit_certain",
        lambda: rewarded(1e4),
        250,
        "dead stalled vanishing",
        "saturated_output large_init",
        "bandit",
        "the policy is certain before it has learned: it never tries anything else; "
        "the reward stays at 0.09, twin's reaches 0.77",
    ),
    borderline(
        "labels_one_and_two",
        lambda: on_cancer(
            mlp(3, inputs=30, outputs=1, gain=HE), adam(), binary(F.binary_cross_entropy_with_logits, shift=1.0)
        ),
        250,
        "exploding stalled vanishing dead",
        "",
        "labels of 1 and 2 for a loss that wants 0 and 1: the loss falls below zero for ever; "
        "loss -0.72 to -1617, 0.56 to -1468",
        twin="sigmoid_of_one",
    ),
    healthy(
        "sigmoid_of_one",
        lambda: on_cancer(
            nn.Sequential(mlp(3, inputs=30, outputs=1, gain=HE), nn.Sigmoid()), adam(), binary(F.binary_cross_entropy)
        ),
        200,
        "the same network with a sigmoid; loss 0.45 to 0.023, 0.66 to 0.033",
    ),
    healthy(
        "linear_for_digits",
        lambda: on_digits(mlp(4, outputs=1, gain=HE), sgd(0.002), loss=value_of),
        250,
        "the same targets for an open output; loss 9.4 to 0.55, 14 to 0.58",
    ),
    healthy(
        "open_outputs",
        lambda: bright(hourglass(nn.Identity(), -1.0), adam(2e-3)),
        200,
        "no clamp; loss 1.4 to 0.032, 1.5 to 0.034",
    ),
    healthy(
        "prices_standardised",
        lambda: priced(mlp(4, inputs=8, outputs=1, gain=HE), sgd(0.02), in_units=False),
        300,
        "standardised prices; loss 1.3 to 0.069, 1.1 to 0.056",
    ),
    healthy(
        "prices_rescaled",
        lambda: priced(Scaled(mlp(4, inputs=8, outputs=1, gain=HE), 1e5, 2e5), adam(3e-3)),
        300,
        "prices in their unit and a loss of 1e10, but the outputs are rescaled inside: learns; "
        "loss 9.2e+09 to 4.9e+08, 7.8e+09 to 4.1e+08",
    ),
    healthy(
        "full_batch_wine",
        lambda: all_wines(mlp(3, inputs=13, outputs=3, gain=HE), sgd(0.1)),
        300,
        "full batch; loss 0.1 to 9.3e-05, 0.14 to 4.2e-05",
    ),
    healthy(
        "full_batch_to_zero",
        lambda: all_wines(mlp(3, inputs=13, outputs=3, gain=HE), sgd(0.01), perceptron),
        300,
        "full batch: the loss is exactly zero for most of the run; loss 0.14 to 0, 0.5 to 0",
    ),
    healthy(
        "exact_line",
        lambda: exact_line(sgd(0.1, momentum=0.5)),
        400,
        "full batch, no noise: down to rounding; loss 0.057 to 1.8e-14, 0.054 to 1.7e-14",
    ),
    healthy(
        "memorised_batch",
        memorised,
        400,
        "one batch by heart: a loss below 1e-4 and falling; loss 1.2 to 3e-05, 1.2 to 5.3e-05",
    ),
    healthy(
        "focal_and_rare",
        lambda: Task(Supervised(mlp(3, inputs=30, outputs=1, gain=HE), adam(2e-3), binary(focal)), loader(*rare())),
        250,
        "one in twenty is of the rare class, and easy samples hardly count: learns; "
        "loss 0.087 to 0.00015, 0.036 to 6.2e-05",
    ),
    healthy("bandit", rewarded, 400, "a noisy surrogate that need not fall; the reward rises from 0.1 to 0.77, 0.88"),
)
