"""Convolutional networks on the 8x8 digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import HE, Residual, Supervised, adam, on_digits, sgd, shift_bias, with_gain
from .case import Case, Task, healthy, sick
from .data import digits, loader


def head(channels: int) -> list[nn.Module]:
    """Average over the image and classify."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def plain(
    depth: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    channels: int = 12,
    gain: float | None = None,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """Convolutions one after the other, without skips."""
    net = nn.Sequential(nn.Unflatten(1, (1, 8, 8)))
    for index in range(depth):
        net.append(nn.Conv2d(channels if index else 1, channels, 3, stride=2 if index == 1 else 1, padding=1))
        if norm is not None:
            net.append(norm(channels))
        net.append(activation())
    net.extend(head(channels))
    if gain is not None:
        with_gain(net, gain)
    return net


class BasicBlock(nn.Module):
    """Two normalised convolutions beside a skip, with activations in place; the skip can be left out."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], skip: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm(channels))
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm(channels))
        self.activation, self.skip = nn.ReLU(inplace=True), skip

    def forward(self, x: Tensor) -> Tensor:
        """Run both convolutions and add the skip."""
        branch = self.second(self.activation(self.first(x)))
        output: Tensor = self.activation(branch + x if self.skip else branch)
        return output


def resnet(
    blocks: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, *, skip: bool = True, zero_gamma: bool = False
) -> nn.Sequential:
    """A small ResNet."""
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3, stride=2, padding=1, bias=False), norm(12)]
    net = nn.Sequential(*stem, nn.ReLU(inplace=True), *(BasicBlock(12, norm, skip) for _ in range(blocks)), *head(12))
    if zero_gamma:
        for block in net:
            if isinstance(block, BasicBlock):
                nn.init.zeros_(cast(Tensor, block.second[1].weight))
    return net


def groups(channels: int) -> nn.Module:
    """Normalise in groups of four channels."""
    return nn.GroupNorm(channels // 4, channels)


def unnormalised(channels: int) -> nn.Module:
    """Do not normalise."""
    return nn.Identity()


class UNet(nn.Module):
    """Two resolutions, a skip between them, and a last convolution that starts at zero."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.deep = nn.Sequential(nn.SiLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.SiLU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.outer = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.SiLU())
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Denoise flat images."""
        fine = F.silu(self.inner(x.reshape(-1, 1, 8, 8)))
        coarse = self.up(self.deep(self.down(fine)))
        output: Tensor = self.last(self.outer(torch.cat([fine, coarse], dim=1)))
        return output.flatten(1)


def denoising(net: nn.Module) -> Task:
    """Recover the digits from noise."""
    images, _ = digits()
    noisy = images + torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    return Task(Supervised(net, adam(3e-3), F.mse_loss), loader(noisy, images))


def dead_convolution() -> nn.Module:
    """One convolution in the middle never fires."""
    return shift_bias(plain(6, gain=HE), 3, -100.0)


def growing() -> nn.Module:
    """A residual network without normalisation whose every branch doubles the signal several times over."""
    blocks = (Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())) for _ in range(16))
    return with_gain(nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, 2, 1), *blocks, *head(8)), 2.2)


def tamed() -> nn.Module:
    """The same network with group normalisation in every branch."""
    blocks = (Residual(nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())) for _ in range(16))
    net = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, 2, 1), *blocks, nn.GroupNorm(2, 8), *head(8))
    return with_gain(net, HE)


CASES: list[Case] = [
    sick(
        "plain_cnn20_default_sgd",
        lambda: on_digits(plain(20), sgd()),
        200,
        "vanishing",
        "small_init no_skip_or_norm",
        "cnn20_batch_norm",
        "twenty plain convolutions: chance level",
        remedy="norm.*",
        also="stalled",
    ),
    sick(
        "cnn_sigmoid8",
        lambda: on_digits(plain(8, nn.Sigmoid), adam()),
        250,
        "vanishing",
        "saturating_activation",
        "cnn_sigmoid8_batch_norm",
        "eight sigmoid convolutions: chance level",
        remedy="norm.*",
        also="stalled",
        held_out=True,
    ),
    sick(
        "resnet_without_skip_or_norm",
        lambda: on_digits(resnet(9, unnormalised, skip=False), sgd()),
        200,
        "vanishing",
        "small_init no_skip_or_norm",
        "tiny_resnet",
        "the skips and norms left out: chance level",
        remedy="norm.* residual.*",
        also="stalled",
        held_out=True,
    ),
    sick(
        "dead_convolution",
        lambda: on_digits(dead_convolution(), sgd()),
        200,
        "dead",
        "dead_relu cliff",
        "cnn6_he",
        "one convolution never fires: chance level",
        remedy="init.*",
        also="stalled",
        held_out=True,
    ),
    sick(
        "cnn_large_init",
        lambda: on_digits(plain(12, gain=5.0), sgd(), gradient_clip_val=1.0),
        200,
        "exploding nonfinite dead",
        "large_init",
        "cnn12_group_norm",
        "3.5 times the He gain; clipping keeps it finite, no more",
        remedy="norm.* init.*",
        held_out=True,
    ),
    sick(
        "residual_growth",
        lambda: on_digits(growing(), sgd(0.01)),
        150,
        "exploding nonfinite",
        "large_init no_skip_or_norm",
        "residual_growth_tamed",
        "every branch adds to the signal: it explodes",
        remedy="norm.* init.*",
        also="dead",
    ),
    healthy("cnn20_batch_norm", lambda: on_digits(plain(20, norm=nn.BatchNorm2d), sgd()), 200, "learns"),
    healthy(
        "cnn_sigmoid8_batch_norm",
        lambda: on_digits(plain(8, nn.Sigmoid, norm=nn.BatchNorm2d), adam(1e-2)),
        250,
        "sigmoids, but normalised",
        held_out=True,
    ),
    healthy("cnn6_he", lambda: on_digits(plain(6, gain=HE), sgd()), 200, "learns", held_out=True),
    healthy("cnn12_group_norm", lambda: on_digits(plain(12, norm=groups), sgd()), 200, "learns", held_out=True),
    healthy("residual_growth_tamed", lambda: on_digits(tamed(), sgd(0.01)), 150, "the same network, normalised"),
    healthy("tiny_resnet", lambda: on_digits(resnet(9), sgd()), 200, "learns"),
    healthy(
        "resnet_zero_gamma", lambda: on_digits(resnet(6, zero_gamma=True), sgd()), 200, "branches start at exactly zero"
    ),
    healthy("resnet_group_norm", lambda: on_digits(resnet(4, groups), adam(3e-3)), 200, "learns", held_out=True),
    healthy("unet_zero_init", lambda: denoising(UNet()), 250, "the last convolution starts at exactly zero"),
]
