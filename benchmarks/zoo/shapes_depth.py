"""Blind shapes: tied depth, autoencoders, U-Nets, flows, implicit fields, recomputed activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import HE, XAVIER, Factory, Supervised, adam, layers, mlp, on_digits, sgd, shift_bias, with_gain
from .case import Case, Task, healthy, sick
from .data import digits, loader, rows


class Repeated(nn.Module):
    """One block that runs many times between an encoder and a head."""

    def __init__(self, block: nn.Module, times: int) -> None:
        super().__init__()
        self.encoder, self.block, self.head = nn.Linear(64, 64), block, nn.Linear(64, 10)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        """Scores after the last round."""
        x = torch.tanh(self.encoder(x))
        for _ in range(self.times):
            x = self.block(x)
        scores: Tensor = self.head(x)
        return scores


class Equilibrium(nn.Module):
    """An unrolled equilibrium model: every round mixes the state with the input anew."""

    def __init__(self, gain: float, activation: Callable[[Tensor], Tensor], times: int = 20) -> None:
        super().__init__()
        self.inject, self.mix, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        nn.init.orthogonal_(self.mix.weight, gain)
        self.activation, self.times = activation, times

    def forward(self, x: Tensor) -> Tensor:
        """Scores from the (nearly) fixed point."""
        injected = self.inject(x)
        state = torch.zeros_like(injected)
        for _ in range(self.times):
            state = self.activation(self.mix(state) + injected)
        scores: Tensor = self.head(state)
        return scores


class Universal(nn.Module):
    """One transformer block that runs six times over the rows of a digit."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 64, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores from the mean of all rows."""
        x = self.embed(x) + self.places
        for _ in range(6):
            x = self.block(x)
        scores: Tensor = self.head(x.mean(1))
        return scores


class Recomputed(nn.Module):
    """Layers whose activations are computed again on the way back."""

    def __init__(self, parts: Sequence[nn.Module], head: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.parts, self.head, self.reentrant = nn.ModuleList(parts), head, reentrant

    def forward(self, x: Tensor) -> Tensor:
        """Scores; reentrant recomputation wants an input that requires a gradient."""
        x = x.requires_grad_() if self.reentrant else x
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        scores: Tensor = self.head(x)
        return scores


class UNet(nn.Module):
    """Down and up again, with one skip; what happens far from its place needs the bottom."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, width, 3, padding=1)
        self.bottom = nn.Sequential(
            nn.Conv2d(width, 4 * width, 4, stride=4),
            nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, width, 4, stride=4),
        )
        self.up = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """An image of the same size."""
        fine = torch.relu(self.down(images.reshape(-1, 1, 8, 8)))
        coarse = torch.relu(self.bottom(fine))
        image: Tensor = self.up(torch.cat([fine, coarse], dim=1))
        return image.flatten(1)


class Coupling(nn.Module):
    """A normalising flow of affine couplings (RealNVP); `limit` bounds the logarithm of each scale."""

    def __init__(self, limit: float | None, depth: int = 8, gain: float = 0.5) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(3, nn.Tanh, inputs=1, outputs=2, width=32, gain=gain) for _ in range(depth))
        self.limit = limit

    def forward(self, points: Tensor) -> Tensor:
        """The negative log-likelihood of each point."""
        first, second = points.unbind(1)
        volume = torch.zeros_like(first)
        for net in self.nets:
            scale, shift = net(first.unsqueeze(1)).unbind(1)
            scale = scale if self.limit is None else self.limit * torch.tanh(scale)
            first, second = second * scale.exp() + shift, first
            volume = volume + scale
        return (first.square() + second.square()) / 2 + math.log(2 * math.pi) - volume


class Sine(nn.Module):
    """The sine of w0 times the input."""

    def __init__(self, w0: float = 30.0) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        """Between -1 and 1."""
        return torch.sin(self.w0 * x)


class FourierFeatures(nn.Module):
    """Sines and cosines of random directions."""

    def __init__(self, count: int, scale: float) -> None:
        super().__init__()
        self.directions = scale * torch.randn(2, count)

    def forward(self, x: Tensor) -> Tensor:
        """Twice as many features as directions."""
        angles = 2 * math.pi * x @ self.directions
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def likelihood(negative_log: Tensor, _: Tensor) -> Tensor:
    """The mean over all points."""
    return negative_log.mean()


@lru_cache
def field(side: int = 4) -> tuple[Tensor, Tensor]:
    """A mosaic of digits as a function of the place: coordinates in [-1, 1] and brightness."""
    images, _ = digits()
    mosaic = images[: side * side].reshape(side, side, 8, 8).transpose(1, 2).reshape(-1, 1)
    axis = torch.linspace(-1, 1, 8 * side)
    return torch.cartesian_prod(axis, axis), mosaic


@lru_cache
def moons(count: int = 4096) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles with noise, standardised."""
    source = torch.Generator().manual_seed(41)
    angle, side = math.pi * torch.rand(count, generator=source), torch.randint(2, (count,), generator=source)
    sign = 1.0 - 2 * side
    points = torch.stack([sign * angle.cos() + side, sign * angle.sin() + 0.5 * side], dim=1)
    points = points + 0.1 * torch.randn(count, 2, generator=source)
    return (points - points.mean(0)) / points.std(0), side


def siren(depth: int = 5, *, scaled: bool = True) -> nn.Module:
    """Sines of 30 times the input; `scaled` weights shrink by 30 to make up for it, as published."""
    net = mlp(depth, Sine, inputs=2, outputs=1)
    if scaled:
        first, *others = layers(net)
        nn.init.uniform_(first.weight, -1 / 2, 1 / 2)
        for layer in others:
            bound = math.sqrt(6 / layer.weight.shape[1]) / 30
            nn.init.uniform_(layer.weight, -bound, bound)
    return net


def on_field(net: nn.Module, optimizer: Factory) -> Task:
    """Fit the mosaic, all of its pixels in one batch."""
    places, brightness = field()
    return Task(Supervised(net, optimizer, F.mse_loss), loader(places, brightness, batch=len(places)))


def mirrored(net: nn.Module, optimizer: Factory) -> Task:
    """Turn a digit by half a turn, which no small neighbourhood can know."""
    images, _ = digits()
    return Task(Supervised(net, optimizer, F.mse_loss), loader(images, images.flip(1)))


def hourglass(code: nn.Module) -> nn.Module:
    """An autoencoder with an activation at its code."""
    return nn.Sequential(mlp(3, outputs=16, gain=HE), code, mlp(3, inputs=16, outputs=64, gain=HE))


def reconstructed(net: nn.Module, optimizer: Factory) -> Task:
    """Reconstruct the digits."""
    images, _ = digits()
    return Task(Supervised(net, optimizer, F.mse_loss), loader(images, images))


def silent_code() -> nn.Module:
    """The last layer of the encoder starts far below zero, so that its code is zero for every image."""
    return shift_bias(hourglass(nn.ReLU()), 2, -200.0)


def standard_normal(net: nn.Module) -> nn.Module:
    """All weights from N(0, 1), whatever the width."""
    for layer in layers(net):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    return net


def dead_bottom() -> nn.Module:
    """A U-Net of which the first convolution at the bottom never fires."""
    net = UNet()
    nn.init.constant_(net.bottom.get_submodule("0").bias, -100.0)  # type: ignore[arg-type]
    return net


def recomputed(activation: Callable[[], nn.Module], gain: float | None, *, reentrant: bool = False) -> nn.Module:
    """Twelve layers in four recomputed parts."""
    parts = [nn.Sequential(mlp(3, activation, outputs=64, gain=gain), activation()) for _ in range(4)]
    return Recomputed(parts, nn.Linear(64, 10), reentrant=reentrant)


def sigmoid_block() -> nn.Module:
    """What a block of the sick repeated network is."""
    return nn.Sequential(nn.Linear(64, 64), nn.Sigmoid())


def tanh_block() -> nn.Module:
    """What a block of its twin is."""
    return nn.Sequential(with_gain(nn.Sequential(nn.Linear(64, 64)), 1.2), nn.Tanh())


CASES: tuple[Case, ...] = (
    sick(
        "tied_sigmoid_x12",
        lambda: on_digits(Repeated(sigmoid_block(), 12), sgd()),
        250,
        "vanishing",
        "saturating_activation",
        "tied_tanh_x12",
        "one sigmoid layer runs twelve times, and the encoder before it gets nothing: chance level; "
        "loss 2.3 to 2.3, 2.3 to 2.3",
        also="stalled",
    ),
    sick(
        "equilibrium_expands",
        lambda: on_digits(Equilibrium(3.0, torch.relu), sgd(0.02)),
        100,
        "exploding nonfinite dead",
        "large_init recurrence learning_rate dead_relu",
        "equilibrium",
        "the state grows in each of twenty rounds: NaN, or far above chance level; loss NaN, NaN",
        also="stalled vanishing",
    ),
    sick(
        "recomputed_sigmoid",
        lambda: on_digits(recomputed(nn.Sigmoid, None), sgd()),
        200,
        "vanishing",
        "saturating_activation",
        "recomputed_gelu",
        "twelve sigmoids in recomputed parts: chance level; loss 2.3 to 2.3, 2.3 to 2.3",
        also="stalled",
    ),
    sick(
        "unet_dead_bottom",
        lambda: mirrored(dead_bottom(), adam(2e-3)),
        200,
        "dead",
        "dead_relu cliff",
        "unet",
        "the bottom never fires, only the skip learns, which does not see far enough; loss 0.92 to 0.53, 0.89 to 0.53",
    ),
    sick(
        "flow_unbounded",
        lambda: Task(Supervised(Coupling(None, gain=4.0), adam(1e-2), likelihood), loader(*moons(), batch=128)),
        200,
        "exploding nonfinite",
        "large_init unstable_op learning_rate",
        "flow",
        "scales of exp(large): a loss of many thousands or NaN; loss 1.1e+08 to 1.3e+04, 2.9e+06 to 1.6e+06",
        also="stalled vanishing dead",
    ),
    sick(
        "siren_unscaled",
        lambda: on_field(siren(scaled=False), adam(1e-3)),
        200,
        "exploding",
        "large_init cliff",
        "siren",
        "sines of 30 times the input without weights to match: growth at every layer, and noise is all it fits; "
        "loss 1.2 to 1, 1.2 to 1",
        also="stalled",
    ),
    sick(
        "autoencoder_silent_code",
        lambda: reconstructed(silent_code(), adam(2e-3)),
        200,
        "dead",
        "dead_relu cliff",
        "autoencoder_relu_code",
        "the code is zero for every image, the decoder learns the mean image; loss 0.99 to 0.68, 0.99 to 0.68",
    ),
    sick(
        "tanh_standard_normal",
        lambda: on_digits(standard_normal(mlp(8, nn.Tanh)), adam(1e-3)),
        250,
        "vanishing exploding dead stalled",
        "large_init saturating_activation",
        "tanh_standard_normal_twin",
        "all weights from N(0, 1): units at the rails in every layer; loss 11 to 6.2, 11 to 6.6",
    ),
    healthy(
        "tanh_standard_normal_twin",
        lambda: on_digits(mlp(8, nn.Tanh, gain=XAVIER), adam(1e-3)),
        250,
        "the same network with Xavier's weights; loss 1.9 to 0.039, 1.9 to 0.029",
    ),
    healthy(
        "tied_tanh_x12",
        lambda: on_digits(Repeated(tanh_block(), 12), sgd()),
        250,
        "twelve rounds; loss 1.9 to 0.91, 1.9 to 0.4",
    ),
    healthy(
        "equilibrium",
        lambda: on_digits(Equilibrium(0.5, torch.tanh), sgd()),
        200,
        "early rounds hardly count, which is the point of an equilibrium; loss 1.9 to 0.014, 1.9 to 0.031",
    ),
    healthy(
        "universal_transformer",
        lambda: Task(Supervised(Universal(), adam(3e-3)), loader(*rows(), batch=64)),
        120,
        "one block runs six times: learns; loss 2.5 to 0.35, 2.2 to 0.4",
    ),
    healthy(
        "recomputed_gelu",
        lambda: on_digits(recomputed(nn.GELU, HE), sgd()),
        200,
        "recomputed; loss 2.2 to 0.35, 2.3 to 0.22",
    ),
    healthy(
        "recomputed_reentrant",
        lambda: on_digits(recomputed(nn.GELU, HE, reentrant=True), adam(1e-3)),
        150,
        "recomputed in the old, reentrant way: learns; loss 2.2 to 0.052, 2.3 to 0.12",
    ),
    healthy(
        "unet", lambda: mirrored(UNet(), adam(2e-3)), 200, "skip and bottom learn; loss 0.89 to 0.066, 0.85 to 0.052"
    ),
    healthy(
        "flow",
        lambda: Task(Supervised(Coupling(1.0), adam(5e-3), likelihood), loader(*moons(), batch=128)),
        300,
        "bounded scales: learns; loss 2.8 to 2.2, 2.8 to 2",
    ),
    healthy(
        "siren",
        lambda: on_field(siren(), adam(1e-3)),
        200,
        "full batch, sines with weights to match; loss 0.69 to 0.0006, 0.69 to 2.3e-07",
    ),
    healthy(
        "fourier_features",
        lambda: on_field(nn.Sequential(FourierFeatures(64, 3.0), mlp(4, inputs=128, outputs=1, gain=HE)), adam(2e-3)),
        200,
        "full batch, random sines at the input: learns; loss 0.91 to 4.7e-09, 0.93 to 4.4e-09",
    ),
    healthy(
        "autoencoder_relu_code",
        lambda: reconstructed(hourglass(nn.ReLU()), adam(2e-3)),
        200,
        "learns; loss 0.99 to 0.32, 1 to 0.24",
    ),
)
