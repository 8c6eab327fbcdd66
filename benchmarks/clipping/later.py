"""Trainings of other kinds, written before the default policy was changed and run with it only afterwards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.clipping.networks import Autoencoder, Gated, mlp
from benchmarks.clipping.trainings import NUM_STEPS, Clip, MakeOptimizer, gaussian, read_digits, supervised


def adding(make_optimizer: MakeOptimizer, length: int = 12) -> Callable[[int, Clip], list[float]]:
    """A GRU adds the two marked numbers of a sequence (Hochreiter and Schmidhuber 1997)."""

    def draw_loss(net: nn.Module, random: torch.Generator) -> Tensor:
        values = torch.rand(32, length, generator=random)
        first, second = torch.randint(length // 2, (2, 32, 1), generator=random)
        marks = torch.zeros_like(values).scatter_(1, first, 1.0).scatter_(1, length // 2 + second, 1.0)
        wanted = (values * marks).sum(1, keepdim=True)
        return F.mse_loss(net(torch.stack([values, marks], 2)), wanted)

    return supervised(Gated, make_optimizer, draw_loss)


def autoencoder(make_optimizer: MakeOptimizer) -> Callable[[int, Clip], list[float]]:
    """A variational autoencoder of handwritten digits; the loss is summed over the pixels, as is usual."""

    def draw_loss(net: nn.Module, random: torch.Generator) -> Tensor:
        images, _ = read_digits()
        batch = images[torch.randint(len(images), (32,), generator=random)]
        mean, log_variance = net.get_submodule("encoder")(batch).chunk(2, 1)
        code = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=random)
        wrong = (net.get_submodule("head")(code) - batch).square().sum(1)
        divergence = (log_variance.exp() + mean.square() - 1 - log_variance).sum(1) / 2
        loss: Tensor = (wrong + divergence).mean()
        return loss

    return supervised(Autoencoder, make_optimizer, draw_loss, 2 * NUM_STEPS)


def wasserstein(make_optimizer: MakeOptimizer, num_codes: int = 8) -> Callable[[int, Clip], list[float]]:
    """A Wasserstein GAN with gradient penalty draws digits; what counts is how far their means and spreads are off."""

    def train(seed: int, clip: Clip) -> list[float]:
        torch.manual_seed(seed)
        generator, critic = mlp(num_codes, 64, 64, 64), mlp(64, 64, 64, 1)
        generating, judging = make_optimizer(generator.parameters()), make_optimizer(critic.parameters())
        random, distances = torch.Generator().manual_seed(1000 + seed), []
        images, _ = read_digits()
        for step in range(NUM_STEPS):
            real = images[torch.randint(len(images), (32,), generator=random)]
            fake = generator(torch.randn(32, num_codes, generator=random))
            mixed = torch.lerp(real, fake.detach(), torch.rand(32, 1, generator=random)).requires_grad_()
            (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            critic.zero_grad()
            (critic(fake.detach()).mean() - critic(real).mean() + 10 * penalty).backward()
            clip(critic)
            judging.step()
            if step % 2 == 1:
                generator.zero_grad()
                (-critic(fake).mean()).backward()
                clip(generator)
                generating.step()
            if step % 10 == 0:
                with torch.no_grad():
                    drawn = generator(torch.randn(256, num_codes, generator=random))
                off = (drawn.mean(0) - images.mean(0)).square() + (drawn.std(0) - images.std(0)).square()
                distances.append(off.mean().item())
        return distances

    return train


def actor_critic(make_optimizer: MakeOptimizer) -> Callable[[int, Clip], list[float]]:
    """Actor and critic, with an optimizer each, balance poles; what counts is how far from upright these are."""

    def train(seed: int, clip: Clip) -> list[float]:
        torch.manual_seed(seed)
        actor, critic = (mlp(2, 32, 32, 1, activation=nn.Tanh) for _ in range(2))
        acting, judging = make_optimizer(actor.parameters()), make_optimizer(critic.parameters())
        random, costs = torch.Generator().manual_seed(1000 + seed), []
        state = torch.zeros(32, 2)
        for _ in range(NUM_STEPS):
            states, actions, rewards, ends = [], [], [], []
            with torch.no_grad():
                for _ in range(8):
                    action = actor(state) + 0.5 * torch.randn(32, 1, generator=random)
                    states.append(state)
                    actions.append(action)
                    angle, speed = state.unbind(1)
                    speed = speed + 0.1 * (5 * angle.sin() + 5 * action[:, 0].clamp(-2, 2))
                    angle = angle + 0.1 * speed
                    has_fallen = angle.abs() > 1.5
                    rewards.append(-angle.square() - 0.1 * speed.square() - 10.0 * has_fallen)
                    ends.append(has_fallen)
                    fresh = 0.2 * torch.randn(32, 2, generator=random)
                    state = torch.where(has_fallen[:, None], fresh, torch.stack([angle, speed], 1))
                following, returns = critic(state)[:, 0], list[Tensor]()
                for reward, has_fallen in zip(reversed(rewards), reversed(ends), strict=True):
                    following = reward + 0.95 * following * ~has_fallen
                    returns.append(following)
            costs.append(-torch.stack(rewards).mean().item())
            s, a, wanted = torch.cat(states), torch.cat(actions), torch.cat(returns[::-1])
            advantage = wanted - critic(s)[:, 0]
            critic.zero_grad()
            advantage.square().mean().backward()
            clip(critic)
            judging.step()
            actor.zero_grad()
            (-gaussian(a, actor(s)) * advantage.detach()).mean().backward()
            clip(actor)
            acting.step()
        return costs

    return train
