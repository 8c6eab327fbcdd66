"""Trouble in one place: a cliff between two layers, a bad batch, an unstable operation, a wrong learning rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from .blocks import HE, XAVIER, Supervised, adam, mlp, on_digits, scale_layer, sgd, shift_bias
from .case import Case, Task, borderline, healthy, sick
from .convolutional import plain
from .data import digits, loader


class Standardise(nn.Module):
    """Standardise every feature over the batch; `floor` keeps blank features from dividing by zero."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        """Mean 0 and deviation 1."""
        return (x - x.mean(0)) / (x.std(0) + self.floor)


class Distance(nn.Module):
    """The distance of two embedded images; `floor` keeps the root away from zero."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.embed, self.floor = mlp(4, outputs=16, gain=HE), floor

    def forward(self, pairs: Tensor) -> Tensor:
        """One distance per pair."""
        first, second = self.embed(pairs[:, 0]), self.embed(pairs[:, 1])
        distance: Tensor = ((first - second).square().sum(1) + self.floor).sqrt()
        return distance


def pairs(floor: float) -> Task:
    """Same digit near, different digits far; one pair in five hundred is an image and itself."""
    images, labels = digits()
    other = torch.randperm(len(images), generator=torch.Generator().manual_seed(8))
    other[::500] = torch.arange(len(images))[::500]
    data = torch.stack([images, images[other]], dim=1), (labels == labels[other]).float()
    return Task(Supervised(Distance(floor), adam(), hinge), loader(*data))


def hinge(distance: Tensor, same: Tensor) -> Tensor:
    """Contrastive loss with a margin of four."""
    return (same * distance.square() + (1 - same) * F.relu(4 - distance).square()).mean()


def log_of_probability(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy as it should not be written."""
    chosen = output.softmax(-1).gather(1, target.unsqueeze(1))
    return -chosen.log().mean()


def raw_scores(step: int, images: Tensor) -> Tensor:
    """Images in their raw range of 0 to 255."""
    return (images + 0.81) * 97


def spoiled(at: int, value: float) -> Task:
    """One pixel of the batch at step `at` is not a number one can use."""

    def feed(step: int, images: Tensor) -> Tensor:
        if step == at:
            images = images.clone()
            images[0, 0] = value
        return images

    return on_digits(mlp(6, gain=HE), sgd(), feed=feed)


def decay_every_step(gamma: float) -> object:
    """A decay meant for epochs, applied at every step."""
    return lambda optimizer: ExponentialLR(optimizer, gamma)


def drop_tenfold(optimizer: Optimizer) -> StepLR:
    """A tenth of the learning rate from step 150 on."""
    return StepLR(optimizer, 150)


def cliff(net: nn.Module, places: tuple[int, ...], factor: float = 1.0, bias: float | None = None) -> nn.Module:
    """Spoil a few layers of an otherwise sound network."""
    for index in places:
        scale_layer(net, index, factor)
        if bias is not None:
            shift_bias(net, index, bias)
    return net


CASES: list[Case] = [
    # --- cliffs
    sick(
        "cliff_tiny_layers",
        lambda: on_digits(cliff(mlp(12, gain=HE, bias=False), (4, 5, 6), 1e-2), sgd(0.02)),
        300,
        "vanishing",
        "cliff small_init",
        "relu_he_nobias_mlp12",
        "three layers pass 1e-2 of the signal each, and starve each other: chance level",
        remedy="init.*",
        also="stalled",
    ),
    borderline(
        "cliff_one_tiny_layer",
        lambda: on_digits(cliff(mlp(12, gain=HE, bias=False), (6,), 1e-5), sgd(0.02)),
        300,
        "vanishing",
        "cliff small_init",
        "one layer passes 1e-5, but its own gradient heals it",
        twin="relu_he_nobias_mlp12",
        held_out=True,
    ),
    sick(
        "cliff_saturated_tanh",
        lambda: on_digits(cliff(mlp(9, nn.Tanh, gain=XAVIER), (4,), bias=8.0), sgd()),
        250,
        "vanishing",
        "cliff saturating_activation",
        "tanh_xavier_mlp9",
        "one layer at the rails: chance level",
        remedy="init.*",
        also="stalled dead",
        held_out=True,
    ),
    sick(
        "cliff_convolutions",
        lambda: on_digits(cliff(plain(9, gain=HE), (3, 4, 5), 1e-2), sgd(0.02)),
        250,
        "vanishing",
        "cliff small_init",
        "cnn9_he",
        "three convolutions pass 1e-2 of the signal each: chance level",
        remedy="init.*",
        also="stalled dead",
        held_out=True,
    ),
    healthy("tanh_xavier_mlp9", lambda: on_digits(mlp(9, nn.Tanh, gain=XAVIER), sgd()), 250, "no cliff", held_out=True),
    healthy("cnn9_he", lambda: on_digits(plain(9, gain=HE), sgd(0.02)), 250, "no cliff", held_out=True),
    # --- not a number
    sick(
        "nan_batch",
        lambda: spoiled(50, float("nan")),
        150,
        "nonfinite",
        "bad_data",
        "relu_he_mlp6",
        "one NaN at step 50: all weights are NaN",
        onset=50,
    ),
    sick(
        "inf_batch",
        lambda: spoiled(120, float("inf")),
        200,
        "nonfinite",
        "bad_data",
        "relu_he_mlp6",
        "one infinite pixel at step 120: all weights are NaN",
        held_out=True,
        onset=120,
    ),
    sick(
        "log_of_zero",
        lambda: on_digits(mlp(4, gain=HE), adam(), loss=log_of_probability, feed=raw_scores),
        100,
        "nonfinite",
        "unstable_op input_scale",
        "fused_log_softmax",
        "softmax underflows, its logarithm is infinite",
    ),
    sick(
        "root_of_zero",
        lambda: pairs(0.0),
        250,
        "nonfinite",
        "unstable_op",
        "root_with_floor",
        "the slope of the root at a distance of zero: 0 * inf",
        held_out=True,
    ),
    sick(
        "division_by_zero",
        lambda: on_digits(nn.Sequential(Standardise(0.0), mlp(4, gain=HE)), adam()),
        100,
        "nonfinite",
        "unstable_op bad_data",
        "division_with_floor",
        "blank pixels have no deviation: 0 / 0",
        held_out=True,
    ),
    healthy(
        "fused_log_softmax",
        lambda: on_digits(mlp(4, gain=HE), adam(), feed=raw_scores),
        100,
        "the same inputs with the fused loss",
    ),
    healthy("root_with_floor", lambda: pairs(1e-6), 250, "a floor under the root", held_out=True),
    healthy(
        "division_with_floor",
        lambda: on_digits(nn.Sequential(Standardise(1e-2), mlp(4, gain=HE)), adam()),
        100,
        "a floor under the deviation",
        held_out=True,
    ),
    # --- learning rates
    sick(
        "adam_lr1",
        lambda: on_digits(mlp(6, gain=HE), adam(1.0)),
        250,
        "exploding dead stalled vanishing",
        "learning_rate dead_relu",
        "steady_relu_mlp6",
        "a thousand times the right rate: at or above chance level",
        remedy="lr.*",
        also="nonfinite",
    ),
    sick(
        "adam_lr1_tanh_cnn",
        lambda: on_digits(plain(6, nn.Tanh, gain=XAVIER), adam(1.0)),
        200,
        "exploding dead stalled vanishing",
        "learning_rate large_init",
        "cnn6_tanh_adam",
        "a thousand times the right rate: at or above chance level",
        remedy="lr.*",
        also="nonfinite",
        held_out=True,
    ),
    sick(
        "lr_too_small",
        lambda: on_digits(mlp(4, gain=HE), sgd(1e-7)),
        250,
        "stalled",
        "learning_rate",
        "relu_mlp4_sgd",
        "the weights do not move",
        remedy="lr.*",
    ),
    sick(
        "decay_per_step",
        lambda: on_digits(mlp(6, gain=HE), sgd(0.01), schedule=decay_every_step(0.5)),
        250,
        "stalled",
        "learning_rate",
        "lr_drop",
        "the rate halves at every step: it stops at once",
        remedy="lr.*",
        held_out=True,
        onset=10,
    ),
    borderline(
        "double_softmax",
        lambda: on_digits(mlp(4, gain=HE).append(nn.Softmax(-1)), sgd()),
        250,
        "stalled vanishing",
        "saturated_output",
        "a softmax too many: learns, but slowly and not fully",
        twin="relu_mlp4_sgd",
        held_out=True,
    ),
    healthy(
        "cnn6_tanh_adam",
        lambda: on_digits(plain(6, nn.Tanh, gain=XAVIER), adam(3e-3)),
        200,
        "the right rate",
        held_out=True,
    ),
    healthy("relu_mlp4_sgd", lambda: on_digits(mlp(4, gain=HE), sgd()), 250, "the right rate"),
    healthy(
        "lr_drop",
        lambda: on_digits(mlp(6, gain=HE), sgd(0.01), schedule=drop_tenfold),
        250,
        "a tenth of the rate from step 150 on",
        held_out=True,
    ),
]
