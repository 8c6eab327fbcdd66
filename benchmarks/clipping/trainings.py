"""Ordinary training loops: each returns what is to become small, step by step, and clips where it is told to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from pydoc_data.topics import topics
from typing import Any, Protocol

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.clipping.networks import Recurrent, Residual, Transformer, convolutional, mlp

BATCH = 16
NUM_STEPS = 300

Parameters = Iterable[nn.Parameter]
MakeOptimizer = Callable[[Any], Optimizer]


class Clip(Protocol):
    """Clips the gradients of a network, once they are complete."""

    def __call__(self, net: nn.Module) -> None:
        """Clip."""


def sgd(rate: float, momentum: float = 0.0) -> MakeOptimizer:
    """Gradient descent."""
    return lambda parameters: torch.optim.SGD(parameters, rate, momentum=momentum)


def adam(rate: float, **options: Any) -> MakeOptimizer:
    """Adam, or AdamW where there is weight decay."""
    kind = torch.optim.AdamW if options.get("weight_decay") else torch.optim.Adam
    return lambda parameters: kind(parameters, rate, **options)


def constant(step: int) -> float:
    """No schedule."""
    return 1.0


def warm_up_and_cosine(step: int) -> float:
    """A linear warm-up over a tenth, then half a wave down to zero."""
    first = NUM_STEPS // 10
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / (NUM_STEPS - first)))


@lru_cache
def read_text() -> Tensor:
    """The topics of Python's ``help``, one character each, shape ``(characters,)``."""
    manual = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor(list(manual.encode("ascii", "ignore")))


@lru_cache
def read_digits() -> tuple[Tensor, Tensor]:
    """1797 standardised images of 8x8 pixels, flat, and their labels."""
    data = load_digits()
    images = torch.as_tensor(data.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.as_tensor(data.target)


def language_model(
    build: Callable[[], nn.Module],
    make_optimizer: MakeOptimizer,
    length: int = 32,
    schedule: Callable[[int], float] = constant,
    accumulate: int = 1,
    bad_batches: float = 0.0,
) -> Callable[[int, Clip], list[float]]:
    """The next character of Python's manual; a bad batch is noise of a hundred times the weight."""

    def train(seed: int, clip: Clip) -> list[float]:
        torch.manual_seed(seed)
        net, text, random = build(), read_text(), torch.Generator().manual_seed(1000 + seed)
        optimizer = make_optimizer(net.parameters())
        scheduler, losses = LambdaLR(optimizer, schedule), list[float]()
        for step in range(NUM_STEPS):
            total = 0.0
            for _ in range(accumulate):
                starts = torch.randint(len(text) - length - 1, (BATCH, 1), generator=random)
                batch = text[starts + torch.arange(length + 1)]
                is_bad = step > 50 and torch.rand((), generator=random).item() < bad_batches
                noise = torch.randint(128, batch.shape, generator=random)
                loss = language_loss(net, noise if is_bad else batch) * (100.0 if is_bad else 1.0)
                total += loss.item() if not is_bad else losses[-1]
                (loss / accumulate).backward()
            losses.append(total / accumulate)
            if not math.isfinite(losses[-1]):
                break
            clip(net)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return losses

    return train


def language_loss(net: nn.Module, batch: Tensor) -> Tensor:
    """Nats per character."""
    return F.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def supervised(
    build: Callable[[], nn.Module],
    make_optimizer: MakeOptimizer,
    draw_loss: Callable[[nn.Module, torch.Generator], Tensor],
    num_steps: int = NUM_STEPS,
) -> Callable[[int, Clip], list[float]]:
    """One network learns from batches that ``draw_loss`` draws."""

    def train(seed: int, clip: Clip) -> list[float]:
        torch.manual_seed(seed)
        net = build()
        optimizer, losses = make_optimizer(net.parameters()), []
        random = torch.Generator().manual_seed(1000 + seed)
        for _ in range(num_steps):
            loss = draw_loss(net, random)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            loss.backward()
            clip(net)
            optimizer.step()
        return losses

    return train


def classifier(build: Callable[[], nn.Module], make_optimizer: MakeOptimizer) -> Callable[[int, Clip], list[float]]:
    """Handwritten digits."""

    def draw_loss(net: nn.Module, random: torch.Generator) -> Tensor:
        images, labels = read_digits()
        places = torch.randint(len(images), (32,), generator=random)
        return F.cross_entropy(net(images[places]), labels[places])

    return supervised(build, make_optimizer, draw_loss)


def regression(make_optimizer: MakeOptimizer) -> Callable[[int, Clip], list[float]]:
    """A smooth function without noise: loss and gradients fall by orders of magnitude."""

    def draw_loss(net: nn.Module, random: torch.Generator) -> Tensor:
        x = torch.randn(64, 4, generator=random)
        return F.mse_loss(net(x), 10 * x[:, :1] + x[:, 1:2] * x[:, 2:3])

    return supervised(lambda: mlp(4, 64, 64, 1, activation=nn.Tanh), make_optimizer, draw_loss, 2 * NUM_STEPS)


def adversarial(make_optimizer: MakeOptimizer) -> Callable[[int, Clip], list[float]]:
    """A GAN learns eight spots on a ring; what counts is the energy distance between its points and true ones."""

    def ring(random: torch.Generator, count: int) -> Tensor:
        angles = torch.randint(8, (count,), generator=random) * (math.pi / 4)
        return torch.stack([angles.cos(), angles.sin()], 1) + 0.05 * torch.randn(count, 2, generator=random)

    def train(seed: int, clip: Clip) -> list[float]:
        torch.manual_seed(seed)
        generator, critic = mlp(4, 64, 64, 2), mlp(2, 64, 64, 1)
        optimizers = [make_optimizer(net.parameters()) for net in (generator, critic)]
        random, distances = torch.Generator().manual_seed(1000 + seed), []
        for step in range(2 * NUM_STEPS):
            real, fake = ring(random, 64), generator(torch.randn(64, 4, generator=random))
            loss = F.softplus(-critic(real)).mean() + F.softplus(critic(fake.detach())).mean()
            critic.zero_grad()
            loss.backward()
            clip(critic)
            optimizers[1].step()
            generator.zero_grad()
            F.softplus(-critic(fake)).mean().backward()
            clip(generator)
            optimizers[0].step()
            if step % 10 == 9:
                with torch.no_grad():
                    distances.append(
                        energy_distance(generator(torch.randn(256, 4, generator=random)), ring(random, 256))
                    )
        return distances

    return train


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Of two samples of points (Székely and Rizzo 2013)."""
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def policy_gradient(make_optimizer: MakeOptimizer, reward_scale: float = 1.0) -> Callable[[int, Clip], list[float]]:
    """PPO drives points to the origin with noisy pushes; what counts is their mean squared distance on the way."""

    def train(seed: int, clip: Clip) -> list[float]:
        torch.manual_seed(seed)
        net = mlp(4, 64, 64, 3, activation=nn.Tanh)  # two means and a value
        optimizer, costs = make_optimizer(net.parameters()), []
        random = torch.Generator().manual_seed(1000 + seed)
        for _ in range(NUM_STEPS // 6):
            states, actions, rewards = [], [], []
            state = torch.cat([2 * torch.randn(32, 2, generator=random), torch.zeros(32, 2)], 1)
            with torch.no_grad():
                for _ in range(16):
                    action = net(state)[:, :2] + 0.5 * torch.randn(32, 2, generator=random)
                    states.append(state)
                    actions.append(action)
                    speed = 0.8 * state[:, 2:] + 0.3 * action.clamp(-3, 3)
                    state = torch.cat([state[:, :2] + speed, speed], 1)
                    rewards.append(-reward_scale * state[:, :2].square().sum(1))
            costs.append(-torch.stack(rewards).mean().item() / reward_scale)
            returns, following = [], torch.zeros(32)
            for reward in reversed(rewards):
                following = reward + 0.9 * following
                returns.append(following)
            s, a, r = torch.cat(states), torch.cat(actions), torch.cat(returns[::-1])
            with torch.no_grad():
                before = net(s)
                chance = gaussian(a, before[:, :2])
                advantage = r - before[:, 2]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            for _ in range(6):
                now = net(s)
                ratio = (gaussian(a, now[:, :2]) - chance).exp()
                gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
                loss = F.mse_loss(now[:, 2], r) * 0.01 - gain
                optimizer.zero_grad()
                loss.backward()
                clip(net)
                optimizer.step()
        return costs

    return train


def gaussian(actions: Tensor, means: Tensor) -> Tensor:
    """Logarithm of the density, but for a constant, at a deviation of 0.5."""
    return -2 * (actions - means).square().sum(1)


def muon(rate: float) -> MakeOptimizer:
    """Muon for the matrices, AdamW for the rest."""

    class Both(Optimizer):
        def __init__(self, parameters: Parameters) -> None:
            chosen = list(parameters)
            super().__init__(chosen, {"lr": 1.0})
            matrices = [p for p in chosen if p.ndim == 2]
            self.parts = [torch.optim.Muon(matrices, rate), adam(3e-3)([p for p in chosen if p.ndim != 2])]
            self.rates = [part.param_groups[0]["lr"] for part in self.parts]

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for part, rate in zip(self.parts, self.rates, strict=True):
                part.param_groups[0]["lr"] = rate * self.param_groups[0]["lr"]
                part.step()

    return Both


def lstm(depth: int = 1, width: int = 64) -> Callable[[], nn.Module]:
    """A recurrent language model."""
    return lambda: Recurrent(depth, width)


def transformer(norm_first: bool) -> Callable[[], nn.Module]:
    """A language model by attention."""
    return lambda: Transformer(32, norm_first)


CNN, RESIDUAL = convolutional, Residual
